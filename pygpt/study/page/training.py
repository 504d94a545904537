"""Training steps on one text, each with the passes before and after it.

g ← g · min(1, max_norm / ‖g‖)      w ← w + Δw: AdamW (pygpt/reference/adamw.py)      promised ⟨g, Δw⟩ = Σ g Δw
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pygpt.backends.interface import Layers
from pygpt.config import GPT2Config
from pygpt.model import layers
from pygpt.parameters import parameter_table
from pygpt.reference import adamw, clipping
from pygpt.reference.arrays import Array
from pygpt.study.trace import Trace, run


@dataclass(frozen=True)
class Settings:
    """Those of AdamW; max_norm: to which gradients are clipped, 0 for not at all."""

    lr: float = 1e-3
    beta1: float = adamw.BETA1
    beta2: float = adamw.BETA2
    eps: float = adamw.EPS
    weight_decay: float = adamw.WEIGHT_DECAY
    max_norm: float = 1.0


@dataclass(frozen=True)
class State:
    """What a step begins with: a pass, AdamW's moments, and the number of the step, from 1."""

    trace: Trace
    first_moments: dict[str, Array]
    second_moments: dict[str, Array]
    number: int = 1


@dataclass(frozen=True)
class Step:
    before: State
    after: State
    settings: Settings
    norm: float  # of all gradients, before clipping
    clip: float  # the factor that clipping gives them

    def change(self, name: str) -> Array:
        """Δ of a parameter or an activation."""
        before, after = self.before.trace, self.after.trace
        if name in before.parameters:
            return after.parameters[name] - before.parameters[name]
        return after.activations[name] - before.activations[name]


def first_step(
    config: GPT2Config, parameters: dict[str, Array], tokens: Array, targets: Array, settings: Settings
) -> Step:
    """The first step of parameters in float64 on one text; tokens, targets: (1,T)."""
    zero = {name: np.zeros_like(value) for name, value in parameters.items()}
    found = run(layers("numpy"), config, parameters, tokens, targets)
    return _step(State(found, zero, zero), settings)


def next_step(step: Step) -> Step:
    """The step after this one."""
    return _step(step.after, step.settings)


def _step(state: State, settings: Settings) -> Step:
    ops: Layers = layers("numpy")
    trace = state.trace
    norm = float(clipping.global_norm(trace.gradients.values()))
    clip = settings.max_norm / norm if 0 < settings.max_norm < norm else 1.0
    w, m, v = (
        {name: value.copy() for name, value in tensors.items()}
        for tensors in (trace.parameters, state.first_moments, state.second_moments)
    )
    for parameter in parameter_table(trace.config):
        name, decay = parameter.name, settings.weight_decay if parameter.weight_decay else 0.0
        gradient = clip * trace.gradients[name]
        moments = settings.lr, settings.beta1, settings.beta2, settings.eps
        ops.adamw_step(w[name], m[name], v[name], gradient, *moments, decay, state.number)
    after = run(ops, trace.config, w, trace.tokens, trace.targets)
    return Step(state, State(after, m, v, state.number + 1), settings, norm, clip)
