"""Parts of buffers that two ranks send each other by NCCL, from the memory of one's GPU to the other's."""

from __future__ import annotations

from pygpt.backends.devices import DEVICES
from pygpt.backends.native_parts import NativeParts
from pygpt.backends.nccl import nccl_id
from pygpt.parallel.exchange import Transport
from pygpt.parallel.flat import DeviceFlat, Flat
from pygpt.parallel.messages import Messages
from pygpt.parallel.ranks import Ranks


class Nccl:
    """A Transport between devices."""

    def __init__(self, parts: NativeParts, ranks: Ranks) -> None:
        """Returns once all ranks have come here."""
        self._parts = parts
        parts.connect(ranks.from_first(nccl_id(parts.library) if ranks.first else b""), ranks.size, ranks.rank)

    def swap(self, partner: int, values: Flat, outgoing: slice, incoming: slice) -> None:
        assert isinstance(values, DeviceFlat)
        self._parts.exchange(values.kind, partner, outgoing, incoming, adding=False)

    def add(self, partner: int, values: Flat, outgoing: slice, incoming: slice) -> None:
        assert isinstance(values, DeviceFlat)
        self._parts.exchange(values.kind, partner, outgoing, incoming, adding=True)


def nccl_version(device: str) -> str | None:
    """Of NCCL between such devices; None where there is none, and they exchange through the host's memory."""
    version = DEVICES[device].nccl
    return None if version is None else version()


def open_transport(device: str, values: Flat, ranks: Ranks) -> Transport:
    """For these and others of the same model: by NCCL where that is, otherwise by MPI."""
    if isinstance(values, DeviceFlat) and nccl_version(device) is not None:
        return Nccl(values.parts, ranks)
    return Messages(ranks)
