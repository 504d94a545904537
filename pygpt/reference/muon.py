"""Muon: the momentum of a matrix, made nearly orthogonal (Jordan et al. 2024).

m ← μ m + g        u = g + μ m        X = u / (‖u‖ + ε)
five times:        X ← (a I + b A + c A²) X        A = X Xᵀ        (Newton-Schulz)
w ← w − lr (√max(1, OC/IC) X + λ w)

w: (IC,OC); ‖·‖ is Frobenius's norm.  Each singular value s of u/‖u‖ becomes p(p(p(p(p(s))))), p(s) = a s + b s³ + c s⁵,
which lies between 0.68 and 1.21 where s is above 0.002; singular vectors stay what they are.
"""

from __future__ import annotations

import numpy as np

from .arrays import Array

MOMENTUM, LEARNING_RATE = 0.95, 0.02  # the defaults of a training run, Jordan's
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7


def orthogonalized(u: Array) -> Array:
    """u: (IC,OC).  Returns a matrix of this shape with the singular vectors of u, and singular values close to 1."""
    a, b, c = COEFFICIENTS
    x = u / (np.sqrt((u**2).sum()) + EPS)
    wide = u.shape[0] <= u.shape[1]
    for _ in range(ITERATIONS):
        gram = x @ x.T if wide else x.T @ x  # the smaller one: p(x) is the same from either side
        polynomial = a * np.eye(len(gram), dtype=x.dtype) + b * gram + c * (gram @ gram)
        x = polynomial @ x if wide else x @ polynomial
    return x


def update(w: Array, m: Array, dw: Array, lr: float, momentum: float, weight_decay: float, parts: int = 1) -> None:
    """Update w and its momentum m in place with the gradient dw: (IC,OC) each.

    parts: w is so many matrices of equal width side by side, each of which is made orthogonal by itself.
    """
    m[...] = momentum * m + dw
    pieces = np.split(dw + momentum * m, parts, axis=1)
    rows, columns = pieces[0].shape
    direction = np.sqrt(max(1, columns / rows)) * np.concatenate([orthogonalized(piece) for piece in pieces], axis=1)
    w -= lr * (direction + weight_decay * w)
