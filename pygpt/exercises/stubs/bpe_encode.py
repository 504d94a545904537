"""Byte pair encoding: from text to tokens, and back.

    merge     In the bytes of a word, the pair that makes the token of the smallest number becomes this token; of
              several, the leftmost. And so on, until no pair makes a token of a number below `below`.
    encode    the numbers of the tokens of all words, split(text)
    decode    the bytes of the tokens, one after another

Not the longest tokens first: the merges are repeated in the order in which they were learned.

Read: docs/bpe.md; Radford et al. 2019, section 2.2.
"""

from __future__ import annotations

from pygpt.reference.bpe import split


def merge(word: bytes, numbers: dict[bytes, int], below: int) -> list[bytes]:
    """The tokens of a word.  numbers: of the tokens; each byte has one, and is below `below`."""
    raise NotImplementedError


def encode(text: str, numbers: dict[bytes, int]) -> list[int]:
    """The tokens of a text."""
    raise NotImplementedError


def decode(tokens: list[int], numbers: dict[bytes, int]) -> bytes:
    """The text of tokens, in UTF-8 as far as they end on the end of a character."""
    raise NotImplementedError
