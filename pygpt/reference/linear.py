"""Linear layer, W laid out (in, out) as in GPT-2's files.

forward    y = x W + b
backward   dx = dy Wᵀ      dW = xᵀ dy      db = Σ_n dy
"""

from __future__ import annotations

from .arrays import Array, Operands, exact


def forward(x: Array, w: Array, b: Array | None = None, operands: Operands = exact) -> Array:
    """x: (...,IC); w: (IC,OC); b: (OC,) or None.  Returns y: (...,OC)."""
    y = operands(rows(x)) @ operands(w)
    if b is not None:
        y = y + b
    return y.reshape(*x.shape[:-1], w.shape[1])


def backward(dy: Array, x: Array, w: Array, operands: Operands = exact) -> tuple[Array, Array, Array]:
    """dy: (...,OC); x: (...,IC); w: (IC,OC).  Returns dx: (...,IC), dw: (IC,OC), db: (OC,)."""
    dx = operands(rows(dy)) @ operands(w).T
    dw = operands(rows(x)).T @ operands(rows(dy))
    return dx.reshape(x.shape), dw, rows(dy).sum(0)


def rows(x: Array) -> Array:
    """(...,C) as (N,C)."""
    return x.reshape(-1, x.shape[-1])
