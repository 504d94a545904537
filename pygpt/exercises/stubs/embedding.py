"""Embedding: a row of a table for the token, and one for its position.

    forward    x_bt = wte[token_bt] + wpe[t]
    backward   dwte[token_bt] += dx_bt      dwpe[t] = Σ_b dx_bt

Taking a row is a product with a one-hot vector, which nobody computes. Its gradient puts dx back into the row: a
token that occurs several times collects several. numpy's dwte[tokens] += dx adds only one of them.

Read: docs/layers/embedding.md; Radford et al. 2018, eq. 2.
"""

from __future__ import annotations

import numpy as np


def forward(tokens: np.ndarray, wte: np.ndarray, wpe: np.ndarray) -> np.ndarray:
    """tokens: (B,T) integers; wte: (V,C); wpe: (>=T,C).  Returns x: (B,T,C)."""
    raise NotImplementedError


def backward(dx: np.ndarray, tokens: np.ndarray, wte: np.ndarray, wpe: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dx: (B,T,C); of wte and wpe only the shapes matter.  Returns dwte: (V,C), dwpe: (>=T,C)."""
    raise NotImplementedError
