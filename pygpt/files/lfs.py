"""Git LFS pointers: the three lines of text that stand for a large file in a clone that was made without Git LFS."""

from __future__ import annotations

from pathlib import Path

from pygpt.errors import UserError


def refuse_pointer(path: Path, data: bytes) -> None:
    """Raises UserError when a file with these contents, or this beginning, is a pointer."""
    if data.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UserError(f"{path}: is a Git LFS pointer, not the file itself: run `git lfs pull`, or download the file")
