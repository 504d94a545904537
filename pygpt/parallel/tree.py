"""Gradients of micro-batches, summed in a fixed binary tree, so that the bits do not depend on how many ranks share it.

    sum(n) = sum(first half) + sum(second half)      n even
    sum(n) = one after the other                     n odd, and there is nothing to halve

The n micro-batches of R ranks, R a power of two that divides n, are R aligned subtrees; the upper levels are the
exchange between ranks (exchange.py). The addition of two floats is commutative, so all get the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from pygpt.backends.pointers import Floats
from pygpt.model import GPT2
from pygpt.parallel.flat import HostFlat, flat_gradients, parts_of

LastPass = Callable[[Callable[[slice], None]], contextlib.AbstractContextManager[None]]
"""Around the pass that is the last of a sum.  It calls complete(part) for all parts of the flat buffer of gradients, of
each as soon as the pass has finished it or later: to add what is kept of the passes before."""


@contextlib.contextmanager
def by_itself(complete: Callable[[slice], None]) -> Iterator[None]:
    """A LastPass that nothing else happens beside."""
    yield
    complete(slice(None))


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

    def sum(self, first: int, add: Callable[[int], None], last_pass: LastPass = by_itself) -> None:
        """Make the model's gradients those of micro-batches number `first`, first + 1, ...

        add: adds the gradients of one of them.  last_pass: is around the last one.
        """
        self._losses = []
        self._sum(first, self._count, self._levels, add, last_pass)

    def losses(self) -> list[float]:
        """Sums of losses of the latest sum(), in the order of their micro-batches; waits for a device."""
        return [*self._losses, self._model.summed_loss]

    def _sum(self, first: int, count: int, levels: int, add: Callable[[int], None], last_pass: LastPass) -> None:
        for level in reversed(range(levels)):
            count //= 2
            self._sum(first, count, level, add, by_itself)
            self._losses.append(self._model.summed_loss)
            self._kept.keep_gradients(level)
            first += count
        self._model.zero_grad()
        for number in range(first, first + count - 1):
            add(number)

        def complete(part: slice) -> None:
            for level in range(levels):
                self._kept.add_kept_gradients(level, part)

        with last_pass(complete):
            add(first + count - 1)


class _KeptOnHost:
    """Sums of gradients that wait for their other half, by level."""

    def __init__(self, model: GPT2) -> None:
        self._model = model
        self._kept: dict[int, Floats] = {}

    def keep_gradients(self, level: int) -> None:
        if level not in self._kept:
            self._kept[level] = self._gradients().copy()
        else:
            self._kept[level][...] = self._gradients()

    def add_kept_gradients(self, level: int, part: slice) -> None:
        self._gradients()[part] += self._kept[level][part]

    def _gradients(self) -> Floats:
        flat = flat_gradients(self._model)
        assert isinstance(flat, HostFlat)
        return flat.values
