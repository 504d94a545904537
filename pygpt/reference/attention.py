"""Multi-head self-attention, causal or not (Vaswani et al. 2017, eq. 1 and section 3.2.2).

For each sequence and head, with row t of the queries q, keys k and values v:

    forward    S_tu = c q_t·k_u  (causal: −∞ for u > t)     lse_t = log Σ_u exp(S_tu)      P_tu = exp(S_tu − lse_t)
               y_t = Σ_u m_tu P_tu v_u                     m: dropout's factor, 1 without dropout
    backward   dP_tu = m_tu dy_t·v_u      D_t = Σ_u P_tu dP_tu = dy_t·y_t      dS_tu = P_tu (dP_tu − D_t)
               dq_t = c Σ_u dS_tu k_u      dk_u = c Σ_t dS_tu q_t      dv_u = Σ_t m_tu P_tu dy_t

A causal model looks at what came before (GPT), another one at everything (BERT); nothing else differs.

c is the scale, 1/√HS unless another is given. Only lse is kept, and P is computed again from it, as in FlashAttention-2
(Dao 2023, section 3.1). qkv holds the queries, keys and values of a position side by side, each with its heads side by
side: (B,T,3,NH,HS) as (B,T,3C).
"""

from __future__ import annotations

import math

import numpy as np

from . import dropout as dropout_layer
from .arrays import Array, log_sum_exp
from .dropout import Dropout


def forward(
    qkv: Array, n_head: int, dropout: Dropout | None = None, scale: float | None = None, causal: bool = True
) -> tuple[Array, Array]:
    """qkv: (B,T,3C).  Returns y: (B,T,C) and lse: (B,NH,T), which backward needs."""
    q, k, v = split(qkv, n_head)
    s = scores(q, k, scale, causal)
    lse = log_sum_exp(s)
    p = np.exp(s - lse)
    y = dropout_layer.forward(p, dropout) @ v
    return merge(y), lse[..., 0]


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
    """dy: (B,T,C); y, lse: from forward; qkv: (B,T,3C).  Returns dqkv: (B,T,3C)."""
    q, k, v = split(qkv, n_head)
    p = probabilities(lse, qkv, n_head, scale, causal)
    ds = scores_backward(dy, y, p, v, dropout)
    dq = ds @ k * scale_of(q, scale)
    dk = ds.swapaxes(-1, -2) @ q * scale_of(q, scale)
    dv = dropout_layer.forward(p, dropout).swapaxes(-1, -2) @ heads(dy, n_head)
    return np.concatenate([merge(dq), merge(dk), merge(dv)], axis=-1)


def probabilities(lse: Array, qkv: Array, n_head: int, scale: float | None = None, causal: bool = True) -> Array:
    """lse: (B,NH,T) from forward; qkv: (B,T,3C).  Returns P before dropout: (B,NH,T,T)."""
    q, k, _ = split(qkv, n_head)
    return np.exp(scores(q, k, scale, causal) - lse[..., None])


def scores(q: Array, k: Array, scale: float | None = None, causal: bool = True) -> Array:
    """q, k: (B,NH,T,HS).  Returns S: (B,NH,T,T), where causal −∞ for a key that lies after its query."""
    s = q @ k.swapaxes(-1, -2) * scale_of(q, scale)
    return np.where(np.tri(s.shape[-1], dtype=bool), s, s.dtype.type(-np.inf)) if causal else s


def scale_of(q: Array, scale: float | None) -> float:
    """c: the one that is given, or 1/√HS."""
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def scores_backward(dy: Array, y: Array, p: Array, v: Array, dropout: Dropout | None = None) -> Array:
    """dy, y: (B,T,C); p: (B,NH,T,T); v: (B,NH,T,HS).  Returns dS: (B,NH,T,T); its rows sum to 0."""
    dp = probabilities_backward(dy, v, dropout)
    dy, y = heads(dy, v.shape[1]), heads(y, v.shape[1])
    return p * (dp - (dy * y).sum(-1, keepdims=True))


def probabilities_backward(dy: Array, v: Array, dropout: Dropout | None = None) -> Array:
    """dy: (B,T,C); v: (B,NH,T,HS).  Returns dP: (B,NH,T,T), of keys after their query too, where P is 0."""
    return dropout_layer.backward(heads(dy, v.shape[1]) @ v.swapaxes(-1, -2), dropout)


def split(qkv: Array, n_head: int) -> tuple[Array, Array, Array]:
    """(B,T,3C) into q, k, v: (B,NH,T,HS)."""
    q, k, v = (heads(x, n_head) for x in np.split(qkv, 3, axis=-1))
    return q, k, v


def heads(x: Array, n_head: int) -> Array:
    """(B,T,C) as (B,NH,T,HS)."""
    return x.reshape(*x.shape[:2], n_head, -1).swapaxes(1, 2)


def merge(x: Array) -> Array:
    """(B,NH,T,HS) as (B,T,C): the heads side by side."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1)
