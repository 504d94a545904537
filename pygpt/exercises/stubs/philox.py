"""Philox4x32-10: random numbers from a counter instead of a state.

Ten rounds of

    (c0, c1, c2, c3) ← (hi(M1 c2) ⊕ c1 ⊕ k0,  lo(M1 c2),  hi(M0 c0) ⊕ c3 ⊕ k1,  lo(M0 c0))

with M0 = 0xD2511F53, M1 = 0xCD9E8D57; hi and lo are the halves of a product of 64 bits. After each round k0 grows by
0x9E3779B9 and k1 by 0xBB67AE85, modulo 2³². Any number can be drawn without those before it, so every thread draws
its own, and a mask is drawn again instead of being stored.

Read: docs/layers/dropout.md; Salmon, Moraes, Dror & Shaw 2011, section 3.3.
"""

from __future__ import annotations

import numpy as np


def philox4x32(counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: tuple[int, int]) -> np.ndarray:
    """counter: four uint64 arrays of one shape, below 2^32; key: two such integers.  Returns words: (...,4)."""
    raise NotImplementedError
