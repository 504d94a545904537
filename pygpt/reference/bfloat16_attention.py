"""Attention from products of bfloat16, as the fast C kernels compute it: attention.py, rounded.

q, k, v and dy are rounded before anything else, and what is made of them where it is multiplied: in the forward pass
m exp(S − max S), whose sum is divided by afterwards, in the backward pass m P and c dS (csrc/fast/attention_tiles.h).
"""

from __future__ import annotations

import numpy as np

from . import attention
from . import dropout as dropout_layer
from .arrays import Array
from .bfloat16 import round_bfloat16
from .dropout import Dropout


def forward(
    qkv: Array, n_head: int, dropout: Dropout | None = None, scale: float | None = None, causal: bool = True
) -> tuple[Array, Array]:
    """qkv: (B,T,3C) float32.  Returns y: (B,T,C) and lse: (B,NH,T)."""
    q, k, v = attention.split(round_bfloat16(qkv), n_head)
    s = attention.scores(q, k, scale, causal)
    largest = s.max(-1, keepdims=True)
    p = np.exp(s - largest)
    total = p.sum(-1, keepdims=True)
    y = round_bfloat16(dropout_layer.forward(p, dropout)) @ v / total
    return attention.merge(y), (largest + np.log(total))[..., 0]


def backward(
    dy: Array,
    y: Array,
    lse: Array,
    qkv: Array,
    n_head: int,
    dropout: Dropout | None = None,
    scale: float | None = None,
    causal: bool = True,
) -> Array:
    """dy: (B,T,C); y, lse: from forward; qkv: (B,T,3C); all float32.  Returns dqkv: (B,T,3C)."""
    dy, qkv = round_bfloat16(dy), round_bfloat16(qkv)
    q, k, v = attention.split(qkv, n_head)
    p = attention.probabilities(lse, qkv, n_head, scale, causal)
    ds = round_bfloat16(attention.scale_of(q, scale) * attention.scores_backward(dy, y, p, v, dropout))
    dv = round_bfloat16(dropout_layer.forward(p, dropout)).swapaxes(-1, -2) @ attention.heads(dy, n_head)
    return np.concatenate([attention.merge(x) for x in (ds @ k, ds.swapaxes(-1, -2) @ q, dv)], axis=-1)


def probabilities(lse: Array, qkv: Array, n_head: int, scale: float | None = None, causal: bool = True) -> Array:
    """lse: (B,NH,T) from forward; qkv: (B,T,3C).  Returns P before dropout: (B,NH,T,T)."""
    return attention.probabilities(lse, round_bfloat16(qkv), n_head, scale, causal)
