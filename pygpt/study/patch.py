"""What a changed activation does to the predictions, and to the gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.model import GPT2
from pygpt.reference.arrays import Array, log_sum_exp
from pygpt.study.changes import Change, Part
from pygpt.study.result import Curves, Result
from pygpt.study.trace import Trace, trace


def patch(
    model: GPT2,
    tokens: ArrayLike,
    changes: Sequence[Change],
    words: Sequence[str] | None = None,
    targets: ArrayLike | None = None,
) -> Result:
    """A text, (T,), read with and without changes; words: how its tokens are shown; targets: as in trace().

    Arrays: losses, (2,T), and logits, (2,T,V), without and with the changes, divergence KL(without ‖ with), (T,), and
    gradients: ‖dx‖ of the residual stream at each depth, (2,L+1,T).
    """
    plain, changed = trace(model, tokens, targets), trace(model, tokens, targets, changes)
    both = (plain, changed)
    arrays = {
        name: np.stack([np.asarray(of.activations[name][0], np.float64) for of in both])
        for name in ("losses", "logits")
    }
    log_p, log_q = (z - log_sum_exp(z) for z in arrays["logits"])
    arrays["divergence"] = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    arrays["gradients"] = np.stack([_gradient_norms(of) for of in both])
    top = arrays["logits"].argmax(-1)
    T = plain.tokens.shape[1]
    words = [str(token) for token in plain.tokens[0]] if words is None else words
    rows = [
        (
            t,
            words[t],
            *(float(losses[t]) if plain.targets[0, t] >= 0 else "" for losses in arrays["losses"]),
            float(arrays["divergence"][t]),
            "yes" if top[0, t] == top[1, t] else "no",
        )
        for t in range(T)
    ]
    names = ", ".join(dict.fromkeys(change.name for change in changes))
    title = f"{names} changed: loss {plain.loss:.6f} -> {changed.loss:.6f} nats a token"
    columns = ("position", "token", "loss", "with the change", "KL", "same top token")
    lines = dict(zip(("without", "with"), (of.shown_losses[0] for of in both), strict=True))
    panels = [Curves("loss at each position", np.arange(T), lines, "position", "nats")]
    for label, norms in zip(("without", "with"), arrays["gradients"], strict=True):
        depth = np.arange(len(norms))
        panels.append(
            Curves(f"‖dx‖, {label}", depth, {f"position {t}": norms[:, t] for t in range(T)}, "depth", "norm", log=True)
        )
    return Result(title, columns, rows, arrays, panels)


def part_of(config: GPT2Config, name: str, head: int | None = None, position: int | None = None) -> Part:
    """The index of one head, or one position, or both, of an activation.

    Raises UserError where it has no heads, or the model not so many.
    """
    rows: int | slice = slice(None) if position is None else position
    if head is None:
        return (slice(None), rows)
    if not name.endswith("attn.heads"):
        raise UserError(f"{name} is not split into heads: h.0.attn.heads, of layer 0, is")
    if not 0 <= head < config.n_head:
        raise UserError(f"head is {head}, expected 0 to {config.n_head - 1}")
    return (slice(None), rows, slice(head * config.head_size, (head + 1) * config.head_size))


def _gradient_norms(found: Trace) -> Array:
    """(L+1,T), of the first row."""
    return np.stack([np.linalg.norm(found.activation_gradients[name][0], axis=-1) for name in found.stream])
