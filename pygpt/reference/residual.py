"""Residual connection (He et al. 2016, eq. 1).

forward    y = x1 + x2
backward   dx1 = dy      dx2 = dy
"""

from __future__ import annotations

from .arrays import Array


def forward(x1: Array, x2: Array) -> Array:
    """x1, x2: any one shape.  Returns y of the same shape."""
    return x1 + x2


def backward(dy: Array) -> tuple[Array, Array]:
    """dy: any shape.  Returns dx1 and dx2, both dy itself."""
    return dy, dy
