"""Weights of eight and of four bits.

    int8     s q      s = bf16(|w*| / 127)      q = round(w / s), from −127 to 127
    int4     s q      s = bf16(w* / −8)         q = round(w / s), from −8 to 7

w* is the largest in magnitude of GROUP = 32 weights that follow each other along the inputs: column n of rows 0 ...
31, 32 ... 63, and so on; the last group may be smaller. There are more negative numbers of four bits than positive
ones, so w* becomes −8, whatever its sign. bf16, from packed.bfloat16, and round are to nearest, ties to even. A group
of zeros stays zero.

Read: docs/generation.md
"""

from __future__ import annotations

import numpy as np

from pygpt.reference import packed


def int8(w: np.ndarray) -> np.ndarray:
    """w: (K,N).  Returns s q, the values that the product will use: (K,N)."""
    raise NotImplementedError


def int4(w: np.ndarray) -> np.ndarray:
    """w: (K,N).  Returns s q: (K,N)."""
    raise NotImplementedError
