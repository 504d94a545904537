"""GELU, the nonlinearity of GPT-2, in its tanh form.

    forward    y = ½ x (1 + tanh u)      u = √(2/π) (x + 0.044715 x³)
    backward   dx = dy · dy/dx

The derivative is yours to find: the product rule, and tanh′ = 1 − tanh².

Read: docs/layers/gelu.md; Hendrycks & Gimpel 2016, section 2.
"""

from __future__ import annotations

import numpy as np


def forward(x: np.ndarray) -> np.ndarray:
    """x: any shape.  Returns y of the same shape."""
    raise NotImplementedError


def backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """dy, x: any one shape.  Returns dx of the same shape."""
    raise NotImplementedError
