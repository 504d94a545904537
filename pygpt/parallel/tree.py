"""Gradients of micro-batches, summed in a fixed binary tree, so that the bits do not depend on how many ranks share it.

    sum(n) = sum(first half) + sum(second half)      n even
    sum(n) = one after the other                     n odd, and there is nothing to halve

The n micro-batches of R ranks, R a power of two that divides n, are R aligned subtrees; the upper levels are the
exchange between ranks (exchange.py). The addition of two floats is commutative, so all get the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pygpt.model import GPT2
from pygpt.reference.arrays import Array


def levels(count: int) -> int:
    """How often `count` can be halved: the buffers, each as large as the gradient, that its tree takes."""
    return (count & -count).bit_length() - 1


class GradientTree:
    """Sums the gradients of a model."""

    def __init__(self, model: GPT2, count: int, halved: bool) -> None:
        """count: micro-batches of a step.  halved: False adds one after the other, where tensors are a device's own."""
        self._model, self._count = model, count
        self._halves: list[list[Array]] = [[] for _ in range(levels(count) if halved else 0)]
        self._losses: list[float] = []

    def sum(self, first: int, add: Callable[[int], None]) -> None:
        """Make the model's gradients those of micro-batches number `first`, first + 1, ...

        add: adds the gradients of one of them.
        """
        self._losses = []
        self._sum(first, self._count, self._halves, add)

    def losses(self) -> list[float]:
        """Sums of losses of the latest sum(), in the order of their micro-batches; waits for a device."""
        return [*self._losses, self._model.summed_loss]

    def _sum(self, first: int, count: int, halves: list[list[Array]], add: Callable[[int], None]) -> None:
        if not halves:
            self._model.zero_grad()
            for number in range(first, first + count):
                add(number)
            return
        *lower, half = halves
        self._sum(first, count // 2, lower, add)
        self._losses.append(self._model.summed_loss)
        gradients = list(self._model.gradients.values())
        if not half:
            half += [np.empty_like(gradient) for gradient in gradients]
        for kept, gradient in zip(half, gradients, strict=True):
            kept[...] = gradient
        self._sum(first + count // 2, count // 2, lower, add)
        for kept, gradient in zip(half, gradients, strict=True):
            gradient += kept
