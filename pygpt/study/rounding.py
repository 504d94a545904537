"""Numbers that know how far rounding may have taken them: error analysis by running the reference's own formulas.

A sum of n terms p_1 + ... + p_n = s, added in some order, rounds n − 1 times by at most u of what it has then:

    worst case     γ_n Σ|p|      γ_n = n u / (1 − n u)                           (Higham 2002, section 3.1)
    mean square    u² n (s²/3 + Σp²/6)

The second grows with √n where signs are mixed: after k terms in a random order a sum has the mean k s / n and the
variance k (n − k) / n² (Σp² − s²/n), whose squares are summed over k, and roundings are independent (Higham & Mary
2019). Other operations round once, and what their arguments carry is passed on to first order, its squares as if
independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from pygpt.reference.arrays import Array
from pygpt.reference.bfloat16 import round_bfloat16

UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
"""u: the largest relative error of a rounding to nearest."""

ELEMENTARY = 4 * UNIT["float32"]
"""Of exp, log, tanh, erfc, sine and cosine: what the native libraries' own have, rounded up."""

SMALLEST = 2.0**-126
"""Below, float32 has fewer digits, or none."""


class Rounded(NDArrayOperatorsMixin):
    """An array in float64 beside what one in float32 may be off by.

    worst: at most; square: in the mean square; both of the array's shape.  operands: the unit to which the operands of
    a matrix product are rounded, 0 for not at all.
    """

    def __init__(self, value: Array, worst: Any = 0.0, square: Any = 0.0, operands: float = 0.0) -> None:
        self.value = np.asarray(value, np.float64)
        same = self.value.shape
        self.worst, self.square = (x if np.shape(x) == same else np.broadcast_to(x, same) for x in (worst, square))
        self.operands = operands

    def within(self, unit: float) -> Rounded:
        """Rounded once more, or multiplied by a number that is known to this unit."""
        error = unit * np.where(np.isfinite(self.value), abs(self.value), 0)
        return self._with(self.value, self.worst + error, self.square + error**2)

    # ---- what the reference does with arrays ----

    dtype = np.dtype(np.float64)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def real(self) -> Array:
        return self.value

    @property
    def T(self) -> Rounded:  # noqa: N802
        return self._each(np.transpose)

    def copy(self) -> Rounded:
        return self._each(np.array)

    def reshape(self, *shape: Any) -> Rounded:
        return self._each(lambda x: x.reshape(*shape))

    def swapaxes(self, a: int, b: int) -> Rounded:
        return self._each(lambda x: x.swapaxes(a, b))

    def __getitem__(self, part: Any) -> Rounded:
        return self._each(lambda x: x[part])

    def __setitem__(self, part: Any, other: Rounded) -> None:
        self.value[part], self.worst[part], self.square[part] = other.value, other.worst, other.square

    def sum(self, axis: int | tuple[int, ...], keepdims: bool = False) -> Rounded:
        def total(x: Array) -> Array:
            return np.asarray(x.sum(axis, keepdims=keepdims))

        y = total(self.value)
        worst, square = _of_sum(self.value.size // max(1, y.size), y, total(abs(self.value)), total(self.value**2))
        return self._with(y, worst + total(self.worst), square + total(self.square))

    def mean(self, axis: int, keepdims: bool = False) -> Rounded:
        mean: Rounded = self.sum(axis, keepdims) / self.shape[axis]
        return mean

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any) -> Rounded:
        assert method == "__call__"
        if ufunc is np.power:
            assert inputs[1] == 2
            ufunc, inputs = np.multiply, (inputs[0], inputs[0])
        arguments = [x if isinstance(x, Rounded) else Rounded(x) for x in inputs]
        operands = max(x.operands for x in arguments)
        found = _OPERATIONS[ufunc](*(Rounded(x.value, x.worst, x.square, operands) for x in arguments))
        return found

    def __array_function__(
        self, function: Callable[..., Any], types: Sequence[type], arguments: Sequence[Any], named: Any
    ) -> Any:
        """np.where, split, concatenate, take_along_axis: the same elements in other places."""

        def part(x: Any, name: str) -> Any:
            if isinstance(x, Rounded):
                return getattr(x, name)
            if isinstance(x, (list, tuple)):
                return [part(y, name) for y in x]
            return 0.0 if isinstance(x, np.floating) and name != "value" else x

        found = [function(*part(arguments, name), **named) for name in ("value", "worst", "square")]
        if isinstance(found[0], list):
            return [self._with(*parts) for parts in zip(*found, strict=True)]
        return self._with(*found)

    def _with(self, value: Array, worst: Any, square: Any) -> Rounded:
        return Rounded(value, worst, square, self.operands)

    def _each(self, function: Callable[[Array], Array]) -> Rounded:
        return self._with(function(self.value), function(self.worst), function(self.square))


def _of_sum(n: int, y: Array, absolute: Array, squares: Array) -> tuple[Array, Array]:
    """What a sum y of n terms adds to the errors of its terms, of which it gets Σ|p| and Σp²."""
    u = UNIT["float32"]
    if n < 2:
        return np.zeros_like(y), np.zeros_like(y)
    return n * u / (1 - n * u) * absolute, u**2 * n * (y**2 / 3 + squares / 6)


def _plus(sign: int) -> Callable[[Rounded, Rounded], Rounded]:
    def add(x: Rounded, y: Rounded) -> Rounded:
        return x._with(x.value + sign * y.value, x.worst + y.worst, x.square + y.square).within(UNIT["float32"])

    return add


def _times(x: Rounded, y: Rounded) -> Rounded:
    a, b = x.value, y.value
    worst = abs(a) * y.worst + x.worst * abs(b)
    return x._with(a * b, worst, a**2 * y.square + x.square * b**2).within(UNIT["float32"])


def _over(x: Rounded, y: Rounded) -> Rounded:
    q, b = x.value / y.value, y.value
    q_finite = np.where(np.isfinite(q), q, 0)
    worst = (x.worst + abs(q_finite) * y.worst) / abs(b)
    return x._with(q, worst, (x.square + q_finite**2 * y.square) / b**2).within(UNIT["float32"])


def _matmul(x: Rounded, y: Rounded) -> Rounded:
    x, y = _operand(x), _operand(y)
    a, b = x.value, y.value
    product, squares = a @ b, a**2 @ b**2
    worst, square = _of_sum(a.shape[-1], product, abs(a) @ abs(b), squares)
    square = square + UNIT["float32"] ** 2 * squares  # of the products
    for of, other, left in ((x, b, True), (y, a, False)):
        if of.worst.any():
            worst = worst + (of.worst @ abs(other) if left else abs(other) @ of.worst)
            square = square + (of.square @ other**2 if left else other**2 @ of.square)
    return x._with(product, worst, square)


def _operand(x: Rounded) -> Rounded:
    """Of a product; the rounding of one that is exact is known."""
    if not x.operands:
        return x
    if x.worst.any():
        return x.within(x.operands)
    error = abs(round_bfloat16(x.value.astype(np.float32)) - x.value)
    return x._with(x.value, error, error**2)


def _elementary(function: np.ufunc, slope: Callable[[Array, Array], Array]) -> Callable[[Rounded], Rounded]:
    """slope: of x and the function's value there, the derivative."""

    def of(x: Rounded) -> Rounded:
        y = function(x.value)
        d = abs(slope(x.value, y))
        return x._with(y, d * x.worst + SMALLEST, d**2 * x.square + SMALLEST**2).within(ELEMENTARY)

    return of


_OPERATIONS: dict[np.ufunc, Callable[..., Rounded]] = {
    np.add: _plus(1),
    np.subtract: _plus(-1),
    np.multiply: _times,
    np.divide: _over,
    np.matmul: _matmul,
    np.exp: _elementary(np.exp, lambda x, y: y),
    np.log: _elementary(np.log, lambda x, y: 1 / x),
    np.tanh: _elementary(np.tanh, lambda x, y: 1 - y**2),
    np.sqrt: _elementary(np.sqrt, lambda x, y: 0.5 / y),
}
