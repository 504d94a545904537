"""AdamW: from a gradient to an update.

    m ← β₁ m + (1 − β₁) g        m̂ = m / (1 − β₁ᵗ)
    v ← β₂ v + (1 − β₂) g²       v̂ = v / (1 − β₂ᵗ)
    w ← w − lr (m̂ / (√v̂ + ε) + λ w)

m and v begin at 0, and would be too small for the first steps t: m̂ and v̂ correct that. The decay λ acts on the
weight itself, not through the gradient, which v would divide (the W of AdamW).

Read: docs/layers/adamw.md; Kingma & Ba 2015; Loshchilov & Hutter 2019, algorithm 2.
"""

from __future__ import annotations

import numpy as np


def update(
    w: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    dw: np.ndarray,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """Update w, m and v in place; they and the gradient dw have one shape; step t counts from 1."""
    raise NotImplementedError
