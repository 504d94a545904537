"""How much memory there is, and whether it suffices."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pygpt.backends import control_group
from pygpt.backends.devices import DEVICES
from pygpt.errors import UserError


def available_memory(device: str = "cpu") -> int:
    """Bytes that this process may still take: what the machine has, or its control groups (a container) allow.

    Of a device with a memory of its own, what is free there; the emulated one lies in the machine's memory.
    """
    about = DEVICES[device]
    own = [about.memory()[0]] if about.memory else []
    return min([*own, _machine(), *_control_groups()] if about.in_host_memory else own)


def check_memory(needed: int, advice: str, device: str = "cpu") -> None:
    """Raises UserError, with the advice, when more bytes are needed than available to the device."""
    available = available_memory(device)
    if needed <= available:
        return
    sentence = f"{gigabytes(needed)} of memory are needed, and {gigabytes(available)} "
    own = DEVICES[device].memory
    free, total = own() if own else (0, 0)
    if available != free:
        sentence += "are available"
    elif needed > total:
        sentence += f"of the device's {gigabytes(total)} are free"
    else:
        sentence += f"of the device's {gigabytes(total)} are free, because other processes use it"
    raise UserError(f"{sentence}: {advice}")


def gigabytes(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 1e9:.2f} GB"


def _machine() -> int:
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _control_groups() -> list[int]:
    """What the limits of Linux's control groups leave; empty where there are none."""
    return [left for folder in control_group.folders("memory") for left in _left(folder)]


def _left(folder: Path) -> list[int]:
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            cached = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
        except (OSError, ValueError):  # there is no such file; "max" where nothing is set
            continue
        return [left + (int(cached[1]) if cached else 0)]
    return []
