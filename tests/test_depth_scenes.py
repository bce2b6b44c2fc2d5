"""Rendered scenes: depth against a ray at a time in float64, cameras, flow, pairs, and the files of BlendedMVS."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from data_samples import refused
from leadline.depth import scenes
from leadline.depth.scenes import Camera, Light, Look, Solids, World
from reference import scenes as spec

SMALL = (48, 60)
PLACES = (4, 5, 100_000, 100_001)  # rooms and streets


def lone(build) -> World:
    solids = Solids()
    build(solids)
    solids.box((0, 0, -1), (20, 20, 0.5), Look())
    return World(solids, Light((0.3, 0.2, 0.93), (1, 1, 1), (0.3, 0.3, 0.3), (0.2, 0.4, 0.8)))


@pytest.mark.parametrize("seed", PLACES)
def test_depth_is_that_of_the_nearest_solid(seed):
    frame = scenes.views(seed, size=SMALL)[0]
    solids = scenes.world(seed)[0].solids
    rng = np.random.default_rng(seed)
    wrong = 0
    for row, column in zip(rng.integers(0, SMALL[0], 60), rng.integers(0, SMALL[1], 60), strict=True):
        exact = spec.depth(solids, frame.camera, row, column)
        # A ray that grazes an edge may go either way in float32: at most one in sixty does.
        wrong += not np.isclose(frame.depth[row, column], exact, rtol=2e-5)
    assert wrong <= 1


@pytest.mark.parametrize(
    ("build", "closest"),
    [
        (lambda s: s.box((4, 0, 1), (1, 1, 1), Look()), 3.0),
        (lambda s: s.ellipsoid((4, 0, 1), (0.5, 1, 1), Look()), 3.5),
        (lambda s: s.rod((4, -1, 1), (4, 1, 1), 0.25, Look()), 3.75),
        (lambda s: s.rod((3, 0, 1), (5, 0, 1), 0.25, Look()), 3.0),
        (lambda s: s.box((4, 0, 1), (1, 1, 1), Look(), yaw=np.pi / 4), 4 - np.sqrt(2)),
    ],
)
def test_solids_stand_where_they_are_put(build, closest):
    frame = lone(build).render(Camera.looking((0, 0, 1), (1, 0, 1), (33, 33), 60))
    assert frame.depth[16, 16] == pytest.approx(closest, rel=1e-5)
    assert np.isinf(frame.depth[0, 0]) and frame.rgb.dtype == np.uint8


def test_a_thin_rod_far_away_keeps_its_width():
    """1 cm at 40 m, under one pixel in ten: the discriminant has no digits left unless it is taken with care."""
    world = lone(lambda s: s.rod((40, 0, 0), (40, 0, 3), 0.01, Look()))
    camera = Camera.looking((0, 0, 1), (1, 0, 1), (8, 4001), 1.0)
    hit = (world.depth(camera)[4] < 41).sum()
    assert hit == pytest.approx(0.02 / 40 * camera.intrinsics[0, 0], abs=2)


def test_what_is_behind_the_camera_or_around_it_is_not_seen():
    world = lone(lambda s: (s.box((-4, 0, 1), (1, 1, 1), Look()), s.ellipsoid((0, 0, 1), 0.3, Look())))
    depth = world.depth(Camera.looking((0, 0, 1), (1, 0, 1), (9, 9), 30))
    assert np.isinf(depth[4, 4])


def test_light_shadow_and_glow():
    def build(solids):
        solids.box((4, 0, 3), (1, 1, 0.05), Look())

    world = lone(build)
    world.light = Light((0, 0.001, 1), (1, 1, 1), (0.2, 0.2, 0.2), (0.2, 0.4, 0.8))
    frame = world.render(Camera.looking((0, 0, 1.5), (4, 0, -0.5), (65, 65), 70))
    under = frame.rgb[32, 32].mean()  # the ground below the plate, at (4, 0)
    beside = frame.rgb[62, 32].mean()
    assert under < 0.75 * beside


@pytest.mark.parametrize("seed", PLACES)
def test_the_same_seed_gives_the_same_pictures(seed):
    first = scenes.views(seed, 2, SMALL)
    scenes.world.cache_clear()
    again = scenes.views(seed, 2, SMALL)
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.rgb, b.rgb) and np.array_equal(a.depth, b.depth)
    assert not np.array_equal(first[0].rgb, first[1].rgb)


@pytest.mark.parametrize("seed", range(400_000, 400_012))
def test_every_place_has_something_to_see(seed):
    frame = scenes.views(seed, size=SMALL)[0]
    known = np.isfinite(frame.depth)
    assert known.mean() > 0.2 and frame.depth[known].min() > 0.02
    assert np.median(frame.depth[known]) > 0.8
    assert np.ptp(frame.rgb.astype(int)) > 60 and 15 < frame.rgb.mean() < 240
    if seed % 2 == 0:
        assert known.all() and frame.depth.max() < 13  # a room is closed


def test_antialiasing_changes_colours_and_not_depth():
    plain, smooth = (scenes.views(6, size=SMALL, antialias=n)[0] for n in (1, 3))
    np.testing.assert_allclose(smooth.depth, plain.depth, rtol=1e-5)
    assert smooth.camera is plain.camera or np.array_equal(smooth.camera.pose, plain.camera.pose)
    assert 0 < np.abs(smooth.rgb.astype(int) - plain.rgb).mean() < 25


@pytest.mark.parametrize("seed", (8, 9))
def test_flow_finds_the_same_point_again(seed):
    a, b = scenes.clip(seed, 2, (96, 120))
    flow, visible = scenes.flow(a, b)
    assert flow.shape == (96, 120, 2) and visible.mean() > 0.5
    rows, columns = np.nonzero(visible & np.isfinite(a.depth))
    u, v = (columns + flow[rows, columns, 0]).round().astype(int), (rows + flow[rows, columns, 1]).round().astype(int)
    # The same point of the world, seen from b, has the depth that b shows there, to the pixel's rounding.
    points = a.camera.unproject(a.depth)[rows, columns]
    np.testing.assert_allclose(b.camera.project(points)[:, 2], b.depth[v, u], rtol=0.032)
    # And nearly the same colour, as light does not move; noise of texture sampling remains.
    change = np.abs(a.rgb[rows, columns].astype(int) - b.rgb[v, u]).mean()
    assert change < 0.6 * np.abs(a.rgb[rows, columns].astype(int) - b.rgb[rows, columns]).mean() + 4


def test_flow_to_itself_is_nothing():
    (frame,) = scenes.views(11, size=SMALL)
    flow, visible = scenes.flow(frame, frame)
    assert np.abs(flow).max() < 1e-3 and visible.all()


def test_the_sky_turns_with_the_camera():
    world = lone(lambda s: s.box((4, 0, 0.2), (0.2, 0.2, 0.2), Look()))
    cameras = [Camera.looking((0, 0, 1), (np.cos(t), np.sin(t), 1), (33, 65), 60) for t in (0.0, 0.1)]
    a, b = (world.render(camera) for camera in cameras)
    flow, visible = scenes.flow(a, b)
    sky = np.isinf(a.depth) & visible
    focal = cameras[0].intrinsics[0, 0]
    assert sky.any()
    assert flow[5, 32, 0] == pytest.approx(focal * np.tan(0.1), rel=0.01)  # turned left: everything moves right


def test_clips_move_a_little_and_views_a_lot():
    clip = scenes.clip(12, 4, SMALL)
    steps = [np.linalg.norm(b.camera.pose[:3, 3] - a.camera.pose[:3, 3]) for a, b in pairwise(clip)]
    assert min(steps) > 0 and max(steps) < 0.1
    assert len({frame.camera.intrinsics.tobytes() for frame in clip}) == 1


def test_pairs_are_what_multi_view_networks_take():
    pair = scenes.pair(3, (56, 70))
    assert pair.shape == (1, 2, 3, 56, 70) and pair.dtype == np.float32
    assert pair.min() >= 0 and pair.max() <= 1 and not np.array_equal(pair[0, 0], pair[0, 1])


def test_cameras_project_and_unproject():
    (frame,) = scenes.views(14, size=SMALL)
    seen = frame.camera.project(frame.camera.unproject(frame.depth))
    v, u = np.mgrid[: SMALL[0], : SMALL[1]]
    np.testing.assert_allclose(seen, np.stack([u, v, frame.depth], -1), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(frame.camera.extrinsics @ frame.camera.pose, np.eye(4), atol=1e-12)
    rotation = frame.camera.pose[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    width = SMALL[1]
    assert frame.camera.intrinsics[0, 0] == pytest.approx(width / 2 / np.tan(np.deg2rad(scenes.FIELD_OF_VIEW / 2)))


def test_blendedmvs_folders_hold_what_was_rendered(tmp_path):
    frames = scenes.clip(13, 3, SMALL)
    scenes.write_blendedmvs(tmp_path / "scene", frames)
    names = {p.relative_to(tmp_path / "scene").as_posix() for p in (tmp_path / "scene").rglob("*") if p.is_file()}
    assert names == {
        *(f"blended_images/{i:08d}.jpg" for i in range(3)),
        *(f"cams/{i:08d}_cam.txt" for i in range(3)),
        *(f"rendered_depth_maps/{i:08d}.pfm" for i in range(3)),
        "cams/pair.txt",
    }
    for i, frame in enumerate(frames):
        depth = read_pfm(tmp_path / "scene" / "rendered_depth_maps" / f"{i:08d}.pfm")
        np.testing.assert_array_equal(depth, np.where(np.isfinite(frame.depth), frame.depth, 0))
        picture = np.asarray(Image.open(tmp_path / "scene" / "blended_images" / f"{i:08d}.jpg")).astype(int)
        assert np.abs(picture - frame.rgb).mean() < 6
        lines = (tmp_path / "scene" / "cams" / f"{i:08d}_cam.txt").read_text().splitlines()
        assert lines[0] == "extrinsic" and lines[6] == "intrinsic"
        extrinsic = np.array([line.split() for line in lines[1:5]], float)
        intrinsic = np.array([line.split() for line in lines[7:10]], float)
        np.testing.assert_allclose(extrinsic, frame.camera.extrinsics, atol=1e-6)
        np.testing.assert_allclose(intrinsic, frame.camera.intrinsics, rtol=1e-6)
        near, interval, steps, far = map(float, lines[11].split())
        known = frame.depth[np.isfinite(frame.depth)]
        assert near == pytest.approx(known.min(), abs=1e-5) and far == pytest.approx(known.max(), abs=1e-5)
        assert near + interval * (steps - 1) == pytest.approx(far, rel=1e-3)
    assert (tmp_path / "scene" / "cams" / "pair.txt").read_text().split() == (
        "3 0 2 1 100.00 2 50.00 1 2 0 100.00 2 100.00 2 2 1 100.00 0 50.00".split()
    )


def read_pfm(path):
    """As loaders of BlendedMVS read it: header, size, scale whose sign is the byte order, rows from the bottom."""
    with open(path, "rb") as stream:
        assert stream.readline() == b"Pf\n"
        width, height = map(int, stream.readline().split())
        order = "<" if float(stream.readline()) < 0 else ">"
        return np.frombuffer(stream.read(), order + "f4").reshape(height, width)[::-1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scenes.views(-1), "[scenes] seed must be a whole number of at least 0. Received -1."),
        (lambda: scenes.views(1.5), "[scenes] seed must be a whole number of at least 0. Received 1.5."),
        (lambda: scenes.views(1, 0), "[scenes] the number of pictures must be at least 1. Received 0."),
        (lambda: scenes.clip(1, 2, (4, 40)), "[scenes] size must be (height, width) of at least 8 pixels."),
        (lambda: scenes.views(1, antialias=2), "[scenes] antialias must be an odd number. Received 2."),
        (lambda: scenes.write_blendedmvs("x", []), "[write_blendedmvs] frames must not be empty. Received 0."),
    ],
)
def test_mistakes_are_named(call, message):
    with refused(message):
        call()


def test_a_camera_cannot_look_straight_up():
    with refused("target must lie to the side of eye"):
        Camera.looking((0, 0, 1), (0, 0, 5), SMALL)


@pytest.mark.parametrize(
    ("seed", "colour", "spread", "depth"),
    [
        (0, (189.69, 179.64, 179.52), 45.92, 2.5858),
        (1, (117.64, 133.41, 129.32), 59.84, 7.0224),
        (2, (136.30, 118.22, 101.66), 42.87, 3.1727),
        (3, (143.78, 147.95, 150.96), 55.23, 5.5865),
        (100_001, (106.32, 126.78, 123.29), 63.83, 5.2764),
    ],
)
def test_places_look_as_they_did_when_the_networks_learned_them(seed, colour, spread, depth):
    """Mean colour, its spread, and harmonic mean depth: a change here asks for networks trained anew."""
    frame = scenes.views(seed)[0]
    np.testing.assert_allclose(frame.rgb.reshape(-1, 3).mean(0), colour, atol=0.05)
    assert frame.rgb.std() == pytest.approx(spread, abs=0.05)
    assert 1 / np.mean(1 / frame.depth) == pytest.approx(depth, rel=1e-3)
