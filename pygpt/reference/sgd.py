"""Stochastic gradient descent, with momentum (Polyak 1964) or without.

m ← μ m + g            without momentum m is g
w ← w − lr (m + λ w)

The weight decay is beside the gradient, as AdamW's (adamw.py), and multiplied by the learning rate.
"""

from __future__ import annotations

from .arrays import Array

MOMENTUM = 0.9  # the default of a training run


def update(w: Array, m: Array | None, dw: Array, lr: float, momentum: float, weight_decay: float) -> None:
    """Update w and its momentum m in place with the gradient dw, all of one shape; m None: without momentum."""
    if m is not None:
        m[...] = momentum * m + dw
    w -= lr * ((dw if m is None else m) + weight_decay * w)
