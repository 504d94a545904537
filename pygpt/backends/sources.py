"""Whether a library was built from the sources in this checkout: what an edit has outdated must not pass for the edit.

CMakeLists.txt puts a digest of the sources into each library that it builds. Times would not do: a fresh clone is newer
than an installed library of the same sources.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


class OutdatedLibrary(UserWarning):
    """A library that was built from other sources than those beside it."""


@cache
def digest() -> str | None:
    """What is in a library of this checkout's sources; None where pygpt is installed, and there are none beside it.

    It is that of `sha256sum FILE... | sha256sum`, with the files in the order of their names.
    """
    if not (CHECKOUT / "csrc" / "pygpt.h").is_file():
        return None
    files = [CHECKOUT / "CMakeLists.txt", *CHECKOUT.glob("cuda/**/CMakeLists.txt"), *CHECKOUT.glob("csrc/**/*.[ch]")]
    for ending in ("cu", "cuh", "cpp", "h"):
        files += CHECKOUT.glob(f"cuda/**/*.{ending}")
    listing = hashlib.sha256()
    for name in sorted(file.relative_to(CHECKOUT).as_posix() for file in files):
        listing.update(f"{hashlib.sha256((CHECKOUT / name).read_bytes()).hexdigest()}  {name}\n".encode())
    return listing.hexdigest()


def is_current(library: Path) -> bool:
    """Whether a library was built from the sources beside pygpt; always where there are none."""
    expected = digest()
    return expected is None or expected.encode() in library.read_bytes()
