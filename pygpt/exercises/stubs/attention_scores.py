"""Attention's scores, with the causal mask.

    S_tu = q_t·k_u / √HS  for u ≤ t,      −∞ for u > t

How much position t asks of position u, for every head of every sequence. Queries and keys have independent components
of variance 1 at first, so their product has variance HS: the root brings it back to 1. After the softmax, −∞ is a
weight of exactly 0: no position sees a later one.

Read: docs/layers/attention.md; Vaswani et al. 2017, section 3.2.1; video 7 of "Neural Networks: Zero to Hero".
"""

from __future__ import annotations

import numpy as np


def scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """q, k: (B,NH,T,HS).  Returns S: (B,NH,T,T)."""
    raise NotImplementedError
