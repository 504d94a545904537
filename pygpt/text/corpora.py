"""Where text comes from: the corpora that have a name, and any file or folder.

stdlib        the sources of the standard library of the running Python: every machine with Python has them
shakespeare   40,000 lines of Shakespeare's plays, one megabyte ("tiny Shakespeare", A. Karpathy 2015), downloaded
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pygpt.errors import UserError, reading
from pygpt.files.download import Download, fetch_file, verify
from pygpt.text.meta import is_token_folder, read_meta
from pygpt.text.text_files import listing

NAMES = ("stdlib", "shakespeare")

_STDLIB_LIMIT = 32 * 2**20  # bytes
_STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """Text in files, or in one that is still to be downloaded."""

    name: str
    source: str  # where it is from
    licence: str
    digest: str  # changes when the text does
    files: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()  # what else is there, each with the reason in brackets
    download: Download | None = None


TINY_SHAKESPEARE = Download(
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    size=1115394,
    file_name="tinyshakespeare.txt",
)


def find_corpus(data: str) -> Corpus:
    """The corpus of this name, or of the file or folder at this path.

    Raises UserError when there is none, or it has no text.
    """
    if data == "stdlib":
        return _stdlib()
    if data == "shakespeare":
        licence = "public domain (Shakespeare's plays)"
        return Corpus(data, TINY_SHAKESPEARE.url, licence, TINY_SHAKESPEARE.sha256, download=TINY_SHAKESPEARE)
    if not data:
        raise UserError("the name or path of the data is empty")
    if "\0" in data:
        raise UserError(f"{data!r}: holds a zero byte, which no path does")
    return _path(Path(data))


def fetch(corpus: Corpus, folder: Path, from_file: str | Path | None, advice: str) -> tuple[Path, ...]:
    """The corpus's files, the checksum of a downloaded one verified.

    folder: where a download is kept; from_file: a copy that makes the download unnecessary; advice: how to do it with a
    copy, for an error.
    Raises UserError when the download fails, or is not what it should be.
    """
    if corpus.download is None:
        if from_file is not None:
            raise UserError(f"--from is for a data set that is downloaded, and {corpus.name} is not")
        return corpus.files
    if from_file is not None:
        verify(corpus.download, Path(from_file))
        return (Path(from_file),)
    return (fetch_file(corpus.download, folder, advice),)


def _stdlib() -> Corpus:
    root = Path(sysconfig.get_paths()["stdlib"])

    def leave_out(folder: Path) -> bool:
        return folder.name in _STDLIB_LEFT_OUT or folder.name.startswith("config-")

    files: list[Path] = []
    size = 0
    for path in _walk(root, leave_out):
        if path.suffix != ".py" or path.name.startswith("_sysconfigdata") or not path.is_file():
            continue
        size += path.stat().st_size
        if size > _STDLIB_LIMIT:
            break
        files.append(path)
    files = _not_empty(files)
    if not files:
        raise UserError(f"{root}: the standard library's sources are not there; --data PATH takes another text")
    source = f"the standard library of Python {platform.python_version()}"
    return Corpus("stdlib", source, "Python Software Foundation License 2", _digest(root, files), tuple(files))


def _path(path: Path) -> Corpus:
    files: list[Path] = []
    left_out: list[str] = []

    def leave_out(folder: Path) -> bool:
        if holds_tokens := is_token_folder(folder):
            left_out.append(f"{folder} (a folder of tokens)")
        return holds_tokens

    try:
        kind = path.stat().st_mode
        if stat.S_ISREG(kind):
            files, root = [path], path.parent
        elif not stat.S_ISDIR(kind):
            raise UserError(f"{path}: is neither a file nor a folder")
        elif is_token_folder(path):
            read_meta(path)  # tells of tokens that are not ours
            raise UserError(f"{path}: holds tokens, expected text; training takes them as they are")
        else:
            root = path
            for found in _walk(root, leave_out):
                if found.is_file():
                    files.append(found)
                else:
                    left_out.append(f"{found} ({'not a file' if found.exists() else 'a broken link'})")
        files = _not_empty(files)
    except FileNotFoundError as error:
        names = ", ".join(NAMES)
        raise UserError(
            f"{error.filename}: there is no such file or folder, and no data set of this name ({names})"
        ) from error
    except OSError as error:
        with reading(error.filename or path):
            raise
    if not files and stat.S_ISREG(kind):
        raise UserError(f"{path}: is empty")
    if not files:
        raise UserError(f"{path}: holds no file with text in it" + (f", but {listing(left_out)}" if left_out else ""))
    absolute = path.resolve()
    name = absolute.stem if stat.S_ISREG(kind) else absolute.name
    digest = _digest(root, files)
    return Corpus(name or "data", str(absolute), "not stated", digest, tuple(files), tuple(left_out))


def _walk(root: Path, leave_out: Callable[[Path], bool]) -> Iterator[Path]:
    """What is under a folder, and under those that links lead to, in the order of the names, but for folders.

    Hidden ones and folders to leave out are passed over. A folder that is reached twice is taken once: the first time.
    """

    def refuse(error: OSError) -> None:
        raise error

    def is_new(folder: Path) -> bool:
        status = folder.stat()
        before = len(seen)
        seen.add((status.st_dev, status.st_ino))
        return len(seen) > before

    seen: set[tuple[int, int]] = set()
    is_new(root)
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        shown = [Path(folder, name) for name in sorted(folders) if not name.startswith(".")]
        folders[:] = [path.name for path in shown if is_new(path) and not leave_out(path)]
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _not_empty(files: Iterable[Path]) -> list[Path]:
    return [path for path in files if path.stat().st_size > 0]


def _digest(root: Path, files: Iterable[Path]) -> str:
    """Of the files' names, sizes and times, so that it is known without reading them."""
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(
            f"{path.relative_to(root).as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(
                "utf-8", "surrogateescape"
            )
        )
    return digest.hexdigest()
