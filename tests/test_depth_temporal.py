"""Temporal metrics: what does not move does not count, what flickers does; figures of published code."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from data_samples import refused
from leadline.depth import scenes
from leadline.depth.temporal import alignment_error, flicker, warped_change
from test_depth_metrics import published

SMALL = (64, 80)
INTRINSICS = np.array([[30, 0, 15.5], [0, 30, 11.5], [0, 0, 1.0]])


def turning(count):
    poses = []
    for i in range(count):
        pose, c, s = np.eye(4), np.cos(0.03 * i), np.sin(0.03 * i)
        pose[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
        pose[:3, 3] = [0.1 * i, 0, 0.05 * i]
        poses.append(pose)
    return np.stack(poses)


def test_figures_of_video_depth_anything():
    """benchmark/eval/eval_tae.py, tae_torch both ways, times 100."""
    found = alignment_error(published()[0], INTRINSICS, turning(3))
    np.testing.assert_allclose(found, [43.22877338030813, 34.27450934023594], rtol=1e-9)


@pytest.fixture(scope="module", params=(20, 21))
def clip(request):
    return scenes.clip(request.param, 5, SMALL)


def video(clip):
    depth = np.stack([np.where(frame.depth < 60, frame.depth, 0) for frame in clip])
    poses = np.stack([frame.camera.pose for frame in clip])
    return depth, clip[0].camera.intrinsics, poses


def test_true_depth_is_nearly_consistent_and_scaled_depth_is_not(clip):
    depth, intrinsics, poses = video(clip)
    exact = alignment_error(depth, intrinsics, poses)
    assert exact.shape == (4,) and exact.mean() < 12  # occlusions and the rounding to pixels remain
    breathing = depth * np.array([1, 1.2, 1, 1.2, 1])[:, None, None]
    assert alignment_error(breathing, intrinsics, poses).mean() > exact.mean() + 7


def test_warped_change_sees_through_motion(clip):
    depth, _, _ = video(clip)
    moves = [scenes.flow(a, b) for a, b in pairwise(clip)]
    flows, seen = [m[0] for m in moves], [m[1] for m in moves]
    still = [np.zeros_like(f) for f in flows]
    exact = warped_change(depth, flows, seen)
    assert exact.mean() < 0.8 * warped_change(depth, still, seen).mean()
    breathing = depth * np.array([1, 1.2, 1, 1.2, 1])[:, None, None]
    assert warped_change(breathing, flows, seen).mean() > exact.mean() + 7


def test_warped_change_by_hand():
    now, later = np.full((4, 5), 2.0), np.full((4, 5), 3.0)
    later[:, 0] = 2.0
    flow = np.zeros((4, 5, 2))
    visible = np.ones((4, 5), bool)
    assert warped_change([now, later], [flow], [visible]) == pytest.approx(100 * 0.5 * 4 / 5)
    flow[..., 0] = 0.5  # half a pixel to the right: column 0 sees 2.5
    expected = (0.25 + 0.5 * 4) / 5
    assert warped_change([now, later], [flow], [visible]) == pytest.approx(100 * expected)
    visible[:, 1:] = False
    assert warped_change([now, later], [flow], [visible]) == pytest.approx(25)


def test_a_constant_error_does_not_flicker():
    reference = np.random.default_rng(0).uniform(1, 2, (4, 6, 7))
    assert flicker(reference + 0.3, reference) == pytest.approx(0, abs=1e-9)
    blinking = reference + 0.3 * (np.arange(4) % 2)[:, None, None]
    np.testing.assert_allclose(flicker(blinking, reference), 30 / reference.mean())


def test_a_still_camera_has_no_error():
    depth = np.repeat(np.random.default_rng(0).uniform(1, 5, (1, 24, 32)), 3, 0)
    assert alignment_error(depth, INTRINSICS, np.repeat(np.eye(4)[None], 3, 0)) == pytest.approx(0, abs=1e-9)


def test_nothing_in_common_is_no_error():
    away = np.repeat(np.eye(4)[None], 2, 0)
    away[1, :3, 3] = [1000, 0, 0]
    assert alignment_error(np.ones((2, 24, 32)), INTRINSICS, away) == pytest.approx(0)
    assert alignment_error(np.zeros((2, 24, 32)), INTRINSICS, turning(2)) == pytest.approx(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flicker(np.ones((1, 4, 4)), np.ones((1, 4, 4))), "a video must be (at least 2 frames"),
        (lambda: flicker(np.ones((2, 4, 4)), np.ones((2, 4, 5))), "the reference's shape (2, 4, 5)."),
        (lambda: alignment_error(np.ones((2, 4, 4)), INTRINSICS, np.eye(4)), "poses must be (2, 4, 4)."),
        (lambda: alignment_error(np.ones((2, 4, 4)), np.eye(4), turning(2)), "must be (3, 3) or (2, 3, 3)."),
        (lambda: warped_change(np.ones((2, 4, 4)), [], []), "2 frames need 1 flows"),
        (lambda: warped_change(np.ones((2, 4, 4)), [np.ones((4, 4))], [np.ones((4, 4))]), "flows must be (4, 4, 2)"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, message):
    with refused("[depth.temporal]", message):
        call()
