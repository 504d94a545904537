"""Which files of a data set are text.

What a file is instead is told by its first bytes, and where these do not tell, by its name. Files of a known kind that
is not text are never trained on; other binary files are, with a warning, where tokens are bytes.
"""

from __future__ import annotations

import codecs
import re
import shlex
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from pygpt.errors import UserError, reading
from pygpt.files import lfs
from pygpt.text.token_file import foreign_tokens, is_token_file

_HEAD = 4096  # bytes that are looked at
_NAMED = 5  # files in a sentence

_UNPACK = "unpack it first"
_EXTRACT = "extract its text first"
_PREPARE = "prepare the text that it was made from"
_KINDS = [
    (re.compile(pattern, re.DOTALL), what, advice)
    for pattern, what, advice in (
        (rb"\x1f\x8b", "a gzip archive", _UNPACK),
        (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "a bzip2 archive", _UNPACK),
        (rb"\xfd7zXZ\0", "an xz archive", _UNPACK),
        (rb"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
        (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
        (rb"Rar!\x1a\x07", "a rar archive", _UNPACK),
        (rb".{257}ustar", "a tar archive", _UNPACK),
        (rb"PK(\x03\x04|\x05\x06)", "a zip archive (such as .docx or .npz)", _EXTRACT),
        (rb"%PDF-", "a PDF document", _EXTRACT),
        (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", _EXTRACT),
        (rb"PAR1\x15", "a Parquet table", _EXTRACT),
        (rb"ARROW1\0\0|\xff\xff\xff\xff.{4}\x10\0\0\0", "an Arrow table", _EXTRACT),
        (rb"SQLite format 3\0", "an SQLite database", _EXTRACT),
        (rb"\x93NUMPY", "a numpy array", _EXTRACT),
        (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", _EXTRACT),
        (rb"\x80[\x02-\x05][\x95\x8a\x8c\](}c]", "a pickle", _EXTRACT),
        (rb".{5}\0\0\0\{", "a safetensors file", ""),
        (rb"GGUF.\0\0\0", "a GGUF file", ""),
        (rb"\x7fELF", "a program", ""),
        (rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\0{4}|II\*\0|MM\0\*", "an image", ""),
        (rb"RIFF.{4}(WAVE|AVI )|OggS\0|fLaC\0|ID3[\x02-\x04]\0|\0\0\0.ftyp|\x1aE\xdf\xa3", "audio or video", ""),
    )
]
_SUFFIXES = {".pkl": "a pickle", ".pickle": "a pickle", ".arrow": "an Arrow table"}
_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def select_texts(
    files: Sequence[Path], source: str, left_out: Iterable[str] = (), any_bytes: bool = False
) -> tuple[Path, ...]:
    """The files that are text; a warning names the others.

    source: what the files are from; left_out: what else of it is missing, to be named, too; any_bytes: binary files of
    no known kind are taken.  Raises UserError when no text is left, or one is in UTF-16 or UTF-32, a Git LFS
    pointer or unreadable.
    """
    texts: list[Path] = []
    binary: list[str] = []
    others = list(left_out)
    for path in files:
        head = _read_head(path)
        if encoding := _wide_encoding(head):
            name = shlex.quote(str(path))
            raise UserError(
                f"{path}: is {encoding} text, expected UTF-8; to convert it: "
                f"iconv -f {encoding} -t UTF-8 {name} > NEWFILE"
            )
        lfs.refuse_pointer(path, head)
        if kind := _kind(path, head):
            what, advice = kind
            if len(files) == 1 and not others:
                raise UserError(f"{path}: is {what}, expected text" + (advice and f"; {advice}"))
            others.append(f"{path} ({what})")
            continue
        texts.append(path)
        if any_bytes and b"\0" in head:
            binary.append(str(path))
    if not texts:
        raise UserError(f"{source}: holds no file with text in it" + (f", but {listing(others)}" if others else ""))
    if others:
        warnings.warn(f"left out: {listing(others)}", stacklevel=2)
    if binary:
        warnings.warn(f"{listing(binary)}: not text, but taken byte by byte", stacklevel=2)
    return tuple(texts)


def listing(names: Sequence[str]) -> str:
    """Some of the names, and how many more there are."""
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*names[:_NAMED], *more])


def _kind(path: Path, head: bytes) -> tuple[str, str] | None:
    """What a file is that is not text, and what to do with it; None for text and what is not known."""
    if is_token_file(head):
        return "a file of tokens", "--data takes the folder that holds it"
    if what := foreign_tokens(path, head):
        return what, _PREPARE
    for pattern, what, advice in _KINDS:
        if pattern.match(head):
            return what, advice
    if what := _SUFFIXES.get(path.suffix.lower()):
        return what, _EXTRACT
    return None


def _wide_encoding(head: bytes) -> str | None:
    """The name of UTF-16 or UTF-32, by its mark; without one, of UTF-16 that holds little beyond ASCII."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    for encoding, high in (("UTF-16LE", head[1::2]), ("UTF-16BE", head[::2])):
        if len(high) >= 4 and high.count(0) >= 0.9 * len(high):
            text = head.decode(encoding, "replace")
            if all(character.isprintable() or character in "\t\n\r\f" for character in text):
                return encoding
    return None


def _read_head(path: Path) -> bytes:
    with reading(path), path.open("rb") as file:
        return file.read(_HEAD)
