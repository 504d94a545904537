"""The error of each layer on each backend that is here, given the exact inputs: docs/comparing.md, teacher-forced."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from pygpt.comparing.layer_call import LayerCall
from pygpt.comparing.metrics import TEACHER_FORCED
from pygpt.study.backends import backends, calls
from pygpt.study.rounding import UNIT
from pygpt.study.step import Step

AT_THE_ENDS = {"wte.weight": "embd", "wpe.weight": "embd", "lm_head.weight": "logits"}
"""Parameters whose layer has another name."""


@dataclass
class Errors:
    """‖y − y₆₄‖ / ‖y₆₄‖ of one backend by layer, the largest where it has several outputs.

    forward: of what the layer puts out; backward: of gradients; step: of the weights and moments that AdamW makes.
    unit: of the dtype's rounding; bound: that of the tests.
    """

    name: str
    unit: float
    bound: float
    forward: dict[str, float] = field(default_factory=dict)
    backward: dict[str, float] = field(default_factory=dict)
    step: dict[str, float] = field(default_factory=dict)


def measure(step: Step) -> list[Errors]:
    """The errors of every backend, all from the same exact results."""
    asked = backends(step.before.config)
    ops = [(backend.layers(), backend.emulation) for backend in asked]
    errors = [Errors(b.name, UNIT[b.dtype], float(TEACHER_FORCED[b.dtype].relative_l2 or math.inf)) for b in asked]
    for direction, name, call in [*_passes(step), *_updates(step)]:
        for found, (layers, emulation) in zip(errors, ops, strict=True):
            error = max(each.relative_l2 for each in call.differences(layers, emulation).values())
            if math.isfinite(error):
                by_layer = getattr(found, direction)
                by_layer[name] = max(error, by_layer.get(name, 0.0))
    return errors


def _passes(step: Step) -> Iterator[tuple[str, str, LayerCall]]:
    return ((direction, made.name, made.call) for direction, made in calls(step.before))


def _updates(step: Step) -> Iterator[tuple[str, str, LayerCall]]:
    """Of each parameter, with the layer that it belongs to; settings as float32 has them."""
    settings = {name: float(np.float32(value)) for name, value in asdict(step.settings).items() if name != "max_norm"}
    for name, w in step.before.parameters.items():
        tensors = {"w": w, "m": step.moments_before.first[name], "v": step.moments_before.second[name]}
        tensors["dw"] = step.clipped[name]
        inputs = {key: value.astype(np.float32) for key, value in tensors.items()}
        layer = AT_THE_ENDS.get(name) or name.rpartition(".")[0]
        yield "step", layer, LayerCall("adamw_step", {**inputs, **settings, "step": step.number}, ("w", "m", "v"))
