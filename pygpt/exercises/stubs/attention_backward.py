"""Attention's backward pass.

    dP_tu = dy_t·v_u      D_t = Σ_u P_tu dP_tu = dy_t·y_t      dS_tu = P_tu (dP_tu − D_t)
    dq_t = Σ_u dS_tu k_u / √HS      dk_u = Σ_t dS_tu q_t / √HS      dv_u = Σ_t P_tu dy_t

P is computed again from lse. Two sums go over u, the past of a position; dk and dv go over t, its future, so a
transposition stands there. Each row of dS sums to 0: a softmax does not see a constant that is added to its inputs.

Derive D_t = dy_t·y_t: it is what spares FlashAttention a T × T matrix.

Read: docs/layers/attention.md; Dao 2023, section 3.1.
"""

from __future__ import annotations

import numpy as np


def backward(dy: np.ndarray, y: np.ndarray, lse: np.ndarray, qkv: np.ndarray, n_head: int) -> np.ndarray:
    """dy: (B,T,C); y: (B,T,C) and lse: (B,NH,T) from forward; qkv: (B,T,3C).  Returns dqkv: (B,T,3C)."""
    raise NotImplementedError
