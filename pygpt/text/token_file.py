"""Token files in llm.c's format, and how a long row of tokens is spread over several (shards).

    header    256 integers of 32 bits: 20240520, version 1, number of tokens, then zeros
    tokens    16 bits each

All numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pygpt.errors import UserError, reading
from pygpt.files.atomic import write_file

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
LARGEST_VOCAB = 2**16
LARGEST_SHARD = 2**31 - 1
NAMES = re.compile(r"(?:.*_)?(train|val)(?:_\d+)?\.bin")  # llm.c's and nanoGPT's, of a split

_FOREIGN = {
    20240326: "a model of llm.c",
    20240522: "an evaluation file of llm.c",
    20240801: "a file of Llama 3 tokens of llm.c, 32 bits each",
}
_TOKEN = np.dtype("<u2")
_FIELD = np.dtype("<i4")


def read_tokens(path: str | Path) -> NDArray[np.uint16]:
    """A token file's tokens, (n,), mapped into memory and not copied.

    Raises UserError unless the header is one of this format and tells the file's true length.
    """
    path = Path(path)
    with reading(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(HEADER_BYTES)
        if foreign := foreign_tokens(path, head):
            raise UserError(
                f"{path}: is {foreign}, expected a token file of GPT-2's kind (it starts with {MAGIC}); "
                f"prepare the text that it was made from"
            )
        if len(head) < HEADER_BYTES:
            raise UserError(f"{path}: has {size} bytes, fewer than the header of a token file ({HEADER_BYTES})")
        magic, version, count = np.frombuffer(head, _FIELD)[:3].tolist()
        if magic != MAGIC:
            raise UserError(f"{path}: is not a token file: starts with {magic}, expected {MAGIC}")
        if version != VERSION:
            raise UserError(f"{path}: has version {version} of the token format, expected {VERSION}")
        if count < 1:
            raise UserError(f"{path}: the header tells of {count} tokens, expected at least 1")
        if size != HEADER_BYTES + count * _TOKEN.itemsize:
            raise UserError(
                f"{path}: the header tells of {count} tokens, which take {HEADER_BYTES + count * _TOKEN.itemsize} "
                f"bytes, but the file has {size}"
            )
        return np.asarray(np.memmap(file, _TOKEN, "r", HEADER_BYTES, (count,)))


def is_token_file(head: bytes) -> bool:
    """Whether a file that begins with these bytes begins like a token file."""
    return _magic(head) == MAGIC


def foreign_tokens(path: Path, head: bytes) -> str | None:
    """What a file is that holds tokens in a format that read_tokens() does not take; None for any other file.

    head: its first bytes.  Tokens without a header are told by the file's name, and by the zeros that no text has.
    """
    magic = _magic(head)
    if magic not in {MAGIC, *_FOREIGN} and NAMES.fullmatch(path.name) and b"\0" in head:
        return "a file of raw tokens without a header, such as nanoGPT's"
    return _FOREIGN.get(magic)


def write_tokens(path: str | Path, tokens: ArrayLike) -> None:
    """Write one token file, whole or not at all.

    tokens: (n,) integers from 0 to 65535.  Raises UserError when it cannot be written.
    """
    values = _to_file(tokens)
    if not 1 <= len(values) <= LARGEST_SHARD:
        raise UserError(f"{path}: {len(values)} tokens do not make a token file (1 to {LARGEST_SHARD})")
    with write_file(path) as file:
        file.write(_header(len(values)))
        file.write(values.data)


class ShardWriter:
    """Writes tokens as they come into NAME_000000.bin, NAME_000001.bin, ... of at most shard_size tokens each.

    The files are whole when the block ends without an exception. They belong into a folder of
    pygpt.files.atomic.write_files(), which is removed when it does not.
    """

    def __init__(self, folder: Path, name: str, shard_size: int = 10**8) -> None:
        if not 1 <= shard_size <= LARGEST_SHARD:
            raise UserError(f"the shard size is {shard_size} tokens, expected 1 to {LARGEST_SHARD}")
        self.shards: list[tuple[str, int]] = []  # names and numbers of tokens of the finished ones
        self._folder, self._name, self._shard_size = folder, name, shard_size
        self._file: BinaryIO | None = None
        self._count = 0
        self._sha256 = hashlib.sha256()

    def write(self, tokens: ArrayLike) -> None:
        values = _to_file(tokens)
        self._sha256.update(values.data)
        while len(values):
            if self._file is None:
                self._file = (self._folder / self._next_name()).open("wb")
                self._file.write(bytes(HEADER_BYTES))  # until the number of tokens is known
            room = self._shard_size - self._count
            self._file.write(values[:room].data)
            self._count += len(values[:room])
            values = values[room:]
            if self._count == self._shard_size:
                self._finish()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is None:
            return
        if kind is None:
            self._finish()
        else:
            self._file.close()

    @property
    def tokens(self) -> int:
        """How many are in the finished shards."""
        return sum(count for _, count in self.shards)

    @property
    def sha256(self) -> str:
        """Of all tokens written so far, as the files hold them, without headers."""
        return self._sha256.hexdigest()

    def _next_name(self) -> str:
        return f"{self._name}_{len(self.shards):06d}.bin"

    def _finish(self) -> None:
        assert self._file is not None
        with self._file as file:
            file.seek(0)
            file.write(_header(self._count))
        self.shards.append((self._next_name(), self._count))
        self._file, self._count = None, 0


def _magic(head: bytes) -> int:
    return int.from_bytes(head[: _FIELD.itemsize], "little")


def _header(count: int) -> bytes:
    header = np.zeros(256, _FIELD)
    header[:3] = MAGIC, VERSION, count
    return header.tobytes()


def _to_file(tokens: ArrayLike) -> NDArray[np.uint16]:
    values = np.ascontiguousarray(tokens)
    if values.size and (values.min() < 0 or values.max() >= LARGEST_VOCAB):
        raise UserError(
            f"token {values.max() if values.max() >= LARGEST_VOCAB else values.min()} does not fit into a token file, "
            f"which holds 0 to {LARGEST_VOCAB - 1}"
        )
    return values.astype(_TOKEN)
