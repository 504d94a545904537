"""From pieces of text to tokens, in a stream and in the order of the text, by several threads.

tiktoken and file access leave Python's lock. The tokens are the same whatever the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from pygpt.errors import UserError
from pygpt.text.bpe import END_OF_TEXT
from pygpt.text.pieces import Cuts, Piece, groups
from pygpt.text.tokenizer import ByteTokenizer, Tokenizer, Tokens

Input = TypeVar("Input")
Output = TypeVar("Output")
Bar = Any  # tqdm's, which has no types


def progress(what: str, size: int) -> Bar:
    """A bar on a terminal, for so many bytes of text."""
    return tqdm(total=size, desc=what, unit="B", unit_scale=True, disable=None)


def cuts_for(tokenizer: Tokenizer | None) -> Cuts:
    """Where a text may be cut for a tokenizer; None: one of characters, which is still to be made.

    Its mark is what the text says for the end-of-text token.
    """
    if tokenizer is None or tokenizer.eot_token is None:
        mark = END_OF_TEXT.encode()
    else:
        mark = tokenizer.decode_bytes([tokenizer.eot_token])
    return Cuts(words=tokenizer is not None and tokenizer.name == "gpt2", mark=mark)


def characters(pieces: Iterable[Piece], workers: int, bar: Bar) -> str:
    """All that the text holds, sorted."""
    found: set[str] = set()
    for group, some in _in_order(_characters, groups(pieces, Cuts(words=False)), workers):
        found |= some
        bar.update(sum(piece.size for piece in group))
    return "".join(sorted(found))


class Encoder:
    """Encodes pieces of text.

    eot_in_text: the words for the end-of-text token become the token, and otherwise stay text.
    words_left: how many such words have stayed text so far.
    """

    def __init__(self, tokenizer: Tokenizer, eot_in_text: bool, workers: int) -> None:
        self.words_left = 0
        self._tokenizer, self._eot_in_text, self._workers = tokenizer, eot_in_text, workers
        self._cuts = cuts_for(tokenizer)

    def encode(self, pieces: Iterable[Piece], bar: Bar) -> Iterator[Tokens]:
        """The tokens, each file's after an end-of-text token if there is one.

        Raises UserError where a file cannot be read, is not text, or holds what there is no token for.
        """
        for group, (tokens, words) in _in_order(self._encode, groups(pieces, self._cuts), self._workers):
            self.words_left += words
            yield tokens
            bar.update(sum(piece.size for piece in group))

    def _encode(self, group: Sequence[Piece]) -> tuple[Tokens, int]:
        parts, words = [], 0
        eot, mark = self._tokenizer.eot_token, self._cuts.mark
        for piece in group:
            if isinstance(self._tokenizer, ByteTokenizer):
                data = piece.read()
                parts.append(self._tokenizer.encode_bytes(data))
                words += data.count(mark)
                continue
            documents = [piece.read_text()]
            if self._eot_in_text:
                documents = documents[0].split(mark.decode())
            else:
                words += documents[0].count(mark.decode())
            for number, document in enumerate(documents):
                # A file that begins with the words needs no other token before it.
                if eot is not None and (number or (piece.start == 0 and document)):
                    parts.append(np.array([eot], np.int32))
                try:
                    parts.append(self._tokenizer.encode(document))
                except UserError as error:
                    raise UserError(f"{piece.path}: {error} (in bytes {piece.start} to {piece.stop})") from error
        return np.concatenate(parts), words


def _characters(group: Sequence[Piece]) -> set[str]:
    return set().union(*(piece.read_text() for piece in group))


def _in_order(
    function: Callable[[Input], Output], inputs: Iterable[Input], workers: int
) -> Iterator[tuple[Input, Output]]:
    """Each input with the function's result, computed by several threads a few inputs ahead."""
    pending: deque[tuple[Input, Future[Output]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for value in inputs:
                pending.append((value, pool.submit(function, value)))
                if len(pending) > 2 * workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()
