"""One head of attention: each position's weighted mean of the values before it.

    S_tu = q_t·k_u / √C  (u ≤ t, else −∞)      lse_t = log Σ_u exp(S_tu)      P_tu = exp(S_tu − lse_t)
    y_t = Σ_u P_tu v_u

qkv holds the queries, keys and values of a position side by side: (B,T,C) each, in this order. With one head, HS is
C. lse is all that the backward pass will need of P.

Read: docs/layers/attention.md; Vaswani et al. 2017, eq. 1.
"""

from __future__ import annotations

import numpy as np


def forward(qkv: np.ndarray, n_head: int) -> tuple[np.ndarray, np.ndarray]:
    """qkv: (B,T,3C); n_head: 1.  Returns y: (B,T,C), lse: (B,1,T)."""
    raise NotImplementedError
