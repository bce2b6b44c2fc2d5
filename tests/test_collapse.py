"""Lost outputs and lost parts of outputs: of every rank and layout, and what is no collapse."""

from __future__ import annotations

import numpy as np
import pytest

from leadline.collapse import PARTS, Comparison

RNG = np.random.default_rng(0)


def never(shape):
    return lambda axis: np.zeros(shape[axis], bool)


def compared(x, y, channels=1, parts=True, inseparable=None):
    """Reasons of the whole, and of each part by its name; `x` and `y` hold samples along their first axis."""
    comparison = Comparison(channels, whole=not parts)
    for one, other in zip(x, y, strict=True):
        comparison.update(one, other)
    whole = comparison.likeness()
    peak = max(map(abs, whole.reference))
    found = comparison.parts(inseparable or never(x.shape[1:]))
    return whole.reasons(), {part.of("y"): comparison.likeness(part).reasons(peak) for part in found}


def detections(samples=2, boxes=4, scores=20, places=300):
    """(samples, 1, channels, places): boxes up to 640 beside scores to 1, nearly all of them small."""
    corners = RNG.uniform(5, 640, (samples, 1, boxes, places))
    return np.concatenate([corners, RNG.uniform(0, 1, (samples, 1, scores, places)) ** 30], 2)


LAYOUTS = {
    "y[:, {}]": lambda x: x,
    "y[:, :, {}]": lambda x: x.swapaxes(2, 3),
    "y[{}]": lambda x: x[:, 0],
    "y[:, :, :, {}]": lambda x: x.reshape(*x.shape[:3], 15, 20).transpose(0, 1, 3, 4, 2),
    "y[:, :, {}]_": lambda x: x.reshape(*x.shape[:3], 15, 20)[:, :, None],
    "y[:, :, :, :, {}]": lambda x: x.reshape(*x.shape[:3], 3, 10, 10).transpose(0, 1, 3, 4, 5, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 2])
def test_scores_that_a_grid_of_boxes_takes_are_lost_in_every_layout(layout, channels):
    x = LAYOUTS[layout](detections())
    channels = channels if x.ndim < 5 else x.shape.index(24) - 1
    step = 2.5
    whole, parts = compared(x, np.round(x / step) * step, channels)
    assert whole == []
    spelled = layout.rstrip("_")
    assert parts == {spelled.format("0:4"): [], spelled.format("4:24"): ["constant, 0"]}
    fine = np.where(x > 2, np.round(x / step) * step, np.round(x * 256) / 256)
    assert compared(x, fine, channels) == ([], {name: [] for name in parts})


def test_a_part_may_lie_in_the_middle_and_be_one_channel():
    x = detections()
    x = np.concatenate([x, RNG.normal(0, 300, (2, 1, 8, 300))], 2)
    assert list(compared(x, x)[1]) == ["y[:, 0:4]", "y[:, 4:24]", "y[:, 24:32]"]
    x[:, :, 10] *= 100
    assert list(compared(x[:, :, 4:24], x[:, :, 4:24])[1]) == ["y[:, 0:6]", "y[:, 6]", "y[:, 7:20]"]


def test_classes_that_no_sample_shows_are_no_part_of_their_own():
    """A Sigmoid's values have one scale: small ones are absent, not lost."""
    x = detections(boxes=0)
    x[:, :, 5:] *= 1e-4
    rounded = np.round(x * 256) / 256
    assert any(reasons for reasons in compared(x, rounded)[1].values())
    assert compared(x, rounded, inseparable=lambda axis: np.ones(x.shape[axis + 1], bool)) == ([], {})


def test_few_peaks_make_no_parts_of_quiet_places():
    x = RNG.uniform(0, 1, (2, 1, 3, 300)) ** 60
    assert compared(x, x) == ([], {})


@pytest.mark.parametrize("shape", [(), (1,), (10,), (1, 1000), (7, 5), (1, 3, 8), (1, 1, 32, 40), (1, 2, 2, 3, 4)])
def test_like_magnitudes_and_vectors_have_no_parts(shape):
    x = RNG.normal(0, 1, (6, *shape))
    x *= np.logspace(0, 3, x.shape[-1]) if x.shape[1:] == (1, 1000) else 1  # logits of any size
    assert compared(x, x + 1e-3 * RNG.normal(0, 1, x.shape)) == ([], {})


def test_channels_of_no_order_have_few_parts():
    x = RNG.normal(0, 1, (3, 1, 64, 6, 6)) * RNG.choice([1e-3, 1.0, 1e3], 64)[:, None, None]
    assert 2 <= len(compared(x, x)[1]) <= PARTS


def test_rows_of_a_map_are_no_parts():
    """Sky above ground: neighbours resemble each other, as channels do not."""
    smooth = 1 + np.cumsum(np.cumsum(RNG.normal(0, 0.01, (2, 1, 48, 64)), 3), 2)
    rows = np.where(np.arange(48) < 20, 1e-3, 1.0)[:, None] * smooth
    assert compared(rows, rows)[1] == {} == compared(rows[:, None], rows[:, None])[1]
    rough = RNG.normal(0, 1, (2, 1, 1, 12, 16)) ** 5 * np.logspace(-3, 3, 12)[:, None]
    assert compared(rough, rough)[1] == {}


def test_channels_that_are_zero_in_float_go_with_their_neighbours():
    x = RNG.normal(0, 1, (2, 1, 8, 10, 10))
    x[:, :, [0, 3, 4, 7]] = 0
    assert compared(x, x) == ([], {}) and compared(0 * x, 0 * x) == ([], {})
    assert compared(0 * x, 0 * x + 1e-4) == ([], {})


NORMAL = RNG.normal(0, 1, (4, 1, 1, 20, 30))
PLANE = NORMAL.cumsum(3) / 5
LABELS = (PLANE * 10).astype(np.int64)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (PLANE, np.full_like(PLANE, 2.5), "constant, 2.5"),
        (PLANE, 0 * PLANE, "constant, 0"),
        (PLANE, 0.05 * PLANE, "the range is dead"),
        (PLANE, PLANE + PLANE.std() * RNG.permutation(NORMAL.ravel()).reshape(NORMAL.shape), "SQNR"),
        (PLANE + 300, PLANE + 300 + 1.5 * PLANE.std() * NORMAL[::-1], "dB about its mean"),
        (PLANE, RNG.permutation(PLANE.ravel()).reshape(PLANE.shape), "correlation"),
        (PLANE, np.where(NORMAL > 3, np.nan, PLANE), "values are NaN or infinite"),
        (PLANE, np.where(NORMAL < -3, np.inf, PLANE), "values are NaN or infinite"),
        (np.full(NORMAL.shape, 3.0), np.zeros(NORMAL.shape), "SQNR 0.0 dB"),
        (LABELS, RNG.permutation(LABELS.ravel()).reshape(PLANE.shape), "of the values are equal"),
        (PLANE > 0, PLANE > 1e9, "constant, 0"),
        (PLANE > 0, PLANE <= 0, "0% of the values are equal"),
        (PLANE[:, 0, 0, 0, 0] + 5, np.full(4, 9.0), "constant, 9"),
    ],
)  # fmt: skip
def test_what_is_lost(x, y, said):
    reasons, _ = compared(x, y)
    assert reasons and any(said in reason for reason in reasons)


@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_the_structure_of_maps_is_judged_beside_their_level(shift):
    """Each map keeps its own level, far from the others', and loses what it shows."""
    levels = np.array([1, 20, 60, 90.0]).reshape(4, 1, 1, 1, 1) + shift
    x = levels + PLANE / PLANE.std()
    y = levels + 0.4 * PLANE / PLANE.std() + 0.9 * NORMAL[::-1]
    (reason,) = compared(x, y)[0]
    assert reason.startswith("correlation 0.4")
    assert compared(x, x + 0.2 * NORMAL)[0] == []


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (PLANE, PLANE + 0.1 * NORMAL * PLANE.std()),
        (np.full(NORMAL.shape, 3.0), np.full(NORMAL.shape, 3.1)),
        (np.zeros(NORMAL.shape), np.zeros(NORMAL.shape)),
        (np.zeros(NORMAL.shape), 1e-3 * NORMAL),
        (5 + 1e-4 * NORMAL, np.full(NORMAL.shape, 5.0)),  # noise about a constant
        (1e-8 * NORMAL, np.zeros(NORMAL.shape)),  # what should have cancelled
        ((10 * PLANE).astype(np.uint8), (10 * PLANE).astype(np.uint8)),
        ((100 + 20 * NORMAL).astype(np.uint8), (101 + 20 * NORMAL).astype(np.uint8)),  # the last bit of a picture
        (np.where(NORMAL > 2, 90, 1), np.where(NORMAL > 2, 3, 1)),  # labels, one of which is another: most are equal
        (np.where(NORMAL < -2, -np.inf, PLANE), np.where(NORMAL < -2, -np.inf, PLANE)),
        (np.where(NORMAL < -2, -np.inf, PLANE), np.where(NORMAL < -2, -99.0, PLANE)),
        (np.where(NORMAL < -2, np.nan, PLANE), PLANE),
        (np.zeros((2, 0, 4)), np.zeros((2, 0, 4))),
        (np.zeros((2, 4, 0)), np.zeros((2, 4, 0))),
    ],
)
def test_what_is_no_collapse(x, y):
    reasons, parts = compared(x, y)
    assert reasons == [] and not any(parts.values())


@pytest.mark.parametrize("channels", [0, 1, 2])
def test_figures_are_those_of_all_samples_together_whatever_the_axis(channels):
    x = RNG.normal(2, 1, (5, 3, 4, 30))
    y = x + RNG.normal(0, 0.1, x.shape)
    comparison = Comparison(channels)
    for one, other in zip(x, y, strict=True):
        comparison.update(one, other)
    likeness = comparison.likeness()
    noise = np.square(x - y).sum()
    assert likeness.sqnr.db == pytest.approx(10 * np.log10(np.square(x).sum() / noise))
    assert likeness.sqnr.centred_db == pytest.approx(10 * np.log10(np.square(x - x.mean()).sum() / noise))
    assert likeness.sqnr.largest == np.abs(x - y).max() and likeness.sqnr.count == x.size
    assert likeness.deviations == pytest.approx((x.std(), y.std()))
    assert likeness.reference == (x.min(), x.max()) and likeness.other == (y.min(), y.max())


def test_samples_of_unlike_lengths_add_up():
    comparison = Comparison(1)
    for length in (3, 7, 5):
        x = RNG.normal(0, 1, (1, length, 9))
        comparison.update(x, x)
    assert comparison.likeness().sqnr.count == 15 * 9 and comparison.likeness().reasons() == []
