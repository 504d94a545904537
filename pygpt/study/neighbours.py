"""The tokens whose embeddings point in the direction most like a token's: cosine of rows of wte."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pygpt.model import GPT2
from pygpt.reference.arrays import Array
from pygpt.study.result import Map, Result


def neighbours(
    model: GPT2, tokens: Array, count: int = 5, word: Callable[[int], str] = str, known: Array | None = None
) -> Result:
    """Of each different token of tokens, (T,), in their order.

    word: how a token is shown; known: the tokens that may be neighbours, all if not given.
    Arrays: tokens, (n,), and nearest and cosines, (n,count).
    """
    tokens = np.array(list(dict.fromkeys(int(token) for token in tokens)))
    known = np.arange(model.config.vocab_size) if known is None else known
    count = min(count, len(known) - 1)
    wte = np.asarray(model.parameters["wte.weight"], np.float64)
    lengths = np.linalg.norm(wte, axis=1, keepdims=True)
    directions = wte / np.where(lengths > 0, lengths, 1)
    cosines = directions[tokens] @ directions[known].T
    cosines[tokens[:, None] == known] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    nearest, cosines = known[order], np.take_along_axis(cosines, order, 1)
    rows = [
        (word(int(token)), *(f"{word(int(other))} {cosine:.3f}" for other, cosine in zip(others, near, strict=True)))
        for token, others, near in zip(tokens, nearest, cosines, strict=True)
    ]
    columns = ("token", "nearest", *[""] * (count - 1))
    arrays = {"tokens": tokens, "nearest": nearest, "cosines": cosines}
    cosines_among, words = directions[tokens] @ directions[tokens].T, [word(int(token)) for token in tokens]
    among = Map("cosines among the tokens", cosines_among, "token", "token", signed=True, names=words)
    return Result("the nearest embeddings, and the cosine of the angle to them", columns, rows, arrays, [among])
