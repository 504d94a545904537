"""BatchNorm over the rows of each channel, from which LayerNorm came.

    forward    x̂ = (x − μ) r      r = 1/√(σ² + ε)      y = x̂ ⊙ w + b      in training
               μ̄ += m (μ − μ̄)     v̄ += m (σ² − v̄)
    evaluate   y = (x − μ̄) / √(v̄ + ε) ⊙ w + b

μ and σ² are the mean and the variance of a channel over the N rows of the batch (over N, not N − 1), so a row's result
depends on the other rows. Where there is no batch, running means μ̄ and v̄ of what training saw stand in for them.

The backward pass of training is for you to derive: every x of a channel enters μ and r. It is graded by derivatives of
the forward pass. Compare the result with LayerNorm's.

Read: docs/layers/layernorm.md; Ioffe & Szegedy 2015, algorithms 1-2; videos 3-4 of "Neural Networks: Zero to Hero".
"""

from __future__ import annotations

import numpy as np


def batchnorm(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    momentum: float,
    eps: float,
) -> np.ndarray:
    """x: (N,C); the others: (C,).  Returns y: (N,C), and changes running_mean μ̄ and running_var v̄ in place."""
    raise NotImplementedError


def batchnorm_evaluate(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, running_mean: np.ndarray, running_var: np.ndarray, eps: float
) -> np.ndarray:
    """x: (N,C); the others: (C,).  Returns y: (N,C)."""
    raise NotImplementedError


def batchnorm_backward(
    dy: np.ndarray, x: np.ndarray, w: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy, x: (N,C); w: (C,).  Returns dx: (N,C), dw, db: (C,)."""
    raise NotImplementedError
