"""Weights of few bits with error feedback (GPTQ, Frantar et al. 2023, algorithm 1).

To round each weight to the nearest value is not the best for a layer's output: what is lost at one input can be made up
for at the inputs that follow, as far as these vary together with it in the texts that the model sees. With the layer's
inputs X: (n,K) in some texts,

    minimise |X w − X v|²      H = XᵀX + λ I      U: upper triangular, UᵀU = H⁻¹

Inputs are rounded one after the other: v_k = round(w_k), e = (w_k − v_k) / U_kk, and w_j −= U_kj e for all j > k. The
scale of a group is that of its weights at the moment when its first input is rounded.
"""

from __future__ import annotations

import numpy as np

from .arrays import Array
from .packed import GROUP, rounded, scale_of

DAMPING = 0.01
"""λ, in units of the mean of XᵀX's diagonal."""


def quantise(w: Array, gram: Array, weights: str) -> tuple[Array, Array]:
    """w: (K,N); gram: XᵀX, (K,K); weights: "int8" or "int4".

    Returns v: (K,N), and the scales: (ceil(K/GROUP),N), float32 both.
    """
    K, N = w.shape
    w = w.astype(np.float64)
    h = gram + (DAMPING * np.trace(gram) / K or 1.0) * np.eye(K)  # 1: inputs that are always 0
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    v, scales = np.empty((K, N), np.float32), np.empty((-(-K // GROUP), N), np.float32)
    for first in range(0, K, GROUP):
        last = min(first + GROUP, K)
        scale = scales[first // GROUP] = scale_of(w[first:last].astype(np.float32), weights)
        errors = np.empty((last - first, N))
        for k in range(first, last):
            v[k] = rounded(w[k].astype(np.float32), scale, weights)
            errors[k - first] = (w[k] - v[k]) / u[k, k]
            w[k + 1 : last] -= np.outer(u[k, k + 1 : last], errors[k - first])
        w[last:] -= u[first:last, last:].T @ errors
    return v, scales
