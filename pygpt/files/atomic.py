"""Files that are replaced whole or not at all, whenever the program is killed.

A single file is written beside and renamed. A group of files that belong together (a model's configuration, weights
and tokenizer; a checkpoint) is a transaction in their folder:

    1. the new files are written into FOLDER/.saving and flushed to the disk
    2. .saving is renamed to .saved: from here on the new files are what the folder holds
    3. each file of .saved is renamed over its namesake in FOLDER, and .saved is removed

A program killed before step 2 leaves the old files as they were. Killed after it, it leaves the rest of step 3 to
finish(), which everything that opens such a folder calls first. Two renames of whole folders would be shorter, but
leave a moment in which there is no folder at all, and would lose what else the user keeps in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pygpt.errors import UserError, explained

_SAVING = ".saving"
_SAVED = ".saved"


@contextlib.contextmanager
def write_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the name `path` when the block ends without an exception.

    Raises UserError, and leaves what was there, when the file cannot be written.
    """
    path = Path(path)
    beside = _beside(path)
    with explained(f"{path}: cannot be saved"):
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)


def check_writable(path: str | Path) -> None:
    """Raises UserError before the work whose result write_file() could not write there."""
    path = Path(path)
    with explained(f"{path}: cannot be saved"):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        beside = _beside(path)
        beside.open("wb").close()
        beside.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.saving")


@contextlib.contextmanager
def write_files(folder: str | Path, size: int = 0) -> Iterator[Path]:
    """A folder to write files into, which replace their namesakes in `folder` together when the block ends.

    size: how many bytes will be written, when that is known.
    Raises UserError, and leaves what was there, when they cannot be written, or when there is no space for them.
    """
    folder = Path(folder)
    saving = folder / _SAVING
    with explained(f"{folder}: cannot be saved"):
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        finish(folder)
        shutil.rmtree(saving, ignore_errors=True)
        try:
            free = shutil.disk_usage(folder).free
            if size > free:
                raise UserError(f"{folder}: cannot be saved: {size} bytes are needed, and the device has {free} left")
            saving.mkdir()
            yield saving
            for path in saving.iterdir():
                _flush_file(path)
                if (folder / path.name).is_dir():
                    raise UserError(f"{folder / path.name}: cannot be saved: it is a folder")
            _flush_folder(saving)
            saving.rename(folder / _SAVED)
        except BaseException:
            shutil.rmtree(saving, ignore_errors=True)
            if new:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
        _flush_folder(folder)
        finish(folder)


def finish(folder: str | Path) -> None:
    """Complete a write_files() that was cut short after its files were safe.  Raises UserError when that fails."""
    folder = Path(folder)
    saved = folder / _SAVED
    if not saved.is_dir():
        return
    # A reader may finish a save at the same time as its writer: then some files are already in their places.
    with explained(f"{folder}: an interrupted save cannot be finished"), contextlib.suppress(FileNotFoundError):
        for path in sorted(saved.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                path.replace(folder / path.name)
        _flush_folder(folder)
        saved.rmdir()


def _flush_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
