"""leadline.data: arrays, tensors and iterables of them."""

from __future__ import annotations

import gc
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from data_samples import PAIR, PICTURE, VECTOR, equal, peak_below, picture, refused, vectors
from leadline.data import Data, Preprocess, load_samples


def test_npy_first_axis_is_the_sample(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", vectors(5))
    samples = load_samples(tmp_path / "v.npy", VECTOR)
    assert len(samples) == 5
    for index, feed in enumerate(samples):
        assert feed["v"].shape == (1, 4)
        np.testing.assert_array_equal(feed["v"][0], vectors(5)[index])
    assert samples.labels[3] == f"{tmp_path / 'v.npy'}[3]"
    np.save(tmp_path / "v.npy", np.asfortranarray(vectors(5)))
    (last,) = itertools.islice(load_samples(tmp_path / "v.npy", VECTOR), 4, None)
    np.testing.assert_array_equal(last["v"][0], vectors(5)[4])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_keys_are_the_input_names(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "d.npz", v=vectors(3), n=np.arange(3))
    samples = load_samples(tmp_path / "d.npz", PAIR)
    gc.collect()  # what the samples read from must outlive the loader
    feeds = list(samples)
    assert [feed["n"].tolist() for feed in feeds] == [[0], [1], [2]]
    np.testing.assert_array_equal(np.concatenate([feed["v"] for feed in samples]), vectors(3))
    assert all(equal(a, b) for a, b in zip(feeds, samples, strict=True))


def test_npz_names_must_match(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", w=vectors(3))
    with refused(f"[load_samples] keys must be the input names v. Received w in {tmp_path / 'd.npz'}."):
        load_samples(tmp_path / "d.npz", VECTOR)
    np.savez(tmp_path / "d.npz", v=vectors(3), n=np.arange(2))
    with refused(f"the same number of samples. Received 3 of v, 2 of n in {tmp_path / 'd.npz'}."):
        load_samples(tmp_path / "d.npz", PAIR)
    np.save(tmp_path / "d.npy", vectors(3))
    with refused(
        "[load_samples] a network with the inputs v, n takes a .npz or dicts by input name. Received one array in"
    ):
        load_samples(tmp_path / "d.npy", PAIR)


def test_folder_of_arrays(tmp_path: Path) -> None:
    for index in range(3):
        np.savez(tmp_path / f"{index}.npz", v=vectors(2) + index)
    (tmp_path / "readme.md").write_text("")
    samples = load_samples(tmp_path, VECTOR)
    assert len(samples) == 6
    assert samples.ignored == 1
    assert [feed["v"][0, 0] for feed in samples] == [0, 4, 1, 5, 2, 6]
    assert len(load_samples(Data(tmp_path, num_samples=4, seed=1), VECTOR)) == 4
    (tmp_path / "3.npy").write_bytes(b"\x93NUMPY")
    assert [Path(path).name for path, _ in load_samples(tmp_path, VECTOR).skipped] == ["3.npy"]
    with refused("every file must be readable when strict"):
        load_samples(Data(tmp_path, strict=True), VECTOR)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with refused("o.npy: not a .npy file of plain numbers"):
        load_samples(tmp_path / "o.npy", VECTOR)


def test_samples_with_and_without_a_batch_axis() -> None:
    images = np.random.default_rng(0).random((6, 3, 8, 10), np.float32)
    assert [f["x"].shape for f in load_samples(images, PICTURE)] == [(1, 3, 8, 10)] * 6
    assert len(load_samples(images[0], PICTURE)) == 1
    (feed,) = load_samples(images[0], PICTURE)
    np.testing.assert_array_equal(feed["x"][0], images[0])
    assert len(load_samples(images[:, np.newaxis], PICTURE)) == 6
    # A first axis fixed above one belongs to the sample.
    views = [("x", np.float32, (2, 3, 8, 10))]
    assert [f["x"].shape for f in load_samples(images, views)] == [(2, 3, 8, 10)] * 3
    assert [f["x"].shape for f in load_samples(images.reshape(3, 2, 3, 8, 10), views)] == [(2, 3, 8, 10)] * 3
    with refused(
        "[load_samples] input 'x' (float32, 2x3x8x10) takes 2 rows at a time. Received shape 5x3x8x10 in the data."
    ):
        load_samples(images[:5], views)


@pytest.mark.parametrize("rank", range(6))
def test_inputs_of_every_rank(tmp_path: Path, rank: int) -> None:
    """One by one as the network takes them, and stacked."""
    shape = (1, 2, 3, 1, 2)[:rank]
    arrays = [np.full(shape, i, np.float32) for i in range(3)]
    np.savez(tmp_path / "d.npz", v=np.stack(arrays))
    for source in ([{"v": array} for array in arrays], tmp_path / "d.npz"):
        feeds = list(load_samples(source, [("v", np.float32, shape)]))
        assert [feed["v"].shape for feed in feeds] == [shape] * 3
        assert all(np.array_equal(feed["v"], array) for feed, array in zip(feeds, arrays, strict=True))


@pytest.mark.parametrize(
    ("array", "received"),
    [
        (np.zeros((2, 5), np.float32), "shape 2x5 in the data."),
        (np.zeros((2, 2, 2, 4), np.float32), "shape 2x2x2x4 in the data, of rank 4."),
        (np.float32(3), "shape scalar in the data, of rank 0."),
        (np.zeros((0, 4), np.float32), "shape 0x4 in the data: an empty array."),
        (np.zeros((2, 4), np.uint8), "uint8 in the data."),
        (np.zeros((2, 4), bool), "bool in the data."),
    ],
)
def test_wrong_rank_shape_or_dtype(array: Any, received: str) -> None:
    with refused("[load_samples] input 'v' (float32, ?x4) takes", f"Received {received}"):
        load_samples(array, VECTOR)


def test_dtypes_of_one_kind_are_converted_loudly() -> None:
    with pytest.warns(UserWarning, match=re.escape("[load_samples] input 'v' takes float32: float64 is converted")):
        samples = load_samples(vectors(2).astype(np.float64), VECTOR)
    assert [feed["v"].dtype for feed in samples] == [np.float32] * 2
    with pytest.warns(UserWarning, match="bfloat16 is converted"):
        load_samples(vectors(2).astype(ml_dtypes.bfloat16), VECTOR)
    with pytest.warns(UserWarning, match="uint64 is converted"):
        samples = load_samples(np.array([7, 2**63], np.uint64), [("n", np.int64, (None,))])
    with refused(
        "[load_samples] input 'n' (int64, ?) takes values within int64. Received values outside it in sample 1."
    ):
        list(samples)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_nan_and_infinity_name_the_input_and_the_sample(tmp_path: Path, value: float, kind: str) -> None:
    data = vectors(4)
    data[2, 1] = value
    with refused(f"[load_samples] input 'v' takes finite numbers. Received {kind} in sample 2."):
        list(load_samples(data, VECTOR))
    np.savez(tmp_path / "d.npz", v=data)
    with refused(f"Received {kind} in {tmp_path / 'd.npz'}[2]."):
        list(load_samples(tmp_path / "d.npz", VECTOR))
    with refused(f"Received {kind} in item 2."):
        list(load_samples(list(data), VECTOR))
    with refused(f"Received {kind} in item 2."):
        load_samples(iter(data), VECTOR)
    with pytest.warns(UserWarning, match="float64 is converted"):
        too_large = load_samples(np.full((1, 4), 1e300), VECTOR)
    with refused("Received infinity in sample 0."):
        list(too_large)


def test_negative_infinity_may_be_a_mask() -> None:
    data = vectors(2)
    data[1, 2] = -np.inf
    assert [float(feed["v"].min()) for feed in load_samples(data, VECTOR)][1] == -np.inf


# ---- iterables -----------------------------------------------------------------------------------------------------


def test_lists_of_arrays_and_of_dicts() -> None:
    samples = load_samples([vectors(1), vectors(3)[1:], vectors(5)[4]], VECTOR)
    assert [feed["v"][0, 0] for feed in samples] == [0, 4, 8, 16]
    assert samples.labels == ["item 0", "item 1[0]", "item 1[1]", "item 2"]
    samples = load_samples([{"v": vectors(1), "n": np.array([7])}, {"n": np.array([8]), "v": vectors(1)}], PAIR)
    assert [feed["n"].tolist() for feed in samples] == [[7], [8]]
    assert [list(feed) for feed in samples] == [["v", "n"]] * 2
    assert len(load_samples({"v": vectors(3), "n": np.arange(3)}, PAIR)) == 3
    with refused("[load_samples] keys must be the input names v, n. Received v in item 1."):
        load_samples([{"v": vectors(1), "n": np.array([7])}, {"v": vectors(1)}], PAIR)


def test_generators_run_once_and_may_reuse_their_buffer() -> None:
    runs = []

    def frames() -> Iterator[np.ndarray]:
        runs.append(1)
        buffer = np.empty((1, 4), np.float32)
        for index in range(5):
            buffer[:] = index
            yield buffer

    samples = load_samples(frames(), VECTOR)
    gc.collect()
    assert runs == [1]
    for _ in range(2):
        assert [feed["v"][0, 0] for feed in samples] == [0, 1, 2, 3, 4]


def test_an_endless_iterator_stops_at_the_limit() -> None:
    samples = load_samples(Data((np.full((1, 4), i, np.float32) for i in itertools.count()), num_samples=3), VECTOR)
    assert [feed["v"][0, 0] for feed in samples] == [0, 1, 2]


def test_spooled_samples_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    samples = load_samples(iter(vectors(3)), VECTOR)
    part = samples.take(1)
    del samples
    gc.collect()
    assert len(list(part)) == 1
    assert len(list(tmp_path.iterdir())) == 1
    del part
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """A generator, a .npz and a folder of pictures: the peak is that of a few samples, not of 64."""
    one = 3 * 96 * 96 * 4
    inputs = [("x", np.float32, (None, 3, 96, 96))]
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).random((64, 3, 96, 96), np.float32))
    for index in range(64):
        picture(tmp_path / "pictures" / f"{index:02}.png", index, size=(96, 96))
    generator = (np.full((1, 3, 96, 96), i, np.float32) for i in range(64))
    for source in (tmp_path / "d.npz", tmp_path / "pictures", generator):
        with peak_below(16 * one):
            assert sum(1 for _ in load_samples(source, inputs)) == 64


class Tensor:
    """What a torch tensor shows of itself: detach, DLPack, and a refusal to export a gradient."""

    def __init__(self, values: np.ndarray, grad: bool) -> None:
        self.values, self.grad = values, grad

    def detach(self) -> Tensor:
        return Tensor(self.values, grad=False)

    def __dlpack__(self, **options: Any) -> Any:
        if self.grad:
            raise BufferError("Can't export tensors that require gradient")
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()


class OnDevice(Tensor):
    def detach(self) -> Tensor:
        return self

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("Cannot export a tensor on an accelerator to the CPU")


def test_dlpack_tensors() -> None:
    for source in (
        Tensor(vectors(3), grad=True),
        [Tensor(vectors(3), grad=False)],
        {"v": Tensor(vectors(3), grad=True)},
    ):
        samples = load_samples(source, VECTOR)
        assert [feed["v"][0, 0] for feed in samples] == [0, 4, 8]
    with refused("[load_samples] each item must be an array or CPU tensor of numbers", "Received OnDevice in item 0"):
        load_samples([OnDevice(vectors(3), grad=False)], VECTOR)


def test_torch_tensors_where_torch_is_installed() -> None:
    torch = pytest.importorskip("torch")
    samples = load_samples([torch.ones(1, 4, requires_grad=True)], VECTOR)
    np.testing.assert_array_equal(next(iter(samples))["v"], np.ones((1, 4)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "[load_samples] data must be a path, an array, or an iterable of arrays. Received int."),
        ([], "[load_samples] data must hold at least one sample. Received an empty list."),
        (iter(()), "[load_samples] data must hold at least one sample. Received an empty tuple_iterator."),
        ([object()], "an array of object in item 0."),
        ([[1.0, [2.0]]], "Received list in item 0"),
        (["a", vectors(1)], "in item 0"),
        (
            [(vectors(1), vectors(1))],
            "from a loader of pairs: (x for x, _ in loader)). Received a tuple of 2 in item 0.",
        ),
    ],
)
def test_sources_that_are_no_data(source: Any, message: str) -> None:
    with refused(message):
        load_samples(source, VECTOR)


def test_other_refusals() -> None:
    with refused("[Data] num_samples must be at least 1. Received 0."):
        load_samples(Data(vectors(3), num_samples=0), VECTOR)
    with refused("preprocess applies to pictures and videos; arrays enter as they are. Received ndarray."):
        load_samples(Data(vectors(3), preprocess=Preprocess()), VECTOR)
