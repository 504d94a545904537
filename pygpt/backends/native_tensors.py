"""The tensors of a model in a native library, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pygpt.backends.library import check, ffi, last_error
from pygpt.backends.pointers import Floats, as_floats, expect_shape, floats
from pygpt.errors import UserError

PARAMETER, GRADIENT, FIRST_MOMENT, SECOND_MOMENT, ACTIVATION, ACTIVATION_GRADIENT = range(6)


class NativeTensors(Mapping[str, Floats]):
    """Name -> array of one kind.

    In the host's memory: views, which stay valid whatever becomes of the model.  In a device's, and of moments that the
    optimizer does not use: read-only copies, so that nobody changes one in vain; write() changes the tensor.
    """

    def __init__(self, library: Any, handle: Any, kind: int) -> None:
        self.library, self.handle, self._kind = library, handle, kind
        self._tensors: dict[str, tuple[int, Any]] = {}
        self._flat: Floats | None = None

    def forget(self) -> None:
        """The table or the buffer may have changed: read them again when they are asked for."""
        self._tensors, self._flat = {}, None

    def _table(self) -> dict[str, tuple[int, Any]]:
        """Name -> index, Tensor."""
        if not self._tensors:
            tensors = {}
            count = self.library.gpt2_num_tensors(self.handle, self._kind)
            if count < 0:
                raise UserError(last_error(self.library))
            for index in range(count):
                tensor = ffi().new("Tensor *")
                check(self.library, self.library.gpt2_tensor(self.handle, tensor, self._kind, index))
                tensors[ffi().string(tensor.name).decode()] = index, tensor
            self._tensors = tensors
        return self._tensors

    def flat(self) -> Floats | None:
        """The flat buffer of all tensors, None where it lies in a device's memory or no update has made the moments."""
        if self._flat is None:
            data, size = ffi().new("float **"), ffi().new("int64_t *")
            check(self.library, self.library.gpt2_buffer(self.handle, data, size, self._kind))
            if data[0] == ffi().NULL:
                return None
            # The array keeps `owned` alive, and so the buffer, also when the model lets go of it.
            owned = ffi().gc(data[0], self.library.pygpt_release)
            self._flat = np.frombuffer(ffi().buffer(owned, size[0] * 4), np.float32)
        return self._flat

    def place(self, name: str) -> slice:
        """Where a tensor lies in the flat buffer."""
        _, tensor = self._table()[name]
        return slice(tensor.offset, tensor.offset + tensor.size)

    def finished(self) -> int:
        """How many parts of the gradients backward passes have finished: of each, the head's first, then those of the
        blocks from the last to the first, and the embedding's last.  On the CPU only; any thread may ask.
        """
        return int(self.library.gpt2_finished(self.handle))

    def __getitem__(self, name: str) -> Floats:
        index, tensor = self._table()[name]
        shape = tuple(tensor.shape[0 : tensor.ndim])
        buffer = self.flat()
        if buffer is not None and self.place(name).stop <= buffer.size:
            return buffer[self.place(name)].reshape(shape)
        values = np.empty(shape, np.float32)
        check(self.library, self.library.gpt2_read(self.handle, floats(values), self._kind, index, values.size))
        values.flags.writeable = False
        return values

    def write(self, name: str, values: ArrayLike) -> None:
        """Copy the values into a tensor.  Raises UserError for another shape, KeyError for an unknown name."""
        index, tensor = self._table()[name]
        values = as_floats(values)
        expect_shape(name, values, tuple(tensor.shape[0 : tensor.ndim]))
        arguments = self.handle, floats(values), self._kind, index, values.size
        check(self.library, self.library.gpt2_write(*arguments))
        self._flat = None  # a moment that was not in use has been given room

    def __iter__(self) -> Iterator[str]:
        return iter(self._table())

    def __len__(self) -> int:
        return len(self._table())
