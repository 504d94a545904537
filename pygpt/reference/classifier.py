"""The head: the embedding matrix once more (Press & Wolf 2017), and cross-entropy.

    forward    z = x wteᵀ      losses = cross-entropy(z, targets)
    backward   dx = dz wte     dwte = dzᵀ x

z is (N,V), the largest array of the model by far, so it exists for `rows` rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pygpt.errors import UserError

from . import cross_entropy, linear
from .arrays import Array, Operands, exact


def logits(x: Array, wte: Array, operands: Operands = exact) -> Array:
    """x: (...,C); wte: (V,C).  Returns z: (...,V)."""
    return linear.forward(x, wte.T, operands=operands)


def forward(
    x: Array,
    wte: Array,
    targets: Array,
    rows: int | None = None,
    operands: Operands = exact,
    stored: Operands = exact,
) -> Array:
    """x: (...,C); wte: (V,C); targets: (...); stored: applied to z.  Returns losses: (...)."""
    losses = np.empty(targets.size, np.result_type(x, wte))
    for part in _parts(targets.size, rows):
        z = stored(logits(linear.rows(x)[part], wte, operands))
        losses[part] = cross_entropy.forward(z, targets.reshape(-1)[part])
    return losses.reshape(targets.shape)


def backward(
    dlosses: Array,
    x: Array,
    wte: Array,
    targets: Array,
    rows: int | None = None,
    operands: Operands = exact,
    stored: Operands = exact,
) -> tuple[Array, Array, Array]:
    """dlosses, targets: (...); x: (...,C); wte: (V,C).  Returns losses: (...), dx: (...,C), dwte: (V,C)."""
    dtype = np.result_type(dlosses, x, wte)
    losses = np.empty(targets.size, dtype)
    dx = np.empty((targets.size, x.shape[-1]), dtype)
    dwte = np.zeros(wte.shape, dtype)
    for part in _parts(targets.size, rows):
        z = stored(logits(linear.rows(x)[part], wte, operands))
        losses[part] = cross_entropy.forward(z, targets.reshape(-1)[part])
        dz = cross_entropy.backward(dlosses.reshape(-1)[part], z, targets.reshape(-1)[part])
        dx[part], dwte_part, _ = linear.backward(dz, linear.rows(x)[part], wte.T, operands)
        dwte += dwte_part.T
    return losses.reshape(targets.shape), dx.reshape(x.shape), dwte


def _parts(size: int, rows: int | None) -> Iterator[slice]:
    if rows is None:
        rows = max(size, 1)
    elif rows < 1:
        raise UserError(f"rows is {rows}, expected at least 1")
    return (slice(first, min(first + rows, size)) for first in range(0, size, rows))
