"""GELU in its tanh form, as GPT-2 has it (Hendrycks & Gimpel 2016, section 2).

forward    y = ½ x (1 + t)      t = tanh(u)      u = √(2/π) (x + 0.044715 x³)
backward   dx = dy (½ (1 + t) + ½ x (1 − t²) u′)      u′ = √(2/π) (1 + 3 · 0.044715 x²)
"""

from __future__ import annotations

import math

import numpy as np

from .arrays import Array

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
CUBIC = 0.044715


def forward(x: Array) -> Array:
    """x: any shape.  Returns y of the same shape."""
    t = np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
    return 0.5 * x * (1 + t)


def backward(dy: Array, x: Array) -> Array:
    """dy, x: any one shape.  Returns dx of the same shape."""
    t = np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
    du = SQRT_2_OVER_PI * (1 + 3 * CUBIC * x**2)
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * du)
