"""Causal multi-head self-attention.

    S_tu = q_t·k_u / √HS  (u ≤ t, else −∞)      lse_t = log Σ_u exp(S_tu)      P_tu = exp(S_tu − lse_t)
    y_t = Σ_u P_tu v_u                          for each sequence and head

The last three exercises put together: split, scores, softmax, the product with the values, merge.

Read: docs/layers/attention.md; Vaswani et al. 2017, eq. 1 and section 3.2.2.
"""

from __future__ import annotations

import numpy as np


def forward(qkv: np.ndarray, n_head: int) -> tuple[np.ndarray, np.ndarray]:
    """qkv: (B,T,3C).  Returns y: (B,T,C), lse: (B,NH,T)."""
    raise NotImplementedError
