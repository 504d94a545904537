"""Batches from a folder of token files.

A training batch is made of windows that begin at random places. The windows are numbered, and the place of each is a
function of the seed and its number, so a resumed run draws what the uninterrupted one would have drawn, in batches of
whatever size. Validation reads windows in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pygpt.errors import UserError
from pygpt.reference import philox
from pygpt.text import meta
from pygpt.text.token_file import read_tokens
from pygpt.text.tokenizer import Tokenizer

Batch = tuple[NDArray[np.int32], NDArray[np.int32]]

_STREAM = 2**32 - 1  # of Philox's sampling numbers; generated texts count theirs from 0


class TokenDataset:
    """One split ("train" or "val") of a folder of token files, mapped into memory.

    Raises UserError when the folder or a file in it is not what it should be.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        self.folder = Path(folder)
        self.split = split
        self.meta = meta.read_meta(folder)
        self.described = {"train": self.meta.train, "val": self.meta.val}[split]
        if not self.described.shards:
            raise UserError(f"{self.folder}: holds no {split} tokens")
        self._shards = []
        for shard in self.described.shards:
            tokens = read_tokens(self.folder / shard.file)
            if len(tokens) != shard.tokens:
                raise UserError(
                    f"{self.folder / shard.file}: holds {len(tokens)} tokens, expected the {shard.tokens} that "
                    f"{meta.FILE_NAME} tells of"
                )
            self._shards.append(tokens)
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __len__(self) -> int:
        """The number of tokens."""
        return int(self._ends[-1])

    @property
    def vocab_size(self) -> int:
        return self.meta.tokenizer.vocab_size

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises UserError unless the tokens were made with this tokenizer."""
        made_with = self.meta.tokenizer
        if made_with.name != tokenizer.name or made_with.vocab_size != tokenizer.vocab_size:
            raise UserError(
                f"{self.folder}: was made with a {made_with.name} tokenizer of {made_with.vocab_size} tokens, "
                f"but the model has a {tokenizer.name} tokenizer of {tokenizer.vocab_size}"
            )
        if made_with.fingerprint not in ("", tokenizer.fingerprint):
            raise UserError(
                f"{self.folder}: was made with another vocabulary than the model's, though both are {tokenizer.name} "
                f"tokenizers of {tokenizer.vocab_size} tokens"
            )

    def batch(self, first: int, batch_size: int, seq_len: int, seed: int) -> Batch:
        """The random windows number `first` to first + batch_size - 1.

        Returns tokens and targets, (B,T) each, the targets being the tokens that follow. They depend on the arguments
        alone. Raises UserError when the split is shorter than a window, or holds a token outside the vocabulary.
        """
        places = self._places(seq_len)
        index = np.arange(batch_size, dtype=np.uint64) + np.uint64(first)
        starts = (philox.uniform(seed, _STREAM, index) * places).astype(np.int64)
        return self._windows(starts, seq_len)

    def validation_batches(self, batch_size: int, seq_len: int, max_batches: int | None = None) -> Iterator[Batch]:
        """Windows in order, side by side, each (B,T) like batch()'s; the last batch may have fewer rows.

        With max_batches they are spread evenly over the split where it has more.
        """
        windows = (self._places(seq_len) - 1) // seq_len + 1
        used = windows if max_batches is None else min(windows, max_batches * batch_size)
        starts = np.arange(used) * windows // used * seq_len
        for first in range(0, used, batch_size):
            yield self._windows(starts[first : first + batch_size], seq_len)

    def tokens(self) -> NDArray[np.int32]:
        """All tokens of the split: (n,).  Raises UserError when one is outside the vocabulary."""
        return self._rows(np.zeros(1, np.int64), len(self))[0]

    def _places(self, seq_len: int) -> int:
        """At how many places a window and the token after it can begin."""
        if seq_len < 1:
            raise UserError(f"the sequence length is {seq_len}, expected at least 1")
        if len(self) <= seq_len:
            advice = f"take a sequence length of at most {len(self) - 1}" if len(self) > 1 else "take a longer text"
            raise UserError(
                f"{self.folder}: has {len(self)} {self.split} tokens, but one window takes {seq_len + 1} "
                f"(a sequence length of {seq_len} and the token after it): {advice}"
            )
        return len(self) - seq_len

    def _windows(self, starts: NDArray[np.int64], seq_len: int) -> Batch:
        rows = self._rows(starts, seq_len + 1)
        return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])

    def _rows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int32]:
        """`length` tokens from each start on: (rows, length)."""
        rows = np.empty((len(starts), length), np.int32)
        for row, start in zip(rows, starts.tolist(), strict=True):
            self._copy(row, start)
        if rows.max() >= self.vocab_size:
            self._report(rows, starts)
        return rows

    def _copy(self, row: NDArray[np.int32], start: int) -> None:
        """Fill a row with the tokens from `start` on, over the ends of shards."""
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while len(row):
            begin = start - int(self._ends[shard]) + len(self._shards[shard])
            part = self._shards[shard][begin : begin + len(row)]
            row[: len(part)] = part
            row, start, shard = row[len(part) :], start + len(part), shard + 1

    def _report(self, rows: NDArray[np.int32], starts: NDArray[np.int64]) -> None:
        row, column = np.argwhere(rows >= self.vocab_size)[0]
        position = int(starts[row] + column)
        shard = int(np.searchsorted(self._ends, position, side="right"))
        file = self.described.shards[shard].file
        position -= int(self._ends[shard]) - len(self._shards[shard])
        raise UserError(
            f"{self.folder / file}: token {position} is {rows[row, column]}, outside the vocabulary of "
            f"{self.vocab_size} {self.meta.tokenizer.name} tokens"
        )
