"""Git LFS pointers: the three lines of text that stand for a large file in a clone that was made without Git LFS."""

SENTENCE = "is a Git LFS pointer, not the file itself: run `git lfs pull`, or download the file"


def is_lfs_pointer(data: bytes) -> bool:
    """Whether a file with these contents, or this beginning, is a pointer."""
    return data.startswith(b"version https://git-lfs.github.com/spec/")
