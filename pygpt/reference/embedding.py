"""Embedding: the row of wte that belongs to the token plus the row of wpe that belongs to its position.

    forward    x_bt = wte[token_bt] + wpe[t]
    backward   dwte[token_bt] += dx_bt      dwpe[t] = Σ_b dx_bt

In GPT-2 positions are learned, as in Radford et al. 2018, eq. 2. wpe may also be a table that is fixed (positions.py),
or None, and nothing is added.
"""

from __future__ import annotations

import numpy as np

from .arrays import Array


def forward(tokens: Array, wte: Array, wpe: Array | None) -> Array:
    """tokens: (B,T) integers; wte: (V,C); wpe: (>=T,C) or None.  Returns x: (B,T,C)."""
    return wte[tokens] if wpe is None else wte[tokens] + wpe[: tokens.shape[1]]


def backward(dx: Array, tokens: Array, wte: Array, wpe: Array | None) -> tuple[Array, Array]:
    """dx: (B,T,C); of wte and wpe only the shapes matter.  Returns dwte: (V,C), dwpe: (>=T,C), or (T,C) without wpe."""
    dwte = np.zeros(wte.shape, dx.dtype)
    np.add.at(dwte, tokens, dx)  # unlike dwte[tokens] += dx, it counts a repeated token every time
    dwpe = np.zeros(dx.shape[1:] if wpe is None else wpe.shape, dx.dtype)
    dwpe[: tokens.shape[1]] = dx.sum(0)
    return dwte, dwpe
