"""Git LFS pointers: the few lines that stand in place of a large file where a repository was cloned without git-lfs."""

from __future__ import annotations

POINTER = "is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or download the file"


def is_lfs_pointer(data: bytes) -> bool:
    """Whether a file that begins with these bytes is a pointer (https://github.com/git-lfs/git-lfs, docs/spec.md)."""
    return data.startswith(b"version https://git-lfs.github.com/spec/")
