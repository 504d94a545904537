"""A step of attention with a cache of keys and values.

    keys ← keys, k of the new rows      values ← values, v of the new rows
    y_t = Σ_u softmax_u(q_t·k_u / √HS) v_u      over all u ≤ t in the cache, for the new rows t alone

Keys and values of earlier positions do not depend on later tokens, so a new token costs one row of queries instead of
a pass over the whole text. With several new rows, as from a prompt, each still sees only what comes before it: row i
of n new ones, behind t cached positions, sees t + i + 1 positions.

Read: docs/generation.md, docs/layers/attention.md
"""

from __future__ import annotations

import numpy as np


def attend(
    qkv: np.ndarray, keys: np.ndarray, values: np.ndarray, n_head: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """qkv: (n,3C) of new positions; keys, values: (NH,t,HS) of those before; C = NH·HS.

    Returns y: (n,C), and the keys and values of all positions so far: (NH,t+n,HS).
    """
    raise NotImplementedError
