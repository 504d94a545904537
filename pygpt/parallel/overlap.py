"""The sum of gradients over ranks, beside the backward pass that computes them.

A pass finishes the gradients of the head first, then those of the blocks from the last to the first, and those of the
embedding last.  Portions of the flat buffer that are finished are exchanged on another thread while the pass goes on,
between hosts; on one host that gains nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from pygpt.backends.native_tensors import NativeTensors
from pygpt.model import GPT2
from pygpt.parallel.exchange import Exchange
from pygpt.parallel.flat import HostFlat, flat_gradients
from pygpt.parallel.nccl import open_transport
from pygpt.parallel.ranks import Ranks
from pygpt.parallel.tree import by_itself

GRAIN = 2**20
"""Floats: portions begin at multiples of it, so that each is worth a message."""
_PAUSE = 0.001  # seconds between two looks at how far a pass has come


class Portion(NamedTuple):
    """Of the flat buffer of gradients."""

    part: slice
    after: int
    """How many parts of the model a backward pass has finished when it has finished this."""


def portions(places: Mapping[str, slice], size: int, layers: int) -> list[Portion]:
    """Those of a buffer of this size, in the order in which a backward pass finishes them.

    places: of the tensors in it.
    """
    after = np.zeros(-(-size // GRAIN), np.int64)
    for name, place in places.items():
        grains = slice(place.start // GRAIN, -(-place.stop // GRAIN))
        after[grains] = np.maximum(after[grains], _finished_after(name, layers))
    cuts = [0, *(np.flatnonzero(np.diff(after)) + 1).tolist(), len(after)]
    found = [
        Portion(slice(first * GRAIN, min(last * GRAIN, size)), int(after[first]))
        for first, last in itertools.pairwise(cuts)
    ]
    return sorted(found, key=lambda portion: portion.after)


def _finished_after(name: str, layers: int) -> int:
    if name.startswith("h."):
        return layers + 1 - int(name.split(".")[1])
    return layers + 2 if name in ("wte.weight", "wpe.weight") else 1


class GradientExchange:
    """Sums the gradients of a model over ranks."""

    def __init__(self, model: GPT2, ranks: Ranks, gathered: bool) -> None:
        """gathered: each rank gets the sums whole, not only its slices of them."""
        assert isinstance(model.gradients, NativeTensors)
        self._tensors, self._gathered = model.gradients, gathered
        self._gradients = flat_gradients(model)
        size, layers = self._gradients.size, model.config.n_layer
        self._portions = [Portion(slice(0, size), layers + 2)]
        if isinstance(self._gradients, HostFlat) and ranks.hosts > 1:
            self._portions = portions({name: self._tensors.place(name) for name in self._tensors}, size, layers)
        transport = open_transport(model.device, self._gradients, ranks)
        self.exchanges = [Exchange(ranks, portion.part, transport) for portion in self._portions]
        """One for each portion of the flat buffer."""
        self._thread = ThreadPoolExecutor(1)

    @contextlib.contextmanager
    def last_pass(self, complete: Callable[[slice], None]) -> Iterator[None]:
        """As tree.LastPass says; the sums over ranks are there when it has ended."""
        if len(self._portions) == 1:
            with by_itself(complete):
                yield
            self._sum(self.exchanges[0])
        else:
            summed = self._thread.submit(self._sum_portions, self._tensors.finished(), complete)
            yield
            summed.result()

    def _sum_portions(self, finished: int, complete: Callable[[slice], None]) -> None:
        """finished: parts of the model before this pass."""
        for portion, exchange in zip(self._portions, self.exchanges, strict=True):
            while self._tensors.finished() < finished + portion.after:
                time.sleep(_PAUSE)
            complete(portion.part)
            self._sum(exchange)

    def _sum(self, exchange: Exchange) -> None:
        exchange.sum(self._gradients)
        if self._gathered:
            exchange.gather(self._gradients)
