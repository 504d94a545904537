"""The logit lens: what the model would predict if it ended after each block (nostalgebraist 2020).

    z_l = LayerNorm_f(x_l) headᵀ      head = wte unless it has its own
    z_l = x_l headᵀ                   where LayerNorm comes after the sums: blocks leave the stream normalised

x_0 is the embedding and x_L the stream after the last block, so z_L is the logits.
"""

from __future__ import annotations

import numpy as np

from pygpt.reference import classifier, layernorm
from pygpt.reference.arrays import Array, log_sum_exp
from pygpt.study.result import Map, Result
from pygpt.study.trace import Trace


def lens(found: Trace) -> Result:
    """Of each x_l, the mean over the batch.

    Arrays, (L+1,B,T): losses (0 where there is no target), entropy in nats, divergence KL(model ‖ lens), and top, the
    most likely token.
    """
    counts = found.targets >= 0
    arrays = dict.fromkeys(("losses", "entropy", "divergence", "top"), np.zeros(0))
    depths = [_at(found, name, counts) for name in found.stream]
    arrays = {name: np.stack([depth[name] for depth in depths]) for name in arrays}
    rows = []
    for name, losses, entropy, divergence, top in zip(found.stream, *arrays.values(), strict=True):
        loss = float(losses.sum() / max(1, counts.sum()))
        agree = float((top == arrays["top"][-1]).mean())
        rows.append((name, loss, float(entropy.mean()), float(divergence.mean()), agree))
    columns = ("after", "loss", "entropy", "KL to the end", "same top token")
    title = f"the predictions of each depth; loss of the model {found.loss:.6f} nats a token"
    panel = Map("loss, nats", np.where(counts[0], arrays["losses"][:, 0], np.nan), "position", "depth")
    return Result(title, columns, rows, arrays, [panel])


def lens_logits(found: Trace, name: str) -> Array:
    """The logits that an activation of the residual stream would give, in float64: (B,T,V)."""
    p, x = found.parameters, np.asarray(found.activations[name], np.float64)
    if found.config.norm_position == "pre":
        x, _, _ = layernorm.forward(x, p["ln_f.weight"], p.get("ln_f.bias"), found.config.layer_norm_epsilon)
    return classifier.logits(x, p[found.config.head])


def _at(found: Trace, name: str, counts: Array) -> dict[str, Array]:
    z = lens_logits(found, name)
    log_p, log_end = (
        logits - log_sum_exp(logits) for logits in (z, np.asarray(found.activations["logits"], np.float64))
    )
    losses = -np.take_along_axis(log_p, np.maximum(found.targets, 0)[..., None], -1)[..., 0]
    return {
        "losses": np.where(counts, losses, 0.0),
        "entropy": -(np.exp(log_p) * log_p).sum(-1),
        "divergence": (np.exp(log_end) * (log_end - log_p)).sum(-1),
        "top": z.argmax(-1),
    }
