"""One step of the optimizer taken apart: what each tensor's gradient became, and what it was to do to the loss.

g    gradient of the loss        ĝ = g · min(1, max_norm / ‖all g‖)        Δw    what AdamW made of ĝ, m and v
the loss is expected to fall by −⟨g, Δw⟩, to first order; by how much it fell less is curvature
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pygpt.model import GPT2
from pygpt.parameters import parameter_table
from pygpt.reference import adamw, clipping
from pygpt.reference.arrays import Array
from pygpt.study.result import Curves, Result
from pygpt.study.trace import Machine, Trace, run, trace


@dataclass(frozen=True)
class Settings:
    """Those of AdamW; max_norm: to which gradients are clipped, 0 for not at all."""

    lr: float = 1e-3
    beta1: float = adamw.BETA1
    beta2: float = adamw.BETA2
    eps: float = adamw.EPS
    weight_decay: float = adamw.WEIGHT_DECAY
    max_norm: float = 1.0


class Moments(NamedTuple):
    """AdamW's moments of each parameter, by name."""

    first: dict[str, Array]
    second: dict[str, Array]


@dataclass(frozen=True)
class Step:
    """before.gradients are those before clipping; parameters by name in the others, too."""

    before: Trace
    after: Trace  # of the same tokens; its parameters are the new ones
    moments_before: Moments
    moments: Moments  # after the step
    number: int  # from 1
    settings: Settings
    norm: float  # of all gradients together, before clipping
    clip: float  # the factor that clipping gives them

    @cached_property
    def clipped(self) -> dict[str, Array]:
        """The gradients that AdamW gets."""
        return {name: self.clip * g for name, g in self.before.gradients.items()}

    @cached_property
    def updates(self) -> dict[str, Array]:
        """New minus old parameters."""
        return {name: self.change(name) for name in self.before.parameters}

    @property
    def expected_fall(self) -> dict[str, float]:
        """−⟨g, Δw⟩ of each tensor, in nats."""
        gradients = self.before.gradients
        return {name: -_product(gradients[name], update) for name, update in self.updates.items()}

    def change(self, name: str) -> Array:
        """Δ of a parameter or an activation."""
        if name in self.before.parameters:
            return self.after.parameters[name] - self.before.parameters[name]
        return self.after.activations[name] - self.before.activations[name]


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
    first, second = (
        {name: np.array(held[name]) if model.steps else np.zeros_like(w) for name, w in before.parameters.items()}
        for held in (model.first_moments, model.second_moments)
    )
    settings = Settings(lr, *betas, eps, weight_decay, max_norm)
    return _take(Machine.of(model), before, Moments(first, second), model.steps + 1, settings)


def next_step(model: GPT2, taken: Step) -> Step:
    """The step after this one, on the same batch with the same settings; model: the one of the first."""
    return _take(Machine.of(model), taken.after, taken.moments, taken.number + 1, taken.settings)


def _take(machine: Machine, before: Trace, moments: Moments, number: int, settings: Settings) -> Step:
    norm = float(clipping.global_norm(before.gradients.values()))
    clip = settings.max_norm / norm if 0 < settings.max_norm < norm else 1.0
    p, m, v = ({name: x.copy() for name, x in tensors.items()} for tensors in (before.parameters, *moments))
    rates = settings.lr, settings.beta1, settings.beta2, settings.eps
    for parameter in parameter_table(before.config):
        name, decay = parameter.name, settings.weight_decay if parameter.weight_decay else 0.0
        machine.layers.adamw_step(p[name], m[name], v[name], clip * before.gradients[name], *rates, decay, number)
    after = run(machine, before.config, p, before.tokens, before.targets)
    return Step(before, after, moments, Moments(m, v), number, settings, norm, clip)


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
        norms = [_norm(x) for x in (w[name], g[name], taken.clipped[name], taken.moments.first[name])]
        size = _norm(update)
        root = float(np.sqrt(np.mean(taken.moments.second[name], dtype=np.float64)))
        rows.append((name, *norms, root, size, size / norms[0] if norms[0] else "", fall[name]))
    before, after = taken.before.loss, taken.after.loss
    expected = sum(fall.values())
    clip = "not clipped" if taken.clip == 1 else "clipped"
    notes = [
        f"norm of all gradients {taken.norm:.4g}, {clip}",
        f"loss {before:.6f} -> {after:.6f}: fell by {before - after:.4g}, expected {expected:.4g} to first order",
    ]
    arrays = {"loss": np.array([before, after]), "expected_fall": np.array(expected)}
    for label, tensors in (
        ("d ", g),
        ("clipped d ", taken.clipped),
        ("m ", taken.moments.first),
        ("v ", taken.moments.second),
        ("update ", taken.updates),
    ):
        arrays |= {label + name: value for name, value in tensors.items()}
    ratios = np.array([row[7] or np.nan for row in rows], np.float64)
    is_matrix = np.array([value.ndim == 2 for value in taken.updates.values()])
    lines = {kind: np.where(part, ratios, np.nan) for kind, part in (("matrices", is_matrix), ("vectors", ~is_matrix))}
    panel = Curves("‖Δw‖/‖w‖ of each tensor", np.arange(len(rows)), lines, "row", "ratio", log=True, joined=False)
    return Result("one step of AdamW, tensor by tensor", columns, rows, arrays, [panel], notes)


def _norm(x: Array) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64)))


def _product(x: Array, y: Array) -> float:
    return float((np.asarray(x, np.float64) * y).sum())
