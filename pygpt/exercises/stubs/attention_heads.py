"""The heads: one axis of C channels as NH heads of HS channels, and back.

    split      (B,T,3C)  →  q, k, v, each (B,NH,T,HS)
    merge      (B,NH,T,HS)  →  (B,T,C)

In a row of qkv stand the queries of all heads, then the keys, then the values: (B,T,3,NH,HS) as (B,T,3C). Head h has
channels h·HS ... (h + 1)·HS − 1. Products over the last two axes then work on every head of every sequence at once. A
reshape never moves a number in memory: if you exchange axes with one, the heads are mixed.

Read: docs/layers/attention.md
"""

from __future__ import annotations

import numpy as np


def split(qkv: np.ndarray, n_head: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """qkv: (B,T,3C).  Returns q, k, v: (B,NH,T,HS)."""
    raise NotImplementedError


def merge(x: np.ndarray) -> np.ndarray:
    """x: (B,NH,T,HS).  Returns the heads side by side: (B,T,C)."""
    raise NotImplementedError
