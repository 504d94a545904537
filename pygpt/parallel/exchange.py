"""The sum of an array over all ranks, each rank ending with a slice of it, and arrays put together from such slices.

Recursive halving: a rank and its partner have the same part of the array; each sends the half that the other keeps, and
adds what it gets to its own. Partners are the nearest ranks first, then those two apart, four, ..., so the additions
are the upper levels of a binary tree over ranks, and ranks on one host have summed before anything crosses a network.

    rank    0 1 2 3        with 1 apart       with 2 apart
    keeps                  [0   [1   [0   [1  a quarter each, in the order 0 2 1 3

The slices are put together the same way backwards, by recursive doubling. Both take as much traffic as any other way:
(R - 1) / R of the array, sent and received by each rank. Of R ranks, only the largest power of two takes part; each
rank beyond it gives all it has to one of them beforehand, and gets the result afterwards.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pygpt.backends.library import cpu_library
from pygpt.parallel.flat import Flat
from pygpt.parallel.ranks import Ranks


class Halving(NamedTuple):
    """One step of the way to a slice, or back."""

    partner: int
    kept: slice
    sent: slice


def halvings(rank: int, ranks: int, whole: slice) -> list[Halving]:
    """The steps of a rank among a power of two of them, for this part of an array.

    Slices begin at multiples of the stretches over which a norm is summed, wherever that leaves them.
    """
    unit = cpu_library().PYGPT_SUMMED_APART
    begin, end = whole.start // unit, -(-whole.stop // unit)

    def place(first: int, last: int) -> slice:
        return slice(min(first * unit, whole.stop), min(last * unit, whole.stop))

    steps = []
    apart = 1
    while apart < ranks:
        middle = (begin + end) // 2
        lower, upper = (begin, middle), (middle, end)
        kept, sent = (upper, lower) if rank & apart else (lower, upper)
        steps.append(Halving(rank ^ apart, place(*kept), place(*sent)))
        begin, end = kept
        apart *= 2
    return steps


def slices(ranks: int, whole: slice) -> list[slice]:
    """The slice of each rank; those beyond the largest power of two have none."""
    halving = _halving(ranks)
    owned = [steps[-1].kept if (steps := halvings(rank, halving, whole)) else whole for rank in range(halving)]
    return owned + [slice(whole.start, whole.start)] * (ranks - halving)


def _halving(ranks: int) -> int:
    """How many take part in it."""
    return 1 << (ranks.bit_length() - 1)


class Transport(Protocol):
    """How two ranks exchange parts of an array: what one sends is as large as what the other expects."""

    def swap(self, partner: int, values: Flat, outgoing: slice, incoming: slice) -> None:
        """Send one part, and make the other what the partner sends."""

    def add(self, partner: int, values: Flat, outgoing: slice, incoming: slice) -> None:
        """Send one part, and add what the partner sends to the other."""


class Exchange:
    """Sums float32 arrays, and puts arrays together, or a part of them."""

    def __init__(self, ranks: Ranks, whole: slice, transport: Transport) -> None:
        """whole: the part, which begins at a multiple of the stretches over which a norm is summed."""
        self._ranks, self._transport = ranks, transport
        self._whole, self._none = whole, slice(whole.start, whole.start)
        self._halving = _halving(ranks.size)
        self._beyond = [
            rank for rank in (ranks.rank + self._halving, ranks.rank - self._halving) if 0 <= rank < ranks.size
        ]
        self.slices = slices(ranks.size, whole)
        self.own = self.slices[ranks.rank]
        self._steps = halvings(ranks.rank, self._halving, whole) if ranks.rank < self._halving else []

    def sum(self, values: Flat) -> None:
        """Make values[own] the sum over all ranks; the rest of the part is partly summed then."""
        for partner in self._beyond:
            giving = partner < self._ranks.rank
            parts = (self._whole, self._none) if giving else (self._none, self._whole)
            self._transport.add(partner, values, *parts)
        for step in self._steps:
            self._transport.add(step.partner, values, step.sent, step.kept)

    def gather(self, values: Flat) -> None:
        """Make all of the part what the ranks have in values[own]."""
        for step in reversed(self._steps):
            self._transport.swap(step.partner, values, step.kept, step.sent)
        for partner in self._beyond:
            taking = partner < self._ranks.rank
            parts = (self._none, self._whole) if taking else (self._whole, self._none)
            self._transport.swap(partner, values, *parts)
