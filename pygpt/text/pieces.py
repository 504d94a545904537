"""A text in files, cut into pieces that are encoded one by one: which bytes, and where a cut changes no token.

Neither one UTF-8 character nor the words that mark the end of a document are ever cut. For byte pair encoding a cut
lies between a character that is not white space and white space after it: GPT-2's pattern always ends a word there,
whatever follows, so the pieces' tokens are those of the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from pygpt.errors import UserError, reading

CHUNK = 4 * 2**20  # bytes that are encoded at a time
LONGEST_WORD = 64 * 2**20  # bytes after which a cut is made although no word ends

_WINDOW = 2**16
_WORD_END = re.compile(rb"(?<=[^ \t\n\r])[ \t\n\r]")  # in a long run of white space, no match for each character


@dataclass(frozen=True)
class Cuts:
    """Where a text may be cut."""

    words: bool  # only where a word ends
    mark: bytes = b""  # never inside these bytes, but before them


@dataclass(frozen=True)
class Piece:
    """Bytes start ... stop - 1 of a file."""

    path: Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def read(self) -> bytes:
        """Raises UserError when the file cannot be read, or has become shorter."""
        with _open(self.path) as file:
            data = _read_at(file, self.path, self.start, self.size)
        if len(data) != self.size:
            raise UserError(f"{self.path}: became shorter while it was read")
        return data

    def read_text(self) -> str:
        """Without a file's byte order mark.  Raises UserError when it is not UTF-8 text, too."""
        data = self.read()
        advice = "--tokenizer byte takes any bytes"
        if (zero := data.find(0)) >= 0:
            raise UserError(f"{self.path}: is binary: byte {self.start + zero} is 0; {advice}")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            offset = self.start + error.start
            raise UserError(
                f"{self.path}: is not UTF-8 text: byte {offset} is 0x{data[error.start]:02x}; {advice}"
            ) from None
        return text.removeprefix("\ufeff") if self.start == 0 else text


def split_files(files: Sequence[Path], val_fraction: float, cuts: Cuts) -> tuple[list[Piece], list[Piece]]:
    """Divide a text into a part for training and one for validation, of about `val_fraction` of the bytes.

    Whole files go to validation, evenly spread, when that comes near enough to the fraction; otherwise the end of the
    last ones.
    """
    whole = [Piece(path, 0, _size(path)) for path in files]
    train: list[Piece] = []
    val: list[Piece] = []
    seen = taken = 0
    for piece in whole:
        seen += piece.size
        if taken + piece.size / 2 <= val_fraction * seen:
            taken += piece.size
            val.append(piece)
        else:
            train.append(piece)
    if abs(taken - val_fraction * seen) <= val_fraction * seen / 2 and train:
        return train, val
    return _cut(whole, min(int(seen * (1 - val_fraction)), seen - 1), cuts)


def groups(pieces: Iterable[Piece], cuts: Cuts) -> Iterator[list[Piece]]:
    """Cut what is longer than a chunk, and put together what is shorter, in order."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        for part in _chunks(piece, cuts):
            group.append(part)
            size += part.size
            if size >= CHUNK:
                yield group
                group, size = [], 0
    if group:
        yield group


def _cut(pieces: Sequence[Piece], position: int, cuts: Cuts) -> tuple[list[Piece], list[Piece]]:
    """What is before about this byte of all pieces, and what is after it."""
    number = 0
    while position >= pieces[number].size:
        position -= pieces[number].size
        number += 1
    path, stop = pieces[number].path, pieces[number].stop
    with _open(path) as file:
        cut = _safe_cut(file, path, position, stop, cuts)
        if cut == stop:
            cut = _safe_cut(file, path, position, stop, replace(cuts, words=False))
    before, after = Piece(path, 0, cut), Piece(path, cut, stop)
    halves = ([*pieces[:number], before], [after, *pieces[number + 1 :]])
    train, val = ([piece for piece in half if piece.size] for half in halves)
    return train, val


def _chunks(piece: Piece, cuts: Cuts) -> Iterator[Piece]:
    if piece.size <= CHUNK:
        yield piece
        return
    with _open(piece.path) as file:
        start = piece.start
        while start < piece.stop:
            stop = _safe_cut(file, piece.path, start + CHUNK, piece.stop, cuts)
            yield Piece(piece.path, start, stop)
            start = stop


def _safe_cut(file: BinaryIO, path: Path, position: int, stop: int, cuts: Cuts) -> int:
    """The first place from `position` on where a cut changes no token; `stop` if there is none before it."""
    cut = _word_end(file, path, position, stop) if cuts.words else None
    if cut is None:
        following = _read_at(file, path, position, 3)
        inside = 0
        while inside < len(following) and 0x80 <= following[inside] < 0xC0:
            inside += 1
        cut = min(position + inside, stop)
    if cut < stop and cuts.mark:
        before = min(cut, len(cuts.mark) - 1)
        found = _read_at(file, path, cut - before, before + len(cuts.mark) - 1).find(cuts.mark)
        if found >= 0:
            cut += found - before
    return cut


def _word_end(file: BinaryIO, path: Path, position: int, stop: int) -> int | None:
    """The first end of a word from `position` on, or `stop`; None if neither is near."""
    for start in range(position, min(stop, position + LONGEST_WORD), _WINDOW):
        before = min(start, 4)  # the longest character
        window = _read_at(file, path, start - before, min(_WINDOW, stop - start) + before)
        for space in _WORD_END.finditer(window, before):
            character = window[max(0, space.start() - 4) : space.start()].decode("utf-8", "ignore")[-1:]
            if character and not character.isspace():
                return start - before + space.start()
    return stop if stop <= position + LONGEST_WORD else None


def _open(path: Path) -> BinaryIO:
    with reading(path):
        return path.open("rb")


def _read_at(file: BinaryIO, path: Path, position: int, size: int) -> bytes:
    with reading(path):
        file.seek(position)
        return file.read(size)


def _size(path: Path) -> int:
    with reading(path):
        return path.stat().st_size
