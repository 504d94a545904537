"""Softmax as a Boltzmann distribution: scores s are energies with the sign turned, β is 1 / temperature.

    p_i = exp(β s_i) / Z      ln Z = β ⟨s⟩ + H      ∂⟨s⟩/∂β = Var s      heat capacity = β² Var s

The scores are those of attention, where β = 1 is the model's own temperature, or the logits of each position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pygpt.errors import UserError
from pygpt.reference.arrays import Array, log_sum_exp
from pygpt.study.result import Curves, Result
from pygpt.study.trace import Trace

BETAS = (0.0, 0.125, 0.25, 0.5, 0.707, 1.0, 1.414, 2.0, 4.0, 8.0)


def thermo(found: Trace, layer: int | None = None, head: int | None = None, betas: Sequence[float] = BETAS) -> Result:
    """Of a head's scores, or of the logits, means over the rows.

    Arrays, (len(betas),rows): those of ensemble(), and beta, (len(betas),).  Raises UserError for a layer without a
    head or the other way round, and for one that the model does not have.
    """
    if (layer is None) != (head is None):
        raise UserError("a head is named by its layer and its number: give both, or neither for the logits")
    if layer is None or head is None:
        s, what = found.activations["logits"], "logits"
    else:
        for name, number, count in (("layer", layer, found.config.n_layer), ("head", head, found.config.n_head)):
            if not 0 <= number < count:
                raise UserError(f"{name} is {number}, expected 0 to {count - 1}")
        s, what = found.activations[f"h.{layer}.attn.scores"][:, head], f"scores of layer {layer}, head {head}"
    s = np.asarray(s, np.float64).reshape(-1, s.shape[-1])
    states = [ensemble(s, beta) for beta in betas]
    arrays = {name: np.stack([state[name] for state in states]) for name in states[0]}
    means = {name: value.mean(-1) for name, value in arrays.items()}
    identity = means["log_z"] - np.asarray(betas) * means["score"] - means["entropy"]
    rows = [
        (float(beta), *(float(values[i]) for values in means.values()), float(identity[i]))
        for i, beta in enumerate(betas)
    ]
    columns = ("β", "ln Z", "⟨s⟩", "H", "Var s", "heat capacity", "ln Z − β⟨s⟩ − H")
    beta = np.asarray(betas, np.float64)
    symbols = dict(zip(means, columns[1:], strict=False))
    panels = [Curves(symbols[name], beta, {what: mean}, "β", symbols[name]) for name, mean in means.items()]
    return Result(f"{what} at the inverse temperature β", columns, rows, {"beta": beta, **arrays}, panels)


def ensemble(s: Array, beta: Any) -> dict[str, Array]:
    """s: (rows,n), −∞ for a state that is not there.  Returns log_z, score, entropy, variance and heat_capacity.

    They have shape (rows,).  beta may be complex, for derivatives by a complex step.
    """
    there = np.isfinite(s)
    s = np.where(there, s, 0.0)
    log_z = log_sum_exp(np.where(there, beta * s, -np.inf))
    log_p = beta * s - log_z
    p = np.where(there, np.exp(log_p), 0.0)
    score = (p * s).sum(-1)
    variance = (p * (s - score[:, None]) ** 2).sum(-1)
    return {
        "log_z": log_z[:, 0],
        "score": score,
        "entropy": -(p * log_p).sum(-1),
        "variance": variance,
        "heat_capacity": beta**2 * variance,
    }
