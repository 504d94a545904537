"""The residual stream of a deep model, and the factor that keeps its size.

    forward    x_0 = x      x_{k+1} = x_k + g LN(x_k) W_k      k = 0 ... n − 1
    backward   from the gradient of x_n to those of x and of every W_k

LN is LayerNorm without weight and bias, ε = 10⁻⁵. The branches of fresh weights are nearly uncorrelated, so variances
add: with g = 1 the stream grows like √n. GPT-2 has n = 2L branches, and makes their last weights smaller by the
factor that keeps the sum of n branches as large as one. (In a model g is in the weights from the start.)

Backward, the gradient goes through each sum twice: straight on, and through the branch. It is graded by derivatives of
the forward pass.

Read: docs/layers/residual.md, docs/notes/initialisation.md; Radford et al. 2019, section 2.3.
"""

from __future__ import annotations

import numpy as np


def factor(n_layer: int) -> float:
    """g for a model of n_layer blocks, each with an attention branch and a feed-forward branch."""
    raise NotImplementedError


def stream(x: np.ndarray, weights: np.ndarray, g: float) -> tuple[np.ndarray, np.ndarray]:
    """x: (N,C); weights: (n,C,C).  Returns x_n, and the standard deviation of each x_k over all elements: (n+1,)."""
    raise NotImplementedError


def stream_backward(dy: np.ndarray, x: np.ndarray, weights: np.ndarray, g: float) -> tuple[np.ndarray, np.ndarray]:
    """dy: (N,C), the gradient of x_n.  Returns dx: (N,C), dweights: (n,C,C)."""
    raise NotImplementedError
