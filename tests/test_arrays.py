"""The boundary: zero copy where promised, loud or refused elsewhere, and nothing that ends the interpreter."""

import ml_dtypes
import numpy as np
import pytest

from leadline import ConversionWarning, InputError, Scheme, affine, gram, observers
from leadline.arrays import as_float32, native_scheme

SCHEME = Scheme()


class Tensor:
    """A DLPack exporter that is not numpy, as a torch tensor is."""

    def __init__(self, array, device=1, error=None):
        self.array, self.device, self.error, self.dtype = array, device, error, array.dtype

    def __dlpack_device__(self):
        return (self.device, 0)

    def __dlpack__(self, **options):
        if self.error:
            raise self.error
        return self.array.__dlpack__(**options)


def test_contiguous_float32_enters_without_a_copy():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert as_float32(x, "x", "f") is x
    assert as_float32(Tensor(x), "x", "f").ctypes.data == x.ctypes.data
    x.flags.writeable = False
    assert as_float32(x, "x", "f") is x


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, ">f4"])
def test_other_floats_are_converted_loudly(dtype):
    x = np.array([0.5, -2.0], np.float32).astype(dtype)
    with pytest.warns(ConversionWarning, match=r"\[f\] x was converted .*; pass C-contiguous float32"):
        out = as_float32(x, "x", "f")
    assert out.dtype == np.dtype("=f4") and out.tolist() == [0.5, -2.0]


def test_strided_and_unaligned_arrays_are_copied_loudly():
    for x in (np.ones((4, 6), np.float32)[:, ::2], np.ones((3, 4), np.float32).T, np.frombuffer(bytes(17), "f4", 4, 1)):
        with pytest.warns(ConversionWarning, match="copied because it is strided"):
            assert as_float32(x, "x", "f").flags.c_contiguous


def test_a_bfloat16_tensor_is_asked_for_float32():
    class BFloat(Tensor):
        def float(self):
            return Tensor(self.array)

    tensor = BFloat(np.ones(3, np.float32), error=BufferError("bfloat16 is not supported"))
    tensor.dtype = "torch.bfloat16"
    with pytest.warns(ConversionWarning, match="from bfloat16"):
        assert as_float32(tensor, "x", "f").tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "x, message",
    [
        (np.ones(3, np.int64), r"\[f\] x must be float32 .*\. Received int64"),
        (np.ones(3, bool), "Received bool"),
        (np.ones(3, complex), "Received complex128"),
        (np.array([None]), "Received object"),
        (np.array(["a"]), "Received"),
        ([1.0, 2.0], "x must be a numpy array or a DLPack CPU tensor. Received a list"),
        (3.0, "Received a float"),
        (None, "Received a NoneType"),
        (Tensor(np.ones(3, np.float32), device=2), "move it to the CPU first"),
        (Tensor(np.ones(3, np.float32), error=RuntimeError("requires grad")), "does not export: requires grad"),
    ],
)
def test_refusals(x, message):
    with pytest.raises(InputError, match=message):
        as_float32(x, "x", "f")


@pytest.mark.filterwarnings("ignore::leadline.arrays.ConversionWarning")
def test_nothing_ends_the_interpreter():
    """Odd arrays through every entry: each either works or raises ValueError."""
    shapes = [(), (0,), (1,), (0, 3), (3, 0), (1, 1, 1, 1), (2, 3, 4), (0, 0, 0, 0), (2, 3, 5, 5), (1,) * 12]
    dtypes = [np.float32, np.float64, np.float16, ">f4", np.int8, np.uint64, bool, complex, object]
    schemes = [Scheme(granularity="axis", axis=a) for a in (0, 1, -1, 3, 10**18, -(10**18))]
    schemes += [Scheme(granularity="block", axis=a, block_size=b) for a in (0, -1) for b in (1, 3, 10**18)]
    entries = [lambda x, s=s: affine.range_of(x, s) for s in [SCHEME, *schemes]]
    entries += [lambda x, s=s: affine.quantize(x, affine.choose_grid(*affine.range_of(x, s), s)) for s in schemes]
    entries += [lambda x, s=s: affine.fake_quantize(x, affine.choose_grid([0] * 3, [1] * 3, s)) for s in schemes]
    entries += [lambda x, a=a: observers.Histogram(axis=a).update(x).lo for a in (None, 0, 1, -1, 10**18)]
    entries += [lambda x, a=a: observers.MinMax(axis=a).update(x).lo for a in (None, 0, -1)]
    entries += [lambda x: gram.Gram(3).update(x), lambda x: gram.ConvGram((4, 3, 2, 2)).update(x)]
    entries += [lambda x: gram.ConvGram((4, 3, 9, 9), pads=(1, 2, 3, 4), dilations=(5, 1)).update(x)]
    refused = worked = 0
    for shape in shapes:
        for dtype in dtypes:
            x = np.zeros(shape, dtype)
            x.flags.writeable = False
            for entry in entries:
                try:
                    entry(x)
                    worked += 1
                except ValueError:
                    refused += 1
    assert worked > 100 and refused > 100


def test_the_core_refuses_what_would_leave_an_array():
    """Behind the Python checks: sizes that disagree never reach memory, also at the edge of 64 bits."""
    core, x = affine.core, np.ones(6, np.float32)
    one = np.empty(1, np.float32)
    for layout in ((1, 1, 7), (-1, 1, -6), (2**62, 1, 4), (2**32, 1, 2**32), (1, 2, 3), (0, 1, 6)):
        with pytest.raises(ValueError, match="layout must"):
            core.range(x, layout, one, one.copy(), 1)
    with pytest.raises(ValueError, match="codes must have the size"):
        scheme = native_scheme(SCHEME, "f")
        core.quantize(x, (1, 1, 6), one, np.zeros(1, np.int32), scheme, np.empty(5, np.uint8), 1)
    with pytest.raises(ValueError, match="number of features"):
        core.gram_update(x, 3, 2, np.zeros(2, "f4"), np.zeros(3), np.zeros((3, 3)), 1)
    with pytest.raises(TypeError):
        core.range(x.astype(np.float64), (1, 1, 6), one, one.copy(), 1)
