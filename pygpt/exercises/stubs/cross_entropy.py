"""Cross-entropy: the loss of a prediction, and the gradient with which the backward pass begins.

    forward    loss_n = lse_n − z_n,target      lse_n = log Σ_v exp(z_nv)
    backward   dz_nv = dloss_n (exp(z_nv − lse_n) − [v = target_n])

The loss is minus the logarithm of the target's probability, in nats; [ ] is 1 where its condition holds and 0
elsewhere. A negative target is left out: loss 0, gradient 0. Each row of dz sums to 0.

−log(softmax(z)) overflows, and loses the digits of a small loss: subtract the logarithms, as the formula does.

Read: docs/layers/cross_entropy.md; video 4 of "Neural Networks: Zero to Hero".
"""

from __future__ import annotations

import numpy as np


def forward(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """logits z: (N,V); targets: (N,) integers.  Returns losses: (N,)."""
    raise NotImplementedError


def backward(dlosses: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """dlosses, targets: (N,); logits: (N,V).  Returns dlogits: (N,V)."""
    raise NotImplementedError
