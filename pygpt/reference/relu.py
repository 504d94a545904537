"""ReLU (Nair & Hinton 2010), with the derivative 0 at 0.

forward    y = max(x, 0)
backward   dx = dy where x > 0, otherwise 0
"""

from __future__ import annotations

import numpy as np

from .arrays import Array


def forward(x: Array) -> Array:
    """x: any shape.  Returns y of the same shape."""
    return np.where(x.real > 0, x, x.dtype.type(0))


def backward(dy: Array, x: Array) -> Array:
    """dy, x: any one shape.  Returns dx of the same shape."""
    return np.where(x.real > 0, dy, dy.dtype.type(0))
