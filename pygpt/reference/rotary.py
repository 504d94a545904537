"""Rotary position embedding (Su et al. 2021, eq. 34): queries and keys are turned by angles that grow with t.

    forward    y_i = x_i cos θ_ti − x_j sin θ_ti      y_j = x_j cos θ_ti + x_i sin θ_ti      j = i + HS/2,  i < HS/2
    backward   the same with −θ: a rotation's transpose turns back
               θ_ti = t / 10000^(2i/HS)

for each query and key of position t; values stay. The scalar product of a query at t with a key at u then depends on
t − u alone. Channel i is turned together with i + HS/2, as in GPT-NeoX and Llama; the paper turns neighbours, 2i and
2i + 1, which is the same model with its channels in another order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .arrays import Array
from .positions import angles


def forward(qkv: Array, n_head: int) -> Array:
    """qkv: (B,T,3C).  Returns it with queries and keys turned."""
    return turn(qkv, n_head, np.arange(qkv.shape[1]))


def backward(dqkv: Array, n_head: int) -> Array:
    """dqkv: (B,T,3C), the gradient of what forward returns.  Returns that of its argument."""
    return turn(dqkv, n_head, -np.arange(dqkv.shape[1]))


def turn(qkv: Array, n_head: int, positions: NDArray[np.integer]) -> Array:
    """qkv: (...,T,3C); positions: (T,), of its rows; a negative one turns back.  Returns qkv turned."""
    *rows, C3 = qkv.shape
    x = qkv.reshape(*rows, 3, n_head, 2, C3 // n_head // 6)
    theta = angles(positions, C3 // n_head // 3)[:, None, None]
    cos, sin = (f(theta).astype(qkv.real.dtype) for f in (np.cos, np.sin))
    y = x.copy()
    first, second = x[..., :2, :, 0, :], x[..., :2, :, 1, :]  # of queries and keys
    y[..., :2, :, 0, :] = first * cos - second * sin
    y[..., :2, :, 1, :] = second * cos + first * sin
    return y.reshape(qkv.shape)
