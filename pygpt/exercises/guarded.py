"""Layers whose arrays have a margin on both sides, in which nobody may write."""

from __future__ import annotations

from typing import Any

import numpy as np

from pygpt.backends.native_layers import NativeLayers
from pygpt.backends.pointers import Floats
from pygpt.exercises.exercise import WrongResultError

_MARGIN = 256  # numbers
_UNTOUCHED = np.float32(1.2345e-25)  # in them: any sum with it is another number


class GuardedLayers(NativeLayers):
    """Native layers for code that may be wrong.  What they do not write is NaN; what they add to is a copy.

    Raises WrongResultError where one writes beside its array.
    """

    def __init__(self, library: Any) -> None:
        super().__init__(library, "plain")
        self._guarded: list[Floats] = []  # with their margins

    def _new(self, shape: int | tuple[int, ...]) -> Floats:
        inner = np.full(shape, np.nan, np.float32)
        whole = np.pad(inner.reshape(-1), _MARGIN, constant_values=_UNTOUCHED)
        self._guarded.append(whole)
        return whole[_MARGIN:-_MARGIN].reshape(inner.shape)

    def _to(self, given: Floats | None, shape: tuple[int, ...], name: str) -> Floats:
        copy = self._new(shape)
        copy[...] = super()._to(given, shape, name)
        return copy

    def _done(self) -> None:
        guarded, self._guarded = self._guarded, []
        super()._done()
        for whole in guarded:
            for margin, where in ((whole[:_MARGIN], "before the first"), (whole[-_MARGIN:], "after the last")):
                if (margin != _UNTOUCHED).any():
                    place = f"{where} of the {whole.size - 2 * _MARGIN} numbers of a result"
                    raise WrongResultError(f"something is written {place}: is a loop too long?")
