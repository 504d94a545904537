"""What one step on one text writes into the model: into the rows of the embeddings, and into the matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pygpt.model import GPT2
from pygpt.reference.arrays import Array
from pygpt.study.result import Curves, Result
from pygpt.study.step import step
from pygpt.study.trace import Machine, run, trace


def memory(
    model: GPT2,
    tokens: ArrayLike,
    other: ArrayLike,
    *,
    targets: ArrayLike | None = None,
    other_targets: ArrayLike | None = None,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
) -> Result:
    """A step of AdamW on tokens, (T,); other: the tokens of another text, (T',), whose loss is measured as well.

    targets: of each text, as in trace().

    Weight decay, which changes every matrix whatever the text, is off unless it is given.  The optimizer makes the size
    of a step about lr in each number that has a gradient at all, however small; so the third column says what of the
    loss's fall a group was expected to bring.

    Arrays: text and other, (2,T) and (2,T'): losses of each token before and after; wte, and wpe where the model has
    one: ‖Δ‖ of each row.
    """
    taken = step(model, tokens, targets, lr=lr, weight_decay=weight_decay)
    before, after = taken.before, taken.after
    others = trace(model, other, other_targets)
    others_after = run(Machine.of(model), before.config, after.parameters, others.tokens, others.targets)
    T, inputs, targets = before.tokens.shape[1], before.tokens, before.targets[before.targets >= 0]
    of_token, of_position = (np.arange(size) for size in (before.config.vocab_size, before.config.n_positions))
    seen, predicted = np.isin(of_token, inputs), np.isin(of_token, targets)
    groups = [
        ("wte.weight", "tokens of the text", seen | predicted),
        ("wte.weight", "tokens that it does not have", ~(seen | predicted)),
        ("wpe.weight", "positions of the text", of_position < T),
        ("wpe.weight", "positions after it", of_position >= T),
    ]
    groups = [group for group in groups if group[0] in taken.updates]
    changes = {name: np.linalg.norm(np.asarray(taken.updates[name], np.float64), axis=1) for name, _, _ in groups}
    rows: list[tuple[object, ...]] = []
    for name, what, part in groups:
        if part.any():
            size = float(changes[name][part].mean())
            rows.append((name, what, int(part.sum()), size, _fall(before.gradients[name], taken.updates[name], part)))
    for name, update in taken.updates.items():
        if name not in changes:
            size = float(np.linalg.norm(np.asarray(update, np.float64)))
            rows.append((name, "", "", size, taken.expected_fall[name]))
    notes = [
        f"loss of the text        {before.loss:.4f} -> {after.loss:.4f}",
        f"loss of the other text  {others.loss:.4f} -> {others_after.loss:.4f}",
    ]
    pairs = {"text": (before, after), "other": (others, others_after)}
    losses = {name: np.stack([found.activations["losses"][0] for found in pair]) for name, pair in pairs.items()}
    panels = []
    for name, pair in pairs.items():
        lines = dict(zip(("before", "after"), (found.shown_losses[0] for found in pair), strict=True))
        panels.append(Curves(f"loss of the {name}", np.arange(losses[name].shape[1]), lines, "position", "nats"))
    columns = ("tensor", "rows", "number", "mean ‖Δ row‖, or ‖Δw‖", "expected fall")
    arrays = losses | {name.removesuffix(".weight"): value for name, value in changes.items()}
    return Result(f"one step of AdamW on {T} tokens", columns, rows, arrays, panels, notes)


def _fall(gradient: Array, update: Array, part: Array) -> float:
    return 0.0 - float((np.asarray(gradient, np.float64)[part] * update[part]).sum())
