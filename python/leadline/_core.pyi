from typing import Any

import numpy as np
from numpy.typing import NDArray

# Arrays are C-contiguous and of exactly the named type; the core converts nothing. `layout` is (outer, channels,
# inner). `threads` 0 is the OpenMP default. Functions that return bool return False for NaN (or infinity).
_Layout = tuple[int, int, int]
_F32 = NDArray[np.float32]
_F64 = NDArray[np.float64]
_I32 = NDArray[np.int32]
_Real = NDArray[np.float32] | NDArray[np.float64]
_Codes = NDArray[np.int8] | NDArray[np.uint8] | NDArray[np.int16] | NDArray[np.uint16] | NDArray[np.int32]

def supports_v3() -> bool: ...
def build_info() -> dict[str, Any]: ...

class Scheme:
    def __init__(self, qmin: int, qmax: int, symmetric_zero: int, symmetric: bool, aimet: bool) -> None: ...

def choose_grid(lo: _F64, hi: _F64, scheme: Scheme, scale: _F32, zero_point: _I32) -> None: ...
def range(x: _F32, layout: _Layout, lo: _F32, hi: _F32, threads: int) -> bool: ...
def quantize(
    x: _F32, layout: _Layout, scale: _F32, zero_point: _I32, scheme: Scheme, codes: _Codes, threads: int
) -> bool: ...
def dequantize(codes: _Codes, layout: _Layout, scale: _F32, zero_point: _I32, x: _F32, threads: int) -> None: ...
def fake_quantize(
    x: _F32, layout: _Layout, scale: _F32, zero_point: _I32, scheme: Scheme, out: _F32, threads: int
) -> bool: ...

class Histogram:
    def __init__(self, channels: int) -> None: ...
    def update(self, x: _F32, layout: _Layout, threads: int) -> bool: ...
    def merge(self, other: Histogram) -> None: ...
    def lo(self) -> _F32: ...
    def hi(self) -> _F32: ...
    def count(self) -> NDArray[np.uint64]: ...
    def zeros(self) -> NDArray[np.uint64]: ...
    def sum(self) -> _F64: ...
    def sum_sq(self) -> _F64: ...
    def buckets(self) -> NDArray[np.uint64]: ...
    @staticmethod
    def from_arrays(
        count: NDArray[np.uint64], zeros: NDArray[np.uint64], lo: _F32, hi: _F32, buckets: NDArray[np.uint64]
    ) -> Histogram: ...
    def search(self, method: str, scheme: Scheme, option: float, lo: _F32, hi: _F32, threads: int) -> None: ...
    def cost(
        self, channel: int, method: str, scheme: Scheme, scale: float, zero_point: int, p: float, gamma: float
    ) -> float: ...

def gram_update(x: _F32, rows: int, features: int, pivot: _F32, sum: _F64, second: _F64, threads: int) -> bool: ...
def conv_gram_update(
    x: _F32,
    shape: tuple[int, ...],
    groups: int,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    pivot: _F32,
    sum: _F64,
    second: _F64,
    threads: int,
) -> bool: ...
def gram_mirror(second: _F64, groups: int, features: int, threads: int) -> None: ...

# Rows of weights on their grids (scale and zero point: rows x blocks) against groups x features x features moments.
class RoundingProblem:
    def __init__(
        self,
        weight: _F32,
        gram: _F64,
        scale: _F32,
        zero_point: _I32,
        rows: int,
        features: int,
        groups: int,
        blocks: int,
        qmin: int,
        qmax: int,
    ) -> None: ...
    def error(self, codes: _I32, out: _F64, threads: int) -> None: ...
    def descend(self, codes: _I32, sweeps: int, neighbours: bool, damping: float, threads: int) -> None: ...
    def descend_coupled(self, codes: _I32, fisher: _F64, sweeps: int, neighbours: bool) -> None: ...
    def gptq(self, codes: _I32, damping: float, ordered: bool, threads: int) -> None: ...
    def adaround(
        self,
        codes: _I32,
        iterations: int,
        rate: float,
        regularisation: float,
        warm_start: float,
        beta_start: float,
        beta_end: float,
        damping: float,
        threads: int,
        inputs: _F32 | None = None,
        outputs: _F32 | None = None,
        count: int = 0,
        low: float = 0.0,
        high: float = 0.0,
    ) -> None: ...

def compensate(
    weight: _F32,
    cross: _F64,
    gram: _F64,
    rows: int,
    features: int,
    groups: int,
    damping: float,
    out: _F32,
    threads: int,
) -> float: ...

# `omega` has an entry for each channel; infinity: not polished. Bends are pairs of a percentile and a ratio to it.
def polish(x: _F32, layout: _Layout, omega: _F32, out: _F32, threads: int) -> bool: ...
def unpolish(x: _F32, layout: _Layout, omega: _F32, out: _F32, threads: int) -> bool: ...
def fake_quantize_polished(
    x: _F32, layout: _Layout, omega: _F32, scale: _F32, zero_point: _I32, scheme: Scheme, out: _F32, threads: int
) -> bool: ...
def polished_error(
    histogram: Histogram, scheme: Scheme, omega: _F32, scale: _F32, zero_point: _I32, error: _F64, threads: int
) -> None: ...
def choose_polishing(
    histogram: Histogram,
    scheme: Scheme,
    bends: _F64,
    affine: bool,
    omega: _F32,
    lo: _F32,
    hi: _F32,
    error: _F64,
    kind: NDArray[np.int8],
    threads: int,
) -> None: ...

# Errors of a rows x (channels * taps) weight for each row of scales (candidates x channels); block 0: one grid for all.
def smoothing_weight_errors(
    weight: _F32,
    gram: _F64,
    rows: int,
    channels: int,
    taps: int,
    scales: _F64,
    scheme: Scheme,
    block: int,
    out: _F64,
    threads: int,
) -> None: ...

# Hadamard matrices of order blocks * bases * 2^doublings; bases are +1 and -1, row by row.
class HadamardPlan:
    def __init__(self, blocks: int, doublings: int) -> None: ...
    def add_base(self, rows: NDArray[np.int8], order: int) -> None: ...
    def apply(
        self, x: _Real, inner: int, before: _Real, after: _Real, take: _I32, put: _I32, out: _Real, threads: int
    ) -> None: ...
