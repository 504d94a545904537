"""Gradients of micro-batches, summed in a fixed binary tree, so that the bits do not depend on how many ranks share it.

    sum(n) = sum(first half) + sum(second half)      n even
    sum(n) = one after the other                     n odd, and there is nothing to halve

The n micro-batches of R ranks, R a power of two that divides n, are R aligned subtrees; the upper levels are the
exchange between ranks (exchange.py). The addition of two floats is commutative, so all get the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

from pygpt.model import GPT2
from pygpt.parallel.flat import parts_of
from pygpt.reference.arrays import Array


def levels(count: int) -> int:
    """How often `count` can be halved: the buffers, each as large as the gradient, that its tree takes."""
    return (count & -count).bit_length() - 1


class GradientTree:
    """Sums the gradients of a model."""

    def __init__(self, model: GPT2, count: int, halved: bool) -> None:
        """count: micro-batches of a step.  halved: False adds one after the other."""
        self._model, self._count = model, count
        self._levels = levels(count) if halved else 0
        self._kept = parts_of(model) or _KeptOnHost(model)
        self._losses: list[float] = []

    def sum(self, first: int, add: Callable[[int], None]) -> None:
        """Make the model's gradients those of micro-batches number `first`, first + 1, ...

        add: adds the gradients of one of them.
        """
        self._losses = []
        self._sum(first, self._count, self._levels, add)

    def losses(self) -> list[float]:
        """Sums of losses of the latest sum(), in the order of their micro-batches; waits for a device."""
        return [*self._losses, self._model.summed_loss]

    def _sum(self, first: int, count: int, levels: int, add: Callable[[int], None]) -> None:
        if not levels:
            self._model.zero_grad()
            for number in range(first, first + count):
                add(number)
            return
        half, lower = count // 2, levels - 1
        self._sum(first, half, lower, add)
        self._losses.append(self._model.summed_loss)
        self._kept.keep_gradients(lower)
        self._sum(first + half, half, lower, add)
        self._kept.add_kept_gradients(lower)


class _KeptOnHost:
    """Sums of gradients that wait for their other half, by level."""

    def __init__(self, model: GPT2) -> None:
        self._model = model
        self._kept: dict[int, list[Array]] = {}

    def keep_gradients(self, level: int) -> None:
        gradients = self._model.gradients.values()
        if level not in self._kept:
            self._kept[level] = [gradient.copy() for gradient in gradients]
            return
        for kept, gradient in zip(self._kept[level], gradients, strict=True):
            kept[...] = gradient

    def add_kept_gradients(self, level: int) -> None:
        for kept, gradient in zip(self._kept[level], self._model.gradients.values(), strict=True):
            gradient += kept
