"""Attention to the first position, where heads that have nothing to say put their weight (Xiao et al. 2023).

    mass       mean of P[t, 0] over t ≥ 1; uniform attention has the mean of 1 / (t + 1)
    entropy    mean of −Σ_u P_tu ln P_tu / ln(t + 1) over t ≥ 1; uniform attention has 1
    ‖k_0‖, ‖v_0‖    as ratios to the mean over the other positions

A head whose mass is large and whose ‖v_0‖ is small adds almost nothing: its sink is a way to do nothing.
"""

from __future__ import annotations

import numpy as np

from pygpt.config import check_causal
from pygpt.reference import attention
from pygpt.reference.arrays import Array
from pygpt.study.result import Map, Result
from pygpt.study.trace import Trace


def sink(found: Trace) -> Result:
    """Arrays, (L,NH), means over the batch: mass, entropy, keys, values; and stream, (L+1,), ‖x_0‖ as such a ratio.

    Raises UserError for a model that is not causal.
    """
    check_causal(found.config, "has attention that only looks back")
    p = np.asarray(found.attention("probabilities"), np.float64)
    T = p.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        h = -np.where(p > 0, p * np.log(p), 0.0).sum(-1)[..., 1:] / np.log(np.arange(2, T + 1))
    keys, values = [], []
    for layer in range(found.config.n_layer):
        _, k, v = attention.split(found.activations[f"h.{layer}.attn.c_attn"], found.config.n_head)
        keys.append(_ratio(k).mean(0))
        values.append(_ratio(v).mean(0))
    arrays = {"mass": p[..., 1:, 0].mean((1, 3)), "entropy": h.mean((1, 3))}
    arrays |= {"keys": np.stack(keys), "values": np.stack(values)}
    rows = [
        (layer, head, *(float(values[layer, head]) for values in arrays.values()))
        for layer, head in np.ndindex(found.config.n_layer, found.config.n_head)
    ]
    stream = np.array([float(_ratio(found.activations[name]).mean()) for name in found.stream])
    titles = ("mass on position 0", "entropy, 1 if uniform", "‖k_0‖ to the others", "‖v_0‖ to the others")
    panels = [Map(title, value, "head", "layer") for title, value in zip(titles, arrays.values(), strict=True)]
    notes = [
        f"uniform attention: mass {(1 / np.arange(2, T + 1)).mean():.4g}",
        f"‖x_0‖ of the stream to the others, by depth: {' '.join(f'{ratio:.3g}' for ratio in stream)}",
    ]
    columns = ("layer", "head", "mass", "entropy", "‖k_0‖", "‖v_0‖")
    return Result("attention to position 0", columns, rows, {**arrays, "stream": stream}, panels, notes)


def _ratio(x: Array) -> Array:
    """x: (...,T,C).  Returns ‖x_0‖ / mean of ‖x_t‖ over t ≥ 1: (...)."""
    norm = np.linalg.norm(np.asarray(x, np.float64), axis=-1)
    others = norm[..., 1:].mean(-1)
    ratio: Array = norm[..., 0] / np.where(others > 0, others, 1)
    return ratio
