"""Parts of arrays that two ranks send each other by MPI, from the host's memory and to it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pygpt.backends.pointers import Floats
from pygpt.parallel.flat import Flat
from pygpt.parallel.ranks import Ranks

_PIECE = 2**20  # numbers in a message
_UNDER_WAY = 4  # messages each way
_PAUSE = 0.001  # seconds between two looks at a message
EXCHANGE_BYTES = 4 * _PIECE * _UNDER_WAY
"""What an exchange keeps, at most."""


class Messages:
    """A Transport through MPI."""

    def __init__(self, ranks: Ranks) -> None:
        self._world = ranks.world
        self._received: list[Floats] = []

    def swap(self, partner: int, values: Flat, outgoing: slice, incoming: slice) -> None:
        self._exchange(partner, values, outgoing, incoming, values.room, values.write)

    def add(self, partner: int, values: Flat, outgoing: slice, incoming: slice) -> None:
        self._exchange(partner, values, outgoing, incoming, lambda _: None, values.add)

    def _exchange(
        self,
        partner: int,
        values: Flat,
        outgoing: slice,
        incoming: slice,
        room: Callable[[slice], NDArray[Any] | None],
        take: Callable[[slice, NDArray[Any]], None],
    ) -> None:
        """room: where a piece may be received at once; what comes elsewhere is given to `take`."""
        under_way: deque[tuple[Any, Any, slice, NDArray[Any] | None]] = deque()

        def finish() -> None:
            sending, receiving, kept, place = under_way.popleft()
            if receiving is not None:
                _wait(receiving)
            if place is not None:
                take(kept, place)
            if sending is not None:
                _wait(sending)

        for number, (sent, kept) in enumerate(zip_longest(_pieces(outgoing), _pieces(incoming))):
            if number >= _UNDER_WAY:
                finish()
            sending = receiving = place = None
            if kept is not None:
                memory = room(kept)
                if memory is None:
                    memory = place = self._place(number, kept, values.dtype)
                receiving = self._world.Irecv(memory, partner)
            if sent is not None:
                sending = self._world.Isend(values.read(sent), partner)
            under_way.append((sending, receiving, kept, place))
        while under_way:
            finish()

    def _place(self, number: int, piece: slice, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Where a piece waits to be taken."""
        if number >= len(self._received) < _UNDER_WAY:
            self._received.append(np.empty(_PIECE, np.float32))
        return self._received[number % _UNDER_WAY].view(dtype)[: piece.stop - piece.start]


def _wait(request: Any) -> None:
    """Beside the main thread, which computes meanwhile, without the busy-waiting of MPI."""
    if threading.current_thread() is threading.main_thread():
        request.Wait()
        return
    while not request.Test():
        time.sleep(_PAUSE)


def _pieces(part: slice) -> list[slice]:
    return [slice(first, min(first + _PIECE, part.stop)) for first in range(part.start, part.stop, _PIECE)]
