"""LayerNorm over the channels of each row (Ba, Kiros & Hinton 2016, eq. 3-4).

    forward    x̂ = (x − μ) r      r = 1/√(σ² + ε)      y = x̂ ⊙ w + b
    backward   u = w ⊙ dy         dx = r (u − ⟨u⟩ − x̂ ⟨u ⊙ x̂⟩)      dw = Σ_n dy ⊙ x̂      db = Σ_n dy

⟨·⟩ is the mean over channels.
"""

from __future__ import annotations

import numpy as np

from .arrays import Array


def forward(x: Array, w: Array, b: Array | None, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    """x: (...,C); w: (C,); b: (C,) or None.  Returns y: (...,C), and mean, rstd: (...), which backward needs."""
    mean = x.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps)
    y = (x - mean) * rstd * w
    if b is not None:
        y = y + b
    return y, mean[..., 0], rstd[..., 0]


def backward(dy: Array, x: Array, w: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """dy, x: (...,C); w: (C,); mean, rstd: (...) from forward.  Returns dx: (...,C), dw, db: (C,)."""
    mean, rstd = mean[..., None], rstd[..., None]
    x_hat = (x - mean) * rstd
    u = w * dy
    dx = rstd * (u - u.mean(-1, keepdims=True) - x_hat * (u * x_hat).mean(-1, keepdims=True))
    rows = tuple(range(dy.ndim - 1))
    return dx, (dy * x_hat).sum(rows), dy.sum(rows)
