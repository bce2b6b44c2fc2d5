"""Hadamard rotations: orthogonal matrices of +1 and -1 over sqrt(n), applied in n log n steps, and those among them
that commute with LayerNorm.

Matrices are made, not stored: Sylvester's doubling, both constructions of Paley (1933) over every finite field, and
Kronecker products of all these. They cover most multiples of 4; any other size is cut into equal blocks of the largest
size that is covered, and `Rotation.blocks` says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline._native import core, thread_count
from leadline.arrays import as_array, as_float32, axis_layout, axis_of, check_out
from leadline.types import refuse

__all__ = ["LARGEST", "Rotation", "block_size", "layernorm_rotation", "matrix", "random_rotation", "rotate"]

Signs = NDArray[np.int8]
LARGEST = 1 << 16
"""The largest size of a rotation."""

_LARGEST_BASE = 4096

# J - 2I of order 4 is Sylvester's matrix with its rows in this order and these signs of rows and columns.
_REGULAR_ORDER, _REGULAR_ROWS, _REGULAR_COLUMNS = (0, 2, 1, 3), (1.0, -1.0, -1.0, -1.0), (-1.0, 1.0, 1.0, 1.0)


def block_size(n: int) -> int:
    """The largest divisor of n for which a Hadamard matrix can be made here: n itself where one can.

    Raises InputError unless n is an integer from 1 to `LARGEST`.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= LARGEST:
        raise refuse("hadamard", f"a size must be an integer from 1 to {LARGEST}", repr(n))
    return _block(int(n))


def matrix(n: int) -> Signs:
    """A Hadamard matrix: int8 (n, n) of +1 and -1 with H H^T = n I, its first column all +1.

    Raises InputError where none can be made here: `block_size` tells the sizes apart.
    """
    if block_size(n) != n:
        raise refuse("hadamard.matrix", "a matrix of this size must be constructible", n)
    product = np.ones((1, 1), np.int8)
    for order in _factors(int(n)) or ():
        product = np.kron(product, _base(order))
    return product


@dataclass(frozen=True)
class _Stage:
    """x -> after * (H^T (before * x[take]))[put], with H^T or, where not `transposed`, H. Empty: nothing is done."""

    transposed: bool
    before: NDArray[np.float64]
    after: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    take: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    put: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def inverse(self) -> _Stage:
        take, put = (np.argsort(places).astype(np.int32) for places in (self.put, self.take))
        before = self.after if self.after.size else np.ones(self.before.size)
        before = before[take] if take.size else before
        after = self.before[put] if put.size else self.before
        return _Stage(not self.transposed, before, after, take, put)


@dataclass(frozen=True)
class Rotation:
    """An orthogonal matrix R (size, size) as a fast product: ``rotation(x)`` is x R along an axis of x.

    Attributes
    ----------
    size : int
    blocks : int
        1 where R mixes all elements; otherwise R is block-diagonal, for want of a Hadamard matrix of this size.
    keeps_mean : bool
        R 1 = 1, so that LayerNorm(x R) = LayerNorm(x) R, but for its gain and offset.
    """

    size: int
    blocks: int
    keeps_mean: bool
    _stages: tuple[_Stage, ...] = field(repr=False)

    def __call__(
        self, x: Any, axis: int = -1, *, inverse: bool = False, out: Any = None, threads: int | None = None
    ) -> NDArray[Any]:
        """x R along `axis`, or x R^T.

        Parameters
        ----------
        x : float32 or float64 array or CPU tensor
            Of any shape with `size` elements along `axis`.
        inverse : bool
        out : array, optional
            x itself, or an array like it apart from it.
        threads : int or None

        Returns
        -------
        array of x's shape and dtype. Relative error at most log2(size) + 2 roundings of the dtype.

        Raises
        ------
        InputError : x does not have `size` elements along `axis`, or `out` does not fit.
        """
        array = as_array(x, "x", "rotate")
        array = np.ascontiguousarray(array) if array.dtype == np.float64 else as_float32(x, "x", "rotate")
        place = axis_of(array.shape, axis, "rotate")
        _, size, inner = axis_layout(array.shape, place)
        if size != self.size:
            raise refuse("rotate", f"x must have {self.size} elements along axis {axis}", array.shape)
        count = thread_count(threads, "rotate")
        result = np.empty_like(array) if out is None else check_out(out, array, "rotate")
        source = array
        for stage in self._undo if inverse else self._stages:
            factors = [np.ascontiguousarray(f, array.dtype) for f in (stage.before, stage.after)]
            plan = _plan(core, self.size // self.blocks, self.blocks, stage.transposed)
            plan.apply(source, inner, *factors, stage.take, stage.put, result, count)
            source = result
        return result

    @cached_property
    def _undo(self) -> tuple[_Stage, ...]:
        return tuple(stage.inverse() for stage in reversed(self._stages))

    def matrix(self) -> NDArray[np.float64]:
        """R itself, (size, size)."""
        return self(np.eye(self.size))


def rotate(
    x: Any, axis: int = -1, *, inverse: bool = False, out: Any = None, threads: int | None = None
) -> NDArray[Any]:
    """x H / sqrt(n) along an axis of n elements, with `matrix`; see `Rotation.__call__`."""
    array = as_array(x, "x", "rotate")
    size = array.shape[axis_of(array.shape, axis, "rotate")]
    return _signed(size, np.ones(size))(x, axis, inverse=inverse, out=out, threads=threads)


def random_rotation(size: int, seed: int = 0) -> Rotation:
    """diag(s) H / sqrt(n) with random signs s: spreads outliers over all channels (QuIP#, QuaRot, 2024).

    Does not commute with LayerNorm. Raises InputError unless `size` is from 1 to `LARGEST`.
    """
    block_size(size)  # refuses what is no size
    return _signed(size, np.random.default_rng(seed).choice([-1.0, 1.0], size))


def layernorm_rotation(size: int, seed: int = 0) -> Rotation:
    """A random rotation that commutes with LayerNorm: R 1 = 1, so that means and variances stay what they are.

    For 4^k it is a regular Hadamard matrix, all of whose rows have the sum sqrt(n), between two random permutations:
    as flat as any. For other sizes it is H diag(s) H^T / n with s = +1 where H's column is constant, else random.
    Raises InputError unless `size` is from 1 to `LARGEST`.
    """
    rng = np.random.default_rng(seed)
    block = block_size(size)
    power = round(math.log(size, 4)) if size > 1 else 0
    if size == 4**power:
        order, rows, columns = np.zeros(1, np.int64), np.ones(1), np.ones(1)
        rows_of, columns_of = np.array(_REGULAR_ROWS), np.array(_REGULAR_COLUMNS)
        for _ in range(power):
            order = (4 * order[:, None] + np.array(_REGULAR_ORDER)).ravel()
            rows, columns = np.outer(rows, rows_of).ravel(), np.outer(columns, columns_of).ravel()
        first, last = rng.permutation(size), rng.permutation(size)
        # x R = (x P_first regular)[last]; regular is symmetric.
        stage = _Stage(
            False,
            columns / math.sqrt(size),
            rows[last],
            first.astype(np.int32),
            order[last].astype(np.int32),
        )
        return Rotation(int(size), 1, True, (stage,))
    signs = rng.choice([-1.0, 1.0], size)
    signs[::block] = 1.0
    half = np.full(size, 1 / math.sqrt(block))
    return Rotation(int(size), int(size) // block, True, (_Stage(True, half, signs), _Stage(False, half)))


def _signed(size: int, signs: NDArray[np.float64]) -> Rotation:
    block = block_size(size)
    return Rotation(int(size), int(size) // block, False, (_Stage(True, signs / math.sqrt(block)),))


@cache
def _block(n: int) -> int:
    return next(d for d in range(n, 0, -1) if n % d == 0 and _factors(d) is not None)


@cache
def _factors(n: int) -> tuple[int, ...] | None:
    """Orders of matrices whose Kronecker product has order n, those of 2 last, as cheap as can be; None: there is none.

    A doubling costs one addition for each element, a base half its order.
    """
    best: tuple[int, ...] | None = () if n == 1 else None
    options = [2] if n % 2 == 0 else []
    options += [d for d in range(12, min(n, _LARGEST_BASE) + 1, 4) if n % d == 0 and _field(d) is not None]
    for order in options:
        rest = _factors(n // order)
        if rest is not None:
            orders = tuple(sorted((*rest, order), reverse=True))
            if best is None or _cost(orders) < _cost(best):
                best = orders
    return best


def _cost(orders: tuple[int, ...]) -> float:
    return sum(1 if order == 2 else order / 2 for order in orders)


def _field(order: int) -> tuple[int, int, bool] | None:
    """p, k and whether it is Paley's first construction, which make a matrix of this order over GF(p^k)."""
    for q, first in ((order - 1, True), (order // 2 - 1, False)):
        if q > 2 and q % 4 == (3 if first else 1) and (first or order % 2 == 0):
            p = next(d for d in range(2, q + 1) if q % d == 0)
            k = round(math.log(q, p))
            if p**k == q:
                return p, k, first
    return None


@cache
def _base(order: int) -> Signs:
    """Of order 2, or by Paley; its first column all +1."""
    if order == 2:
        return np.array([[1, 1], [1, -1]], np.int8)
    known = _field(order)
    assert known is not None
    p, k, first = known
    q = p**k
    squares = _characters(p, k)
    digits = np.arange(q)[:, None] // p ** np.arange(k) % p
    differences = (digits[:, None] - digits) % p @ p ** np.arange(k)
    ring = np.ones((q + 1, q + 1), np.int8)
    ring[0, 0] = 0
    ring[1:, 1:] = squares[differences]
    if first:
        ring[1:, 0] = -1
        signs = ring + np.eye(q + 1, dtype=np.int8)
    else:
        signs = np.kron(ring, np.array([[1, 1], [1, -1]], np.int8))
        signs += np.kron(np.eye(q + 1, dtype=np.int8), np.array([[1, -1], [-1, -1]], np.int8))
    signs = np.asarray(signs * signs[:, :1], np.int8)
    signs.setflags(write=False)
    return signs


def _characters(p: int, k: int) -> NDArray[np.int8]:
    """Of each element of GF(p^k), as the number whose base-p digits are its coefficients: 0 for zero, +1 for squares,
    else -1. The field is that of the first polynomial modulo which the powers of x run through all elements."""
    q = p**k
    for low in range(1, q):
        reduction = [low // p**i % p for i in range(k)]  # x^k in terms of lower powers
        characters = np.zeros(q, np.int8)
        element = [1] + [0] * (k - 1)
        sign, count = 1, 0
        while True:
            index = sum(digit * p**i for i, digit in enumerate(element))
            if index == 0 or characters[index]:
                break
            characters[index] = sign
            sign, count, top = -sign, count + 1, element[-1]
            element = [(a + top * b) % p for a, b in zip([0, *element[:-1]], reduction, strict=True)]
        if count == q - 1:
            return characters
    raise AssertionError(f"GF({p}^{k}) has a primitive polynomial")


@cache
def _plan(module: Any, block: int, blocks: int, transposed: bool) -> Any:
    """A core's form of `blocks` matrices of order `block`."""
    factors = _factors(block) or ()
    bases = [order for order in factors if order != 2]
    plan = module.HadamardPlan(blocks, len(factors) - len(bases))
    for order in bases:
        rows = _base(order)
        plan.add_base(np.ascontiguousarray(rows.T if transposed else rows), order)
    return plan
