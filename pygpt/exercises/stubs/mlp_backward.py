"""Back-propagation by hand through two layers.

    forward    h = x W1 + b1      a = GELU(h)      y = a W2 + b2
    backward   from dy to dx, dW1, db1, dW2 and db2

This is the feed-forward part of a block of the Transformer. Compute h and a again, then go back from dy one operation
at a time: each has a gradient that you have written in the exercises before. It is graded by derivatives of the
forward pass, so there is nothing to look up.

Read: docs/layers/linear.md, docs/layers/gelu.md; video 4 of "Neural Networks: Zero to Hero".
"""

from __future__ import annotations

import numpy as np


def mlp_backward(
    dy: np.ndarray, x: np.ndarray, w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, b2: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """dy: (N,C); x: (N,C); w1: (C,I); b1: (I,); w2: (I,C); b2: (C,).  Returns dx, dw1, db1, dw2, db2."""
    raise NotImplementedError
