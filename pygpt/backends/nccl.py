"""NCCL, by which the memories of several GPUs exchange parts: where its library is, and which version."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from pygpt.backends.library import OK, check, ffi, last_error
from pygpt.errors import UserError

NAME = "libnccl.so.2"


def installed() -> list[str]:
    """Where it may be: in NVIDIA's Python packages, and where the system looks."""
    folders = [Path(folder, "nvidia") for folder in sys.path]
    return [*(str(path) for folder in folders for path in sorted(folder.glob(f"*/lib/{NAME}"))), NAME]


def open_nccl(library: Any, places: Iterable[str]) -> str | None:
    """Open it, once, at the first of these places, or where PYGPT_NCCL says.

    Returns its version, such as 2.27.3; None where it is absent or PYGPT_NCCL is 0.  Raises UserError where it is not
    what PYGPT_NCCL names.
    """
    named = os.environ.get("PYGPT_NCCL")
    if named == "0":
        return None
    return _open(library, named, tuple(places))


@lru_cache(maxsize=1)  # of two, the library would have the later one
def _open(library: Any, named: str | None, places: tuple[str, ...]) -> str | None:
    for place in [named] if named else places:
        version = ffi().new("int *")
        if library.pygpt_nccl_open(place.encode(), version) == OK:
            return _in_words(version[0])
        failure = last_error(library)
    if named:
        raise UserError(f"PYGPT_NCCL is {named!r}, expected the path of {NAME}, or 0 for none: {failure}")
    return None


def nccl_id(library: Any) -> bytes:
    """What ranks know each other by when they connect, which one makes."""
    identity = ffi().new("char[128]")
    check(library, library.pygpt_nccl_id(identity))
    return bytes(ffi().buffer(identity))


def _in_words(version: int) -> str:
    major, others = divmod(version, 10000 if version >= 10000 else 1000)  # the older ones had one digit less
    return f"{major}.{others // 100}.{others % 100}"
