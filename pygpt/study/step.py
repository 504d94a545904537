"""One step of the optimizer taken apart: what each tensor's gradient became, and what it was to do to the loss.

g    gradient of the loss        ĝ = g · min(1, max_norm / ‖all g‖)        Δw    what AdamW made of ĝ, m and v
the loss is expected to fall by −⟨g, Δw⟩, to first order; by how much it fell less is curvature
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from pygpt.model import GPT2, layers
from pygpt.parameters import parameter_table
from pygpt.reference import adamw, clipping
from pygpt.reference.arrays import Array
from pygpt.study.result import Curves, Result
from pygpt.study.trace import Trace, run, trace


@dataclass(frozen=True)
class Step:
    """before.gradients are those before clipping; parameters by name in the others, too."""

    before: Trace
    after: Trace  # of the same tokens; its parameters are the new ones
    norm: float  # of all gradients together, before clipping
    clipped: dict[str, Array]
    first_moments: dict[str, Array]  # after the step
    second_moments: dict[str, Array]
    updates: dict[str, Array]  # new minus old parameters

    @property
    def expected_fall(self) -> dict[str, float]:
        """−⟨g, Δw⟩ of each tensor, in nats."""
        gradients = self.before.gradients
        return {name: -_product(gradients[name], update) for name, update in self.updates.items()}


def step(
    model: GPT2 | str | Path,
    tokens: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    lr: float = 1e-3,
    max_norm: float = 1.0,
    betas: tuple[float, float] = (adamw.BETA1, adamw.BETA2),
    eps: float = adamw.EPS,
    weight_decay: float = adamw.WEIGHT_DECAY,
) -> Step:
    """The step that clip_grad_norm(max_norm) and adamw_step() would take on a batch; the model stays as it is.

    tokens, targets: as in trace().  The moments are the model's own, 0 in one that was not trained since it was opened.
    """
    if not isinstance(model, GPT2):
        model = GPT2.from_pretrained(model, device="numpy", dtype="float64")
    before = trace(model, tokens, targets)
    ops = layers(model.device, model.dtype, model.kernels)
    clipped = {name: g.copy() for name, g in before.gradients.items()}
    norm = float(clipping.clip(clipped.values(), max_norm))
    p = {name: w.copy() for name, w in before.parameters.items()}
    m, v = (
        {name: np.array(held[name]) if model.steps else np.zeros_like(w) for name, w in p.items()}
        for held in (model.first_moments, model.second_moments)
    )
    for parameter in parameter_table(model.config):
        name, decay = parameter.name, weight_decay if parameter.weight_decay else 0.0
        ops.adamw_step(p[name], m[name], v[name], clipped[name], lr, *betas, eps, decay, model.steps + 1)
    after = run(ops, before.config, p, before.tokens, before.targets)
    updates = {name: w - before.parameters[name] for name, w in p.items()}
    return Step(before, after, norm, clipped, m, v, updates)


def summary(taken: Step) -> Result:
    """Norms of each tensor, and of the update its ratio to the weight.

    Arrays: the new moments and the updates ("m ...", "v ...", "update ..."), the gradients before and after clipping
    ("d ...", "clipped d ..."), loss, (2,): before and after, and expected_fall.
    """
    fall = taken.expected_fall
    w, g = taken.before.parameters, taken.before.gradients
    columns = ("tensor", "‖w‖", "‖g‖", "clipped", "‖m‖", "rms √v", "‖Δw‖", "‖Δw‖/‖w‖", "expected fall")
    rows = []
    for name, update in taken.updates.items():
        norms = [_norm(x) for x in (w[name], g[name], taken.clipped[name], taken.first_moments[name])]
        size = _norm(update)
        root = float(np.sqrt(np.mean(taken.second_moments[name], dtype=np.float64)))
        rows.append((name, *norms, root, size, size / norms[0] if norms[0] else "", fall[name]))
    before, after = taken.before.loss, taken.after.loss
    expected = sum(fall.values())
    clip = "not clipped" if taken.norm == _norm_of_all(taken.clipped) else "clipped"
    notes = [
        f"norm of all gradients {taken.norm:.4g}, {clip}",
        f"loss {before:.6f} -> {after:.6f}: fell by {before - after:.4g}, expected {expected:.4g} to first order",
    ]
    arrays = {"loss": np.array([before, after]), "expected_fall": np.array(expected)}
    for label, tensors in (
        ("d ", g),
        ("clipped d ", taken.clipped),
        ("m ", taken.first_moments),
        ("v ", taken.second_moments),
        ("update ", taken.updates),
    ):
        arrays |= {label + name: value for name, value in tensors.items()}
    ratios = np.array([row[7] or np.nan for row in rows], np.float64)
    panel = Curves("‖Δw‖/‖w‖", np.arange(len(rows)), {"by tensor": ratios}, "tensor", "ratio", log=True)
    return Result("one step of AdamW, tensor by tensor", columns, rows, arrays, [panel], notes)


def _norm(x: Array) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64)))


def _norm_of_all(tensors: dict[str, Array]) -> float:
    return float(clipping.global_norm(tensors.values()))


def _product(x: Array, y: Array) -> float:
    return float((np.asarray(x, np.float64) * y).sum())
