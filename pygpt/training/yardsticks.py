"""Losses with which to compare that of a run: those of much simpler predictors, on a sample of the same text.

    uniform    ln V
    unigram    p₁(b) = (n(b) + 1) / (N + V)
    bigram     p₂(b|a) = (n(ab) + d(a) p₁(b)) / (n(a) + d(a))      d(a): how many different tokens follow a
    gzip       ln 2 times the bits of the compressed text

n counts the training tokens, and the loss is that of the validation tokens. The bigrams are smoothed as by Witten and
Bell (1991): d(a) of n(a) + d(a) times something new is expected after a.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from pygpt.text.batches import TokenDataset
from pygpt.text.tokenizer import Tokenizer

TRAINING_SAMPLE = 2**20  # tokens
VALIDATION_SAMPLE = 2**18
_WINDOW = 4096


@dataclass(frozen=True)
class Yardsticks:
    """Nats per token."""

    uniform: float
    unigram: float
    bigram: float
    gzip: float

    def describe(self, tokens_per_byte: float | None) -> str:
        """One line; per byte too, where that is known and another number."""

        def losses(factor: float) -> str:
            return ", ".join(f"{name} {loss * factor:.2f}" for name, loss in asdict(self).items())

        per_byte = "" if tokens_per_byte in (None, 1) else f"; per byte: {losses(tokens_per_byte or 0)}"
        return f"{losses(1)} nats per token{per_byte}"


def measure(train: TokenDataset, val: TokenDataset, tokenizer: Tokenizer) -> Yardsticks:
    """From at most TRAINING_SAMPLE and VALIDATION_SAMPLE tokens, in windows spread evenly over the splits."""
    V = tokenizer.vocab_size
    before, after = _pairs(train, TRAINING_SAMPLE)
    val_before, val_after = _pairs(val, VALIDATION_SAMPLE)
    p1 = (np.bincount(after, minlength=V) + 1) / (len(after) + V)
    pairs, counts = np.unique(before * V + after, return_counts=True)
    n = np.bincount(before, minlength=V)[val_before]
    d = np.bincount(pairs // V, minlength=V)[val_before]
    wanted = val_before * V + val_after
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    n_pair = np.where(pairs[place] == wanted, counts[place], 0)
    new = n == 0  # in validation, after which nothing has been counted
    p2 = np.where(new, p1[val_after], (n_pair + d * p1[val_after]) / np.maximum(n + d, 1))
    text = tokenizer.decode_bytes(val_after[np.isin(val_after, tokenizer.known_tokens())])
    return Yardsticks(
        math.log(V),
        float(-np.log(p1[val_after]).mean()),
        float(-np.log(p2).mean()),
        math.log(2) * 8 * len(zlib.compress(text, 9)) / len(val_after),
    )


def _pairs(dataset: TokenDataset, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """About `size` neighbouring tokens, or all if there are fewer: (n,) (n,), the second follows the first."""
    window = min(_WINDOW, len(dataset) - 1)
    tokens, targets = next(dataset.validation_batches(size // window, window, 1))
    return tokens.reshape(-1).astype(np.int64), targets.reshape(-1).astype(np.int64)
