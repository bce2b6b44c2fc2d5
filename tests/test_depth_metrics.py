"""Depth metrics: by hand, against figures of the published evaluation code, and their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_samples import refused
from leadline.depth import align, boundary_f1, metrics, score, similarity

SHAPE = (6, 7)


def published():
    """The arrays on which published code was run, to give the figures below."""
    rng = np.random.default_rng(5)
    base = np.cumsum(np.cumsum(rng.normal(0, 0.05, (3, 24, 32)), 1), 2)
    truth = np.clip(4 + base - base.min(), 0.5, None)
    truth[:, :4, :4] = 0
    prediction = np.abs(truth * np.exp(rng.normal(0.05, 0.15, truth.shape))) + 0.2
    return prediction, truth


def test_by_hand():
    """Truth 1, 2, 4 and 8 m; predicted twice, the same, half, and a tenth more."""
    truth = np.array([[1.0, 2.0], [4.0, 8.0]])
    scores = score(np.array([[2.0, 2.0], [2.0, 8.8]]), truth)
    assert scores.abs_rel == pytest.approx((1 + 0 + 0.5 + 0.1) / 4)
    assert scores.sq_rel == pytest.approx((1 + 0 + 1 + 0.08) / 4)
    assert scores.rmse == pytest.approx(np.sqrt((1 + 0 + 4 + 0.64) / 4))
    logs = np.array([np.log(2), 0, -np.log(2), np.log(1.1)])
    assert scores.rmse_log == pytest.approx(np.sqrt(np.mean(logs**2)))
    assert scores.log10 == pytest.approx(np.mean(np.abs(logs)) / np.log(10))
    assert scores.silog == pytest.approx(100 * np.std(logs))
    assert (scores.delta1, scores.delta2, scores.delta3) == (0.5, 0.5, 0.5)
    assert (scores.frames, scores.pixels) == (1, 4)


def test_figures_of_video_depth_anything_s_benchmark():
    """benchmark/eval/metric.py with max_depth 10; mean over frames. SILog on one frame, as there it pools variances."""
    prediction, truth = published()
    scores = score(prediction, truth, far=10)
    assert scores.abs_rel == pytest.approx(0.15022289607191108, rel=1e-12)
    assert scores.sq_rel == pytest.approx(0.20639091412006694, rel=1e-12)
    assert scores.rmse == pytest.approx(1.0737874476167273, rel=1e-12)
    assert scores.rmse_log == pytest.approx(0.17108103184406706, rel=1e-12)
    assert scores.log10 == pytest.approx(0.05983082308307093, rel=1e-12)
    assert (scores.delta1, scores.delta2) == (
        pytest.approx(0.7974290848, abs=1e-7),
        pytest.approx(0.9929077625, abs=1e-7),
    )
    assert scores.delta3 == 1 and scores.pixels == 2256


def test_figures_of_video_depth_anything_s_alignment():
    """benchmark/eval/eval.py: one scale and shift for the clip, in disparity."""
    prediction, truth = published()
    scores = score(1 / prediction * 0.7 + 0.05, truth, "scale-shift", inverse=True, far=10, together=True)
    assert scores.abs_rel == pytest.approx(0.07028980118113888, rel=1e-7)  # they add 1e-8 to depth
    assert scores.rmse == pytest.approx(0.49556399174962246, rel=1e-7)
    assert scores.delta1 == pytest.approx(0.9862588047981262, abs=1e-7)


def test_figures_of_depth_anything_v2():
    """metric_depth/util/metric.py on one frame; their silog keeps half the mean."""
    prediction, truth = published()
    scores = score(prediction[0], truth[0], far=10)
    assert scores.abs_rel == pytest.approx(0.14883266209480037, rel=1e-12)
    assert scores.sq_rel == pytest.approx(0.18610749348120778, rel=1e-12)
    assert scores.rmse == pytest.approx(0.9658023715620833, rel=1e-12)
    assert scores.rmse_log == pytest.approx(0.17044920415305584, rel=1e-12)
    assert scores.log10 == pytest.approx(0.0591097295086083, rel=1e-12)
    assert scores.delta1 == pytest.approx(0.8031914830207825, abs=1e-7)
    half = np.sqrt((scores.silog / 100) ** 2 + 0.5 * (scores.rmse_log**2 - (scores.silog / 100) ** 2))
    assert half == pytest.approx(0.15766684716611482, rel=1e-9)


def test_the_boundary_f1_of_depth_pro():
    """src/depth_pro/eval/boundary_metrics.py, SI_boundary_F1."""
    prediction, truth = published()
    assert boundary_f1(prediction[0], truth[0] + 0.1) == pytest.approx(0.06866207935806029, rel=1e-12)


def test_correlations_and_ssim_of_scipy_and_scikit_image():
    """scipy.stats 1.16 pearsonr and spearmanr; skimage.metrics.structural_similarity with gaussian_weights, sigma 1.5,
    use_sample_covariance=False: means over three frames."""
    prediction, truth = published()
    agreement = similarity(np.round(prediction * 4) / 4, truth)
    assert agreement.pearson == pytest.approx(0.741853667184898, rel=1e-9)
    assert agreement.spearman == pytest.approx(0.520549859244909, rel=1e-9)
    assert agreement.mse == pytest.approx(1.1464718194027324, rel=1e-12)
    assert agreement.ssim == pytest.approx(0.1751954448297061, rel=1e-9)


def test_boundaries_by_hand():
    near, far = np.full((8, 8), 2.0), np.full((8, 8), 2.0)
    near[:, 4:] = 4.0
    assert boundary_f1(near, near) == pytest.approx(0.25)  # right and left edges; there are none up and down
    assert boundary_f1(far, near) == 0
    shifted = np.full((8, 8), 2.0)
    shifted[:, 5:] = 4.0
    assert boundary_f1(shifted, near) == 0
    sky = near.copy()
    sky[:, 4:] = np.inf
    assert boundary_f1(near, sky) == pytest.approx(0.25)


depths = st.builds(
    lambda seed, shape: np.random.default_rng(seed).uniform(0.5, 20, shape),
    st.integers(0, 10**6),
    st.tuples(st.integers(3, 9), st.integers(3, 9)),
)


@given(depths)
def test_the_truth_is_perfect(truth):
    for alignment in ("none", "median", "scale-shift"):
        for inverse in (False, True):
            scores = score(1 / truth if inverse else truth, truth, alignment, inverse=inverse)
            assert scores.abs_rel == pytest.approx(0, abs=1e-9) and scores.delta1 == 1


@given(depths, st.floats(0.1, 10), st.floats(-0.01, 3))
@settings(max_examples=50)
def test_alignment_undoes_scale_and_shift(truth, scale, shift):
    aligned = align(scale * truth + shift, truth, "scale-shift")
    np.testing.assert_allclose(aligned, truth, rtol=1e-6)
    np.testing.assert_allclose(align(scale * truth, truth, "median"), truth, rtol=1e-9)
    inverse = align(scale / truth + shift, truth, "scale-shift", inverse=True)
    np.testing.assert_allclose(inverse, truth, rtol=1e-6)


@given(depths, st.integers(0, 1000))
@settings(max_examples=50)
def test_least_squares_leaves_no_smaller_error(truth, seed):
    x = np.random.default_rng(seed).uniform(0.1, 5, truth.shape)
    scale, shift = metrics._least_squares(x.ravel(), truth.ravel())

    def error(a, b):
        return np.sum((a * x + b - truth) ** 2)

    best = error(scale, shift)
    for da, db in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        assert best <= error(scale + da, shift + db) + 1e-9


@given(depths)
def test_silog_knows_no_scale(truth):
    noisy = truth * (1 + 0.1 * np.sin(np.arange(truth.size)).reshape(truth.shape))
    assert score(2 * noisy, truth, far=1e3).silog == pytest.approx(score(noisy, truth, far=1e3).silog, rel=1e-6)


def test_only_valid_pixels_count():
    truth = np.array([[1.0, np.inf, 0.0], [np.nan, 2.0, 90.0]])
    prediction = np.array([[1.1, 50.0, 50.0], [50.0, 2.2, 50.0]])
    scores = score(prediction, truth)
    assert scores.abs_rel == pytest.approx(0.1) and scores.pixels == 2
    assert score(prediction, truth, mask=truth == 1).pixels == 1
    assert score(prediction, truth, near=1.5).pixels == 1
    assert score(prediction, truth, far=100).pixels == 3


def test_frames_are_averaged_and_empty_ones_left_out():
    truth = np.stack([np.full(SHAPE, 2.0), np.full(SHAPE, 4.0), np.zeros(SHAPE)])
    scores = score(truth * np.array([1.1, 1.3, 1.0])[:, None, None], truth)
    assert scores.frames == 2 and scores.abs_rel == pytest.approx(0.2) and scores.delta1 == 0.5


def test_videos_are_aligned_as_one():
    truth = np.stack([np.full(SHAPE, 2.0), np.full(SHAPE, 4.0)])
    flickering = truth * np.array([1.0, 1.2])[:, None, None]
    assert score(flickering, truth, "median").abs_rel == pytest.approx(0)
    assert score(flickering, truth, "median", together=True).abs_rel > 0.05


def test_predictions_are_clipped_to_the_range():
    truth = np.full(SHAPE, 10.0)
    assert score(np.full(SHAPE, 1e6), truth).abs_rel == pytest.approx(7)
    assert score(np.zeros(SHAPE), truth, inverse=True).abs_rel == pytest.approx(7)
    assert score(np.full(SHAPE, -3.0), truth).abs_rel == pytest.approx(1, abs=1e-3)


def test_a_constant_prediction_is_aligned_to_the_mean():
    truth = np.array([[1.0, 3.0], [1.0, 3.0]])
    np.testing.assert_allclose(align(np.full((2, 2), 7.0), truth, "scale-shift"), 2.0)


def test_ranks_survive_what_keeps_order():
    x = np.random.default_rng(0).uniform(1, 5, (12, 13))
    agreement = similarity(x**3, x)
    assert agreement.spearman == pytest.approx(1) and agreement.pearson < 0.999
    same = similarity(x, x)
    assert (same.pearson, same.ssim, same.mse) == (pytest.approx(1), pytest.approx(1), 0)


def test_constant_frames_have_no_correlation():
    x = np.random.default_rng(0).uniform(1, 5, (12, 13))
    assert similarity(np.full_like(x, 2), x).pearson == 0
    assert similarity(np.full_like(x, 2), np.full_like(x, 2)).pearson == 1


def test_scores_and_agreement_show_in_notebooks():
    x = np.random.default_rng(0).uniform(1, 5, (12, 13))
    assert "abs_rel" in score(x, x)._repr_html_() and "ssim" in similarity(x, x)._repr_html_()


ONES = np.ones((3, 4))
LATE = np.stack([ONES, np.full((3, 4), np.inf)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score(ONES, np.ones((4, 3))), "must have one shape, (height, width) or (frames"),
        (lambda: score(np.ones(4), np.ones(4)), "must have one shape"),
        (lambda: score(ONES * np.nan, ONES), "prediction must be finite. Received 12 NaN or infinite values"),
        (lambda: score(LATE, np.ones((2, 3, 4))), "the first of frame 1."),
        (lambda: score(ONES, 0 * ONES), "truth must have pixels between 0.001 and 80.0 m. Received none."),
        (lambda: score(ONES, ONES, "best"), "alignment must be one of none, median, scale-shift. Received 'best'."),
        (lambda: score(ONES, ONES, mask=np.ones((4, 4))), "mask must have truth's shape"),
        (lambda: similarity(np.ones((10, 40)), np.ones((10, 40))), "frames must have at least 11 pixels a side"),
        (lambda: boundary_f1(np.ones(3), np.ones(3)), "must have one shape, of 2 or 3 axes"),
    ],
)
def test_mistakes_are_named(call, message):
    with refused("[depth.metrics]", message):
        call()
