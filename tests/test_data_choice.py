"""leadline.data.choose: every choice's promise, on samples whose best choice is known; and what it refuses."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from data_samples import PAIR, PICTURE, VECTOR, equal, peak_below, picture, refused, vectors
from leadline import pipeline
from leadline.data import Data, Samples, choose, load_samples
from leadline.data.choice import CHOICES
from leadline.graph import Graph, Session
from leadline.graph.features import network_features
from leadline.progress import Quiet
from small_networks import conv_relu_conv, draw, gemm_relu_gemm, graph, quantized, samples

READING = CHOICES[2:]


def points(values: ArrayLike) -> Samples:
    """Samples of a network with an input of 4 numbers; rows of fewer are filled up with zeros."""
    rows = np.asarray(values, np.float32).reshape(len(np.asarray(values)), -1)
    return load_samples(np.pad(rows, [(0, 0), (0, 4 - rows.shape[1])]), VECTOR)


def indices(chosen: Samples) -> list[int]:
    return [int(label.split()[1]) for label in chosen.labels]


def itself(feed: dict[str, Any]) -> Any:
    return feed["v"][0]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Twelve pictures: 8 of place a, 3 of b, 1 of c."""
    for i in range(12):
        picture(tmp_path / "abc"[(i > 7) + (i > 10)] / f"{i:02}.png", i)
    return tmp_path


def places(chosen: Samples) -> Counter[str]:
    return Counter(Path(label).parent.name for label in chosen.labels)


# ---- all choices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CHOICES)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_laws(method: str, data: st.DataObject) -> None:
    """As many as wanted, each once, in order, the same for the same seed: of points with twins and outliers too."""
    n = data.draw(st.integers(2, 30))
    count, seed = data.draw(st.integers(1, n)), data.draw(st.integers(0, 2**40))
    scale = data.draw(st.sampled_from([0.0, 1e-30, 1.0, 1e30]))
    values = np.round(np.random.default_rng(seed).standard_cauchy((n, 4))) * scale
    source = load_samples([row[None] for row in values.astype(np.float32)], VECTOR)
    if method == "folder":
        source = load_samples([np.zeros((2, 4), np.float32) for _ in range(n)], VECTOR)
    chosen = choose(source, count, method, seed=seed)
    positions = [source.labels.index(label) for label in chosen.labels]
    assert len(chosen) == count and positions == sorted(set(positions))
    assert choose(source, count, method, seed=seed).labels == chosen.labels
    assert all(equal(feed, list(source)[i]) for feed, i in zip(chosen, positions, strict=True))
    assert choose(source, len(source), method, seed=seed).labels == source.labels


@pytest.mark.parametrize("method", CHOICES)
def test_the_seed_decides(scenes: Path, method: str) -> None:
    source = load_samples(scenes, PICTURE)
    assert len({tuple(choose(source, 4, method, seed=seed).labels) for seed in range(6)}) > 1


def test_what_was_skipped_and_the_seed_of_the_split_stay(scenes: Path) -> None:
    (scenes / "broken.png").write_bytes(b"")
    source = load_samples(Data(scenes, seed=3), PICTURE)
    chosen = choose(source, 8, "diverse", seed=4)
    assert chosen.skipped == source.skipped and len(chosen.skipped) == 1
    assert len(chosen.split(0.5)[0]) == 4


@pytest.mark.parametrize("method", READING)
def test_samples_are_read_one_at_a_time(method: str) -> None:
    size = 200_000
    entries = [np.full((1, size), i, np.float32) for i in range(40)]
    source = load_samples([*entries], [("v", np.float32, (None, size))])
    with peak_below(12 * 8 * size):  # as float64, and what a mean and a sort need of it
        choose(source, 8, method)


@pytest.mark.parametrize("method", CHOICES)
def test_progress_counts_the_one_pass(scenes: Path, method: str) -> None:
    seen = []

    class Counting(Quiet):
        def over(self, samples: Any, what: str, total: int) -> Any:
            for sample in samples:
                seen.append((what, total))
                yield sample

    choose(load_samples(scenes, PICTURE), 3, method, progress=Counting())
    assert seen == ([("choose", 12)] * 12 if method in READING else [])


# ---- random and evenly ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**40), data=st.data())
def test_random_is_the_limit_of_load(n: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, n))
    source = load_samples(vectors(n), VECTOR)
    wanted = load_samples(Data(vectors(n), num_samples=count, seed=seed), VECTOR).labels
    assert choose(source, count, seed=seed).labels == wanted
    assert load_samples(Data(source, num_samples=count, seed=seed), VECTOR).labels == wanted
    assert load_samples(Data(source, num_samples=n + 1), VECTOR).labels == source.labels


def test_random_gives_each_the_same_chance() -> None:
    source = load_samples(vectors(6), VECTOR)
    found = Counter(i for seed in range(600) for i in indices(choose(source, 2, seed=seed)))
    assert all(abs(found[i] - 200) < 60 for i in range(6))  # five standard deviations of a binomial


def test_folders_give_alike_as_far_as_they_go(scenes: Path) -> None:
    source = load_samples(scenes, PICTURE)
    for seed in range(5):
        assert places(choose(source, 3, "folder", seed=seed)) == {"a": 1, "b": 1, "c": 1}
        assert places(choose(source, 5, "folder", seed=seed)) == {"a": 2, "b": 2, "c": 1}
        assert places(choose(source, 9, "folder", seed=seed)) == {"a": 5, "b": 3, "c": 1}
        assert len(places(choose(source, 2, "folder", seed=seed))) == 2


def test_a_file_of_several_samples_is_a_scene(tmp_path: Path) -> None:
    np.save(tmp_path / "long.npy", vectors(10))
    np.save(tmp_path / "short.npy", vectors(2))
    chosen = choose(load_samples(tmp_path, VECTOR), 4, "folder")
    assert Counter(Path(label.split("[")[0]).name for label in chosen.labels) == {"long.npy": 2, "short.npy": 2}


def test_one_folder_is_refused(scenes: Path) -> None:
    rule = "samples must come from at least two folders, or files of several samples, to be chosen by 'folder'"
    with refused(f"[choose] {rule}. Received 8 from {scenes / 'a'}."):
        choose(load_samples(scenes / "a", PICTURE), 2, "folder")
    with refused(f"[choose] {rule}. Received 5 from ."):
        choose(load_samples(vectors(5), VECTOR), 2, "folder")


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**31), data=st.data())
def test_each_part_of_the_brightness_gives_one(n: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, n))
    shuffled = np.random.default_rng(seed).permutation(n)
    chosen = indices(choose(points(shuffled), count, "brightness", seed=seed))
    assert sorted(shuffled[chosen] * count // n) == list(range(count))


# ---- by features ---------------------------------------------------------------------------------------------------


def radius(values: np.ndarray, chosen: list[int]) -> float:
    return float(np.linalg.norm(values[:, None] - values[None, chosen], axis=-1).min(1).max())


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 4))
def test_farthest_is_within_twice_the_best_radius(seed: int, count: int) -> None:
    """Gonzalez's bound, against every choice there is, on points without outliers in units of their own spread."""
    values = np.random.default_rng(seed).uniform(-1, 1, (9, 3))
    values /= values.std(0)
    away = np.linalg.norm(values - np.median(values, 0), axis=1)
    low, high = np.percentile(away, [25, 75])
    assume(away.max() <= high + 1.5 * (high - low))
    best = min(radius(values, list(some)) for some in itertools.combinations(range(9), count))
    chosen = indices(choose(points(values), count, "farthest", features=itself, seed=seed))
    assert radius(values, chosen) <= 2 * best + 1e-5


def test_farthest_halves_what_is_left() -> None:
    """On a line: an end first, and then never two neighbours while wider gaps are open."""
    line = points(np.arange(11.0))
    for seed in range(8):
        assert {0, 10} & set(indices(choose(line, 2, "farthest", features=itself, seed=seed)))
        assert max(np.diff([-1, *indices(choose(line, 6, "farthest", features=itself, seed=seed)), 11])) <= 3


@pytest.mark.parametrize("method", ["farthest", "diverse"])
def test_outliers_are_left_out_while_others_last(method: str) -> None:
    values = np.random.default_rng(1).uniform(-1, 1, (40, 4))
    values[[3, 17, 29]] = [[1e6] * 4, [-300] * 4, [0, 0, 0, 50]]
    for seed in range(5):
        assert not {3, 17, 29} & set(indices(choose(points(values), 37, method, features=itself, seed=seed)))
    with_one = set(indices(choose(points(values), 38, method, features=itself)))
    assert {3, 17, 29} & with_one == {29}  # the least of them comes back first


def test_an_outlier_does_not_hide_what_the_others_are() -> None:
    """Two groups, apart in three columns in which an outlier lies 10 000 times as far; the fourth spreads the first."""
    values = np.zeros((21, 4))
    values[:10, :3] = 1
    values[:10, 3], values[10:20, 3] = np.linspace(0, 0.01, 10), np.linspace(0.002, 0.008, 10)
    values[20, :3] = 1e4
    for seed in range(8):
        chosen = indices(choose(points(values), 2, "farthest", features=itself, seed=seed))
        assert sorted(i // 10 for i in chosen) == [0, 1]


def test_diverse_draws_alike_from_each_cluster() -> None:
    """Eight places with 30, 20, 5, ... points; the crowd does not decide."""
    centres = np.array(list(itertools.product([0.0, 10.0, 25.0], repeat=2)))[1:]
    sizes = [30, 20, 5, 5, 5, 5, 5, 5]
    groups = np.repeat(np.arange(8), sizes)
    values = centres[groups] + np.random.default_rng(0).uniform(-0.5, 0.5, (len(groups), 2))
    source = points(values)
    for seed in range(6):
        for count, wanted in ((8, [1] * 8), (32, [4] * 8), (50, [10, 10, 5, 5, 5, 5, 5, 5])):
            chosen = indices(choose(source, count, "diverse", features=itself, seed=seed))
            assert np.bincount(groups[chosen]).tolist() == wanted
    assert len(set(groups[indices(choose(source, 3, "diverse", features=itself))])) == 3


def test_units_do_not_matter() -> None:
    values = np.random.default_rng(3).standard_normal((30, 4))
    scaled = values * [1e-3, 1, 2.0**20, 1] + [0, 5, 0, 0]
    for method in ("farthest", "diverse"):
        chosen = [indices(choose(points(v), 6, method, features=lambda f: f["v"][0])) for v in (values, scaled)]
        assert chosen[0] == chosen[1]


@pytest.mark.parametrize("method", ["farthest", "diverse"])
def test_samples_that_are_all_alike(method: str) -> None:
    assert len(set(indices(choose(points(np.ones((9, 4))), 5, method)))) == 5


@pytest.mark.parametrize("layout", [(1, 3, 40, 30), (1, 40, 30, 3), (1, 2, 3, 40, 30)])
def test_pictures_of_any_layout_tell_dark_from_bright_and_left_from_right(layout: tuple[int, ...]) -> None:
    """Four kinds of pictures, 9 alike of each and a little noise: of four that lie far apart, each is of its kind."""
    kinds = np.zeros((4, 40, 30), np.float32)
    kinds[1], kinds[2, :, :15], kinds[3, :, 15:] = 1, 1, 1
    entries = []
    for i in range(36):
        plane = kinds[i % 4] + draw(i, 40, 30, spread=0.05)
        entries.append(np.broadcast_to(plane[..., None] if layout[-1] == 3 else plane, layout).copy())
    source = load_samples(entries, [("x", np.float32, layout)])
    for seed in range(4):
        for method in ("farthest", "diverse"):
            chosen = choose(source, 4, method, seed=seed).labels
            assert {int(label.split()[1]) % 4 for label in chosen} == {0, 1, 2, 3}


def test_the_largest_input_is_looked_at() -> None:
    values = np.repeat([[0.0], [1.0]], 5, 0).repeat(4, 1).astype(np.float32)
    data = {"v": values, "n": np.arange(10)[::-1].copy()}
    chosen = indices(choose(load_samples(data, PAIR), 2, "brightness"))
    assert sorted(i // 5 for i in chosen) == [0, 1]


@pytest.mark.parametrize(
    "give, received",
    [
        (lambda feed: None, "[choose] features must give a vector of numbers. Received shape () for sample 0."),
        (lambda feed: "far", "[choose] features must give a vector of numbers. Received 'far' for sample 0."),
        (lambda feed: [[1], [1, 2]], "[choose] features must give a vector of numbers. Received [[1], [1, 2]] for"),
        (lambda feed: 1.0, "[choose] features must give a vector of numbers. Received shape () for sample 0."),
        (lambda feed: feed["v"], "[choose] features must give a vector of numbers. Received shape (1, 4) for sample 0"),
        (lambda feed: [], "[choose] features must give a vector of numbers. Received shape (0,) for sample 0."),
        (lambda feed: np.log(feed["v"][0] - 12 + 1e-9), "[choose] features must be finite. Received "),
        (
            lambda feed: feed["v"][0, : 3 if feed["v"][0, 0] == 8 else 4],
            "[choose] features must give vectors of one length, 4 as for sample 0. Received 3 for sample 2.",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_bad_features_are_named(give: Any, received: str) -> None:
    for method in ("farthest", "diverse"):
        with refused(received):
            choose(load_samples(vectors(6), VECTOR), 2, method, features=give)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -1, 7, 2.5, "3", None])
def test_count_out_of_range(count: Any) -> None:
    with refused(f"[choose] num_samples must be 1 to 6, the samples that there are. Received {count!r}."):
        choose(load_samples(vectors(6), VECTOR), count)


def test_unknown_choice_and_features_that_nothing_compares() -> None:
    source = load_samples(vectors(6), VECTOR)
    with refused("[choose] choice must be one of random, folder, brightness, farthest, diverse. Received 'best'."):
        choose(source, 2, "best")
    for method in CHOICES[:3]:
        with refused("[choose] features are for the choices farthest and diverse. Received choice", f"'{method}'."):
            choose(source, 2, method, features=itself)


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_seeds_are_whole_numbers(seed: Any) -> None:
    for function, call in (
        ("choose", lambda: choose(load_samples(vectors(6), VECTOR), 2, seed=seed)),
        ("Data", lambda: load_samples(Data(vectors(6), seed=seed), VECTOR)),
    ):
        with refused(f"[{function}] seed must be a whole number of at least 0. Received {seed!r}."):
            call()


def test_samples_must_be_loaded() -> None:
    with refused("[choose] samples must be Samples, which leadline.load_samples gives. Received ndarray."):
        choose(vectors(6), 2)  # type: ignore[arg-type]


# ---- in a run and on the command line ------------------------------------------------------------------------------


def brightnesses() -> np.ndarray:
    """Forty samples, each brighter than the one before."""
    return samples(40) * np.float32(0.01) + np.arange(40, dtype=np.float32)[:, None, None, None]


@pytest.mark.parametrize("features", [None, "first", lambda feed: feed["x"].mean((0, 2, 3))])
@pytest.mark.parametrize("method", ["farthest", "diverse"])
def test_a_run_is_that_of_the_samples_chosen(method: str, features: Any) -> None:
    network = graph(conv_relu_conv())
    run = pipeline.quantize(
        network, "minmax-w8a8", Data(brightnesses(), num_samples=8, choice=method, features=features, seed=2), threads=1
    )
    hook = network_features(network, "first") if features == "first" else features
    chosen = choose(load_samples(Data(brightnesses(), seed=2), network.inputs), 8, method, features=hook, seed=2)
    assert run.calibrated + len(run.held_out) == 8
    again = pipeline.quantize(network, "minmax-w8a8", chosen, threads=1)
    assert run.grids == again.grids and run.held_out.labels == again.held_out.labels


def test_a_run_by_brightness_sees_dark_and_bright() -> None:
    run = quantized(conv_relu_conv(), "minmax-w8a8", Data(brightnesses(), num_samples=4, choice="brightness"))
    assert run.calibrated == 3 and run.grids["x"].hi > 19
    assert (
        quantized(conv_relu_conv(), "minmax-w8a8", Data(brightnesses(), num_samples=99, choice="diverse")).calibrated
        == 30
    )


def test_a_run_by_folder(scenes: Path) -> None:
    for seed in range(4):
        run = quantized(conv_relu_conv(), "minmax-w8a8", Data(scenes, num_samples=4, choice="folder", seed=seed))
        assert run.calibrated + len(run.held_out) == 4 and len(places(run.held_out)) == 1


def test_iterators_are_run_to_their_end() -> None:
    stream = ({"x": sample[None]} for sample in brightnesses())
    run = quantized(conv_relu_conv(), "minmax-w8a8", Data(stream, num_samples=4, choice="brightness"))
    assert run.calibrated == 3 and run.grids["x"].hi > 19 and next(stream, None) is None


@pytest.mark.parametrize("build, tensor, axis", [(conv_relu_conv, "first", 1), (gemm_relu_gemm, None, -1)])
def test_network_features_are_mean_and_deviation_of_channels(build: Any, tensor: str | None, axis: int) -> None:
    network: Graph = graph(build())
    tensor = tensor or network.outputs[0].name
    features = network_features(network, tensor, threads=1)
    feed = {network.inputs[0].name: samples(1, network.inputs[0].shape)}
    (values,) = Session(network, [tensor]).run(feed).values()
    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    wanted = np.concatenate([values.mean(others), values.std(others)])
    assert features(feed).shape == (2 * values.shape[axis],)
    np.testing.assert_allclose(features(feed), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"choice": "best", "num_samples": 4}, "[Data] choice must be one of random, folder"),
        ({"choice": "diverse"}, "[Data] choice 'diverse' needs num_samples, at least 1. Received num_samples=None."),
        ({"choice": "diverse", "num_samples": 0}, "num_samples must be at least 1. Received 0."),
        ({"features": "first", "num_samples": 4}, "[Data] features are for the choices farthest and diverse."),
        ({"choice": "folder", "num_samples": 4}, "[choose] samples must come from at least two folders"),
        (
            {"choice": "diverse", "num_samples": 4, "features": "nowhere"},
            "[network_features] tensor must be one that a node writes, such as relu, first, y. Received 'nowhere'.",
        ),
    ],
)
def test_bad_choices_of_a_run_are_named(options: dict[str, Any], message: str) -> None:
    with refused(message):
        quantized(conv_relu_conv(), "minmax-w8a8", Data(brightnesses(), **options))


def command(tmp_path: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    onnx.save(conv_relu_conv(), str(tmp_path / "net.onnx"))
    for i in range(12):
        picture(tmp_path / "pictures" / "abc"[(i > 7) + (i > 10)] / f"{i:02}.png", i)
    fixed = ["--data", tmp_path / "pictures", "--out", tmp_path / "out", "--recipe", "minmax-w8a8", "--threads", 1]
    line = [sys.executable, "-m", "leadline.cli", "quantize", tmp_path / "net.onnx", *fixed, *extra]
    return subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("extra", [["folder"], ["diverse", "--features", "first"]], ids=" ".join)
def test_the_command_line_chooses(tmp_path: Path, extra: list[str]) -> None:
    done = command(tmp_path, "--num-samples", "4", "--json", "--choice", *extra)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)["data"]
    assert data["calibration"] == 3 and len(data["held_out"]) == 1


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--choice", "diverse"], "error: [Data] choice 'diverse' needs num_samples"),
        (["--num-samples", "4", "--choice", "farthest", "--features", "b9"], "'b9'"),
        (
            ["--num-samples", "4", "--seed", "-1"],
            "error: [Data] seed must be a whole number of at least 0. Received -1.",
        ),
    ],
)
def test_the_command_line_names_bad_choices(tmp_path: Path, extra: list[str], message: str) -> None:
    done = command(tmp_path, *extra)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
