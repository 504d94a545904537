"""The parameters of a model, or its gradients, as one array of numbers, in the host's memory or a device's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pygpt.backends.native_parts import NativeParts
from pygpt.backends.native_tensors import NativeTensors
from pygpt.backends.pointers import Floats
from pygpt.model import GPT2
from pygpt.reference.arrays import Array


class Flat(Protocol):
    """What an exchange reads and changes."""

    @property
    def size(self) -> int: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def read(self, part: slice) -> NDArray[Any]:
        """The values, or a copy of them."""

    def room(self, part: slice) -> NDArray[Any] | None:
        """The very memory, to write to; None where the host cannot."""

    def write(self, part: slice, values: NDArray[Any]) -> None: ...

    def add(self, part: slice, values: Floats) -> None: ...


class HostFlat:
    """A Flat of the host's memory."""

    dtype = np.dtype(np.float32)

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

    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, parts: NativeParts, kind: str) -> None:
        self.kind, self.parts, self.size = kind, parts, parts.size

    def read(self, part: slice) -> NDArray[Any]:
        return self.parts.read(self.kind, part)

    def room(self, part: slice) -> None:
        return None

    def write(self, part: slice, values: NDArray[Any]) -> None:
        self.parts.write(self.kind, part, values)

    def add(self, part: slice, values: Floats) -> None:
        self.parts.add_to_gradients(part, values)


class RoundedFlat(DeviceFlat):
    """The parameters that layers of dtype bfloat16 read, of which numpy has the bits: half the traffic of float32."""

    dtype = np.dtype(np.uint16)

    def __init__(self, parts: NativeParts) -> None:
        super().__init__(parts, "rounded")

    def read(self, part: slice) -> NDArray[Any]:
        return (super().read(part).view(np.uint32) >> 16).astype(np.uint16)

    def write(self, part: slice, values: NDArray[Any]) -> None:
        super().write(part, (values.astype(np.uint32) << 16).view(np.float32))


def parts_of(model: GPT2) -> NativeParts | None:
    """The parts of a model that lies in a device's memory; None where it lies in the host's."""
    tensors = model.parameters
    if isinstance(tensors, NativeTensors) and tensors.flat() is None:
        return NativeParts(tensors.library, tensors.handle)
    return None


def flat_parameters(model: GPT2) -> HostFlat | DeviceFlat:
    """As the layers read them."""
    parts = parts_of(model)
    if parts is not None and model.dtype == "bfloat16":
        return RoundedFlat(parts)
    return _on_host(model.parameters) if parts is None else DeviceFlat(parts, "parameters")


def flat_gradients(model: GPT2) -> HostFlat | DeviceFlat:
    parts = parts_of(model)
    return _on_host(model.gradients) if parts is None else DeviceFlat(parts, "gradients")


def _on_host(tensors: Mapping[str, Array]) -> HostFlat:
    assert isinstance(tensors, NativeTensors)
    values = tensors.flat()
    assert values is not None
    return HostFlat(values)
