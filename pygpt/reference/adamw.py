"""AdamW: Adam with the weight decay beside the gradient, not in it (Loshchilov & Hutter 2019, algorithm 2).

m ← β₁ m + (1 − β₁) g        m̂ = m / (1 − β₁ᵗ)
v ← β₂ v + (1 − β₂) g²       v̂ = v / (1 − β₂ᵗ)
w ← w − lr (m̂ / (√v̂ + ε) + λ w)
"""

from __future__ import annotations

import numpy as np

from .arrays import Array

# The defaults of GPT2.adamw_step() and of a training run.
BETA1, BETA2, EPS, WEIGHT_DECAY = 0.9, 0.99, 1e-8, 0.1


def update(
    w: Array,
    m: Array,
    v: Array,
    dw: Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """Update w and its moments m, v in place with the gradient dw, all of one shape; step counts from 1."""
    m[...] = beta1 * m + (1 - beta1) * dw
    v[...] = beta2 * v + (1 - beta2) * dw**2
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    w -= lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * w)
