"""A number that knows how it was made, and its derivatives.

    y = f(a, b, ...)      dy/dy = 1      for every operation z = g(x1, x2):   dx1 += dz ∂g/∂x1      dx2 += dz ∂g/∂x2

A Value holds a number, and the values it was computed from. Python calls __add__ for a + b, and __radd__ for 2 + a.
The backward pass goes through the values in the reverse of an order in which each comes after those it was made from,
and adds to `grad`: a value that is used twice has two sources of its gradient.

Write __add__, __mul__, __pow__ (by a number), tanh and backward; the other operations are made of these.

Read: video 1 of "Neural Networks: Zero to Hero" (micrograd); docs/layers/residual.md has the same sum of two
gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


class Value:
    """A number, `data`, and the derivative of the result by it, `grad`."""

    def __init__(self, data: float) -> None:
        self.data = data
        self.grad = 0.0

    def __add__(self, other: Value | float) -> Value:
        raise NotImplementedError

    def __mul__(self, other: Value | float) -> Value:
        raise NotImplementedError

    def __pow__(self, exponent: float) -> Value:
        raise NotImplementedError

    def tanh(self) -> Value:
        raise NotImplementedError

    def backward(self) -> None:
        """The derivatives of this value by all that it was made from, in their `grad`."""
        raise NotImplementedError

    def __radd__(self, other: float) -> Value:
        return self + other

    def __rmul__(self, other: float) -> Value:
        return self * other

    def __neg__(self) -> Value:
        return self * -1.0

    def __sub__(self, other: Value | float) -> Value:
        return self + -1.0 * other

    def __truediv__(self, other: Value) -> Value:
        return self * other**-1.0


def gradients(expression: Callable[..., Value], numbers: Sequence[float]) -> tuple[float, np.ndarray]:
    """What is graded, and is written already: an expression's value, and its derivatives by the numbers, (n,)."""
    leaves = [Value(number) for number in numbers]
    result = expression(*leaves)
    result.backward()
    return result.data, np.array([leaf.grad for leaf in leaves])
