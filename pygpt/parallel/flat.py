"""The parameters of a model, or its gradients, as one array of floats, in the host's memory or a device's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pygpt.backends.native_parts import NativeParts
from pygpt.backends.native_tensors import NativeTensors
from pygpt.backends.pointers import Floats
from pygpt.model import GPT2
from pygpt.reference.arrays import Array


class Flat(Protocol):
    """What an exchange reads and changes."""

    @property
    def size(self) -> int: ...

    def read(self, part: slice) -> Floats:
        """The values, or a copy of them."""

    def room(self, part: slice) -> Floats | None:
        """The very memory, to write to; None where the host cannot."""

    def write(self, part: slice, values: Floats) -> None: ...

    def add(self, part: slice, values: Floats) -> None: ...


class HostFlat:
    """A Flat of the host's memory."""

    def __init__(self, values: Floats) -> None:
        self.values = values

    @property
    def size(self) -> int:
        return self.values.size

    def read(self, part: slice) -> Floats:
        return self.values[part]

    def room(self, part: slice) -> Floats | None:
        return self.values[part]

    def write(self, part: slice, values: Floats) -> None:
        self.values[part] = values

    def add(self, part: slice, values: Floats) -> None:
        self.values[part] += values


class DeviceFlat:
    """A Flat of a device's memory; `add` is for gradients."""

    def __init__(self, parts: NativeParts, kind: str) -> None:
        self.kind, self._parts, self.size = kind, parts, parts.size

    def read(self, part: slice) -> Floats:
        return self._parts.read(self.kind, part)

    def room(self, part: slice) -> Floats | None:
        return None

    def write(self, part: slice, values: Floats) -> None:
        self._parts.write(self.kind, part, values)

    def add(self, part: slice, values: Floats) -> None:
        self._parts.add_to_gradients(part, values)


def parts_of(tensors: Mapping[str, Array]) -> NativeParts | None:
    """The parts of the model to which these tensors belong; None where they lie in the host's memory."""
    if isinstance(tensors, NativeTensors) and tensors.flat() is None:
        return NativeParts(tensors.library, tensors.handle)
    return None


def flat_tensors(model: GPT2, kind: str) -> HostFlat | DeviceFlat:
    """kind: "parameters" or "gradients"."""
    tensors = getattr(model, kind)
    assert isinstance(tensors, NativeTensors)
    values = tensors.flat()
    return DeviceFlat(NativeParts(tensors.library, tensors.handle), kind) if values is None else HostFlat(values)
