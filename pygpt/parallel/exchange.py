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

from typing import Any, NamedTuple

import numpy as np

from pygpt.backends.library import cpu_library
from pygpt.backends.pointers import Floats
from pygpt.parallel.ranks import Ranks

_PIECE = 2**20  # floats in a message
_UNDER_WAY = 4  # messages whose numbers wait to be added
EXCHANGE_BYTES = 4 * _PIECE * _UNDER_WAY
"""What an exchange keeps, at most."""


class Halving(NamedTuple):
    """One step of the way to a slice, or back."""

    partner: int
    kept: slice
    sent: slice


def halvings(rank: int, ranks: int, size: int) -> list[Halving]:
    """The steps of a rank among a power of two of them, for an array of this size.

    Slices begin at multiples of the stretches over which a norm is summed, wherever that leaves them.
    """
    unit = cpu_library().PYGPT_SUMMED_APART
    begin, end = 0, -(-size // unit)

    def place(first: int, last: int) -> slice:
        return slice(min(first * unit, size), min(last * unit, size))

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


class Exchange:
    """Sums, and puts together, float32 arrays of one size."""

    def __init__(self, ranks: Ranks, size: int) -> None:
        self._ranks = ranks
        self._halving = 1 << (ranks.size.bit_length() - 1)  # ranks that take part in it
        self._beyond = [
            rank for rank in (ranks.rank + self._halving, ranks.rank - self._halving) if 0 <= rank < ranks.size
        ]
        self.slices = [self._slice(rank, size) for rank in range(ranks.size)]
        """The slice of each rank; those beyond the power of two have none."""
        self.own = self.slices[ranks.rank]
        self._steps = halvings(ranks.rank, self._halving, size) if ranks.rank < self._halving else []
        self._received: list[Floats] = []

    def _slice(self, rank: int, size: int) -> slice:
        if rank >= self._halving:
            return slice(0, 0)
        steps = halvings(rank, self._halving, size)
        return steps[-1].kept if steps else slice(0, size)

    def sum(self, values: Floats) -> None:
        """Make values[own] the sum over all ranks; what is outside it is partly summed then."""
        for partner in self._beyond:
            giving = partner < self._ranks.rank
            self._add(partner, values if giving else values[:0], values[:0] if giving else values)
        for step in self._steps:
            self._add(step.partner, values[step.sent], values[step.kept])

    def gather(self, values: Floats) -> None:
        """Make all of values what the ranks have in values[own]."""
        for step in reversed(self._steps):
            self._swap(step.partner, values[step.kept], values[step.sent])
        for partner in self._beyond:
            taking = partner < self._ranks.rank
            self._swap(partner, values[:0] if taking else values, values if taking else values[:0])

    def _swap(self, partner: int, outgoing: Floats, incoming: Floats) -> None:
        receives = [self._ranks.world.Irecv(piece, partner) for piece in _pieces(incoming)]
        for request in [*self._send(partner, outgoing), *receives]:
            request.Wait()

    def _add(self, partner: int, outgoing: Floats, incoming: Floats) -> None:
        """Send to the partner, and add what it sends."""
        targets = _pieces(incoming)
        if len(self._received) < min(_UNDER_WAY, len(targets)):
            self._received = [np.empty(_PIECE, np.float32) for _ in range(_UNDER_WAY)]
        places = [self._received[i % _UNDER_WAY][: len(target)] for i, target in enumerate(targets)]
        receives = [self._ranks.world.Irecv(place, partner) for place in places[:_UNDER_WAY]]
        sends = self._send(partner, outgoing)
        for i, target in enumerate(targets):
            receives[i].Wait()
            target += places[i]
            if len(receives) < len(targets):
                receives.append(self._ranks.world.Irecv(places[len(receives)], partner))
        for request in sends:
            request.Wait()

    def _send(self, partner: int, outgoing: Floats) -> list[Any]:
        return [self._ranks.world.Isend(piece, partner) for piece in _pieces(outgoing)]


def _pieces(values: Floats) -> list[Floats]:
    return [values[first : first + _PIECE] for first in range(0, len(values), _PIECE)]
