"""The control groups of Linux, by which containers and schedulers limit what a process may take."""

from __future__ import annotations

import math
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def folders(controller: str) -> list[Path]:
    """The group of this process and those around it, each of which may limit it, in versions 1 and 2.

    controller: "cpu" or "memory".  Empty where there are no control groups.
    """
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)  # of version 2: no controllers
        if controllers and controller not in controllers.split(","):
            continue
        folder = _ROOT / controller if controllers else _ROOT
        found.append(folder)
        for name in group.split("/"):
            if name not in ("", ".."):
                folder /= name
                found.append(folder)
    return found


def cpu_quota() -> float:
    """How many cores' time this process may take, on average; infinite where nothing says so."""
    return min(map(_quota, folders("cpu")), default=math.inf)


def _quota(folder: Path) -> float:
    for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = map(int, " ".join((folder / name).read_text() for name in files).split())
        except (OSError, ValueError):  # there is no such file; "max" where nothing is set
            continue
        if quota > 0:  # -1 where nothing is set
            return quota / period
    return math.inf
