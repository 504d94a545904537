"""Parts of the flat buffers of a model that lie in a device's memory, for ranks that share its training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pygpt.backends.library import check, ffi
from pygpt.backends.native_tensors import FIRST_MOMENT, GRADIENT, PARAMETER, SECOND_MOMENT
from pygpt.backends.pointers import Floats, floats

ROUNDED = 6

KINDS = {
    "parameters": PARAMETER,
    "gradients": GRADIENT,
    "first_moments": FIRST_MOMENT,
    "second_moments": SECOND_MOMENT,
    "rounded": ROUNDED,
}
"""rounded: the parameters as the layers read them, in the model's dtype."""


class NativeParts:
    """The functions of pygpt.h for several processes.  Slices are of the flat buffers."""

    def __init__(self, library: Any, handle: Any) -> None:
        self.library, self._handle = library, handle

    def _call(self, function: str, *arguments: Any) -> None:
        check(self.library, getattr(self.library, function)(self._handle, *arguments))

    @property
    def size(self) -> int:
        """Floats of each buffer."""
        data, size = ffi().new("float **"), ffi().new("int64_t *")
        self._call("gpt2_buffer", data, size, PARAMETER)
        return int(size[0])

    # ---- sums over micro-batches ----

    def keep_gradients(self, level: int) -> None:
        """Keep a copy on this level."""
        self._call("gpt2_keep_gradients", level)

    def add_kept_gradients(self, level: int, part: slice) -> None:
        """Add it to the gradients, all of them: part is slice(None)."""
        assert part == slice(None)
        self._call("gpt2_add_kept_gradients", level)

    # ---- parts ----

    def read(self, kind: str, part: slice) -> Floats:
        """A copy: (n,)."""
        values = np.empty(part.stop - part.start, np.float32)
        self._call("gpt2_read_part", floats(values), KINDS[kind], part.start, values.size)
        return values

    def write(self, kind: str, part: slice, values: Floats) -> None:
        self._call("gpt2_write_part", floats(np.ascontiguousarray(values)), KINDS[kind], part.start, values.size)

    def add_to_gradients(self, part: slice, values: Floats) -> None:
        self._call("gpt2_add_to_gradients", floats(values), part.start, values.size)

    # ---- the update of a part ----

    def own(self, part: slice) -> None:
        """Leave all else to others in updates, and in memory for moments and, with bfloat16, float32 parameters."""
        self._call("gpt2_own", part.start, part.stop - part.start)
        self._own = part

    def sums_of_squares(self) -> NDArray[np.float64]:
        """Of each stretch of the own gradients."""
        sums = np.empty(-(-(self._own.stop - self._own.start) // self.library.PYGPT_SUMMED_APART))
        self._call("gpt2_sums_of_squares", _doubles(sums))
        return sums

    def clip(self, sums: NDArray[np.float64], max_norm: float) -> float:
        """Clip the own gradients by the norm that the sums of all parts make, and return it."""
        norm = ffi().new("double *")
        self._call("gpt2_clip_part", norm, _doubles(sums), sums.size, max_norm)
        return float(norm[0])

    # ---- NCCL ----

    def connect(self, identity: bytes, ranks: int, rank: int) -> None:
        """Returns once all ranks have called it, with what nccl_id() has given one of them."""
        self._call("gpt2_connect", identity, ranks, rank)

    def exchange(self, kind: str, partner: int, sent: slice, kept: slice, *, adding: bool) -> None:
        """Send a part to the partner, and write what it sends to another part, or add it."""
        sizes = sent.start, sent.stop - sent.start, kept.start, kept.stop - kept.start
        self._call("gpt2_exchange", KINDS[kind], partner, *sizes, adding)


def use_device(library: Any, number: int) -> bytes:
    """Choose a device by its number, which is counted on from the first where there are fewer.  Returns its UUID."""
    identity = ffi().new("uint8_t[16]")
    check(library, library.pygpt_use_device(number, identity))
    return bytes(identity)


def _doubles(values: NDArray[np.float64]) -> Any:
    return ffi().cast("double *", values.ctypes.data)
