"""The linear layer: a matrix product with a bias, and its three gradients.

    forward    y = x W + b
    backward   dx = dy Wᵀ      dW = xᵀ dy      db = Σ_n dy

W is laid out (in, out), as in GPT-2's files. The shapes alone decide where a transposition belongs: dW has to be
(IC,OC), and x is (N,IC). x may have any number of axes before the last: all of them are rows.

Read: docs/layers/linear.md
"""

from __future__ import annotations

import numpy as np


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x: (...,IC); w: (IC,OC); b: (OC,).  Returns y: (...,OC)."""
    raise NotImplementedError


def backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy: (...,OC); x: (...,IC); w: (IC,OC).  Returns dx: (...,IC), dw: (IC,OC), db: (OC,)."""
    raise NotImplementedError
