"""Log-sum-exp, of which softmax is made, without overflow.

    lse = log Σ_v exp(z_v)      softmax(z)_v = exp(z_v − lse)

exp(710) overflows in float64, and exp(89) in float32. But with any number m, log Σ exp(z) = m + log Σ exp(z − m):
choose the m with which no exponent is positive, and not all are very negative. Losses and attention both keep lse and
nothing else of a row.

Read: docs/layers/cross_entropy.md
"""

from __future__ import annotations

import numpy as np


def log_sum_exp(x: np.ndarray) -> np.ndarray:
    """x: (...,V).  Returns lse over the last axis, which stays with length 1: (...,1)."""
    raise NotImplementedError
