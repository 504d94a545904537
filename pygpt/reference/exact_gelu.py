"""GELU in its exact form (Hendrycks & Gimpel 2016, section 2): x times the probability of a normal number below x.

forward    y = x Φ(x)      Φ(x) = ½ erfc(−x/√2)
backward   dx = dy (Φ(x) + x φ(x))      φ(x) = exp(−½ x²)/√(2π)
"""

from __future__ import annotations

import math

import numpy as np

from .arrays import Array


def forward(x: Array) -> Array:
    """x: any shape.  Returns y of the same shape."""
    return x * normal_distribution(x)


def backward(dy: Array, x: Array) -> Array:
    """dy, x: any one shape.  Returns dx of the same shape."""
    return dy * (normal_distribution(x) + x * normal_density(x))


def normal_distribution(x: Array) -> Array:
    """Φ(x); of a complex x to first order in its imaginary part, with Φ′ = φ, which is all that a complex step asks."""
    values = [0.5 * math.erfc(-value / math.sqrt(2)) for value in x.real.ravel().tolist()]
    y = np.array(values, x.real.dtype).reshape(x.shape)
    return y + 1j * x.imag * normal_density(x.real) if np.iscomplexobj(x) else y


def normal_density(x: Array) -> Array:
    """φ(x)."""
    return np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
