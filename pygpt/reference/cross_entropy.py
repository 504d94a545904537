"""Softmax with cross-entropy: minus the log-probability of the target, in nats.

    forward    loss_n = lse_n − z_n,target      lse_n = log Σ_v exp(z_nv)
    backward   dz_nv = dloss_n (exp(z_nv − lse_n) − [v = target_n])

A row of z may be longer than the vocabulary: the columns behind it are padding, and take no part. A negative target is
left out: loss 0, gradient 0.
"""

from __future__ import annotations

import numpy as np

from .arrays import Array, log_sum_exp


def forward(logits: Array, targets: Array, vocab_size: int | None = None) -> Array:
    """logits z: (...,Vp), Vp >= vocab_size; targets: (...) integers.  Returns losses: (...)."""
    z = logits[..., :vocab_size]
    target = np.maximum(targets, 0)[..., None]
    losses = (log_sum_exp(z) - np.take_along_axis(z, target, -1))[..., 0]
    return np.where(targets < 0, losses.dtype.type(0), losses)


def backward(dlosses: Array, logits: Array, targets: Array, vocab_size: int | None = None) -> Array:
    """dlosses, targets: (...); logits: (...,Vp).  Returns dlogits: (...,Vp), 0 in the padding."""
    z = logits[..., :vocab_size]
    target = np.maximum(targets, 0)[..., None]
    dz = np.exp(z - log_sum_exp(z))
    np.put_along_axis(dz, target, np.take_along_axis(dz, target, -1) - 1, -1)
    dz = dlosses[..., None] * dz
    dlogits = np.zeros(logits.shape, dz.dtype)
    dlogits[..., :vocab_size] = np.where(targets[..., None] < 0, dz.dtype.type(0), dz)
    return dlogits
