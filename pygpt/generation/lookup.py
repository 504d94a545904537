"""Prompt lookup (Saxena 2023): the text so far proposes what may come next.

The longest run of tokens at the end of the text that stands in it before is looked up, of LONGEST tokens at most, and
the tokens that followed it the last time are the draft.  The model computes the tokens of a draft together, which takes
less time than one by one, and those that it would have drawn itself stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LONGEST = 3
"""Tokens of a run."""

DRAFT = 8
"""Tokens of a draft, unless another number is asked for."""


def draft(text: Sequence[int], count: int) -> list[int]:
    """Tokens that may follow a text: at most `count`, none where no run at its end stands in it before."""
    if count < 1:
        return []
    tokens = np.asarray(text)
    for length in range(min(LONGEST, tokens.size - 1), 0, -1):
        # where runs begin: all but the one at the end
        equal = np.ones(tokens.size - length, bool)
        for i in range(length):
            equal &= tokens[i : i + equal.size] == tokens[tokens.size - length + i]
        if equal.any():
            after = int(np.flatnonzero(equal)[-1]) + length
            return [int(token) for token in tokens[after : after + count]]
    return []
