"""Byte pair encoding: how a vocabulary is learned.

    words     split(text) cuts a text into words w, each of which occurs f(w) times; no token crosses a word's end
    tokens    at first the 256 bytes, numbered in the order of BYTES; a word is a sequence of them
    train     n(a, b) = Σ_w f(w) · how often b follows a in w
              The pair with the largest n becomes the next token, ab; of several, the one whose a, then whose b, has the
              smallest number. In every word a b becomes ab, from left to right. And so on.

It ends with vocab_size tokens, the bytes included, or where no pair occurs twice.

Read: docs/bpe.md; Sennrich, Haddow & Birch 2016, algorithm 1; video 9 of "Neural Networks: Zero to Hero".
"""

from __future__ import annotations

from pygpt.reference.bpe import BYTES, split


def train(texts: list[str], vocab_size: int) -> list[tuple[bytes, bytes]]:
    """The pairs (a, b) in the order in which they become tokens."""
    raise NotImplementedError
