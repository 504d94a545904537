"""Backward passes of any backend's layers against finite differences, call by call as the model makes them.

    ⟨g, v⟩  against  ⟨dy, f(x + h v) − f(x − h v)⟩ / 2h      v: half along g, half random

f is the layer in numpy in float64, so that the difference has ten digits; g is the gradient that the backend makes of
the same inputs in its own precision. The error is relative to ‖g‖ ‖v‖.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pygpt.backends.interface import Layers
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.backends.recorder import OUTPUTS, Call, Place, record
from pygpt.comparing.layer_call import LayerCall
from pygpt.comparing.metrics import TEACHER_FORCED
from pygpt.model import GPT2, layers
from pygpt.reference.arrays import Array
from pygpt.study.result import Curves, Result
from pygpt.study.trace import Trace, trace

STEP = 1e-5
"""h: the truncation is of its square, and rounding of 1e-16 / h."""

FLOAT64_BOUND = 1e-8


def gradcheck(
    model: GPT2, tokens: ArrayLike, ops: Layers | None = None, seed: int = 0, targets: ArrayLike | None = None
) -> Result:
    """Every gradient that a layer makes in a pass over tokens; ops: the layers to judge, if not the model's own.

    targets: as in trace().

    Arrays: errors, (n,), in the order of the rows; failed where one is above the bound of comparing's single layers
    (docs/comparing.md), in float64 above 1e-8.
    """
    found = trace(model, tokens, targets)
    ops = layers(model.device, model.dtype, model.kernels) if ops is None else ops
    limit = TEACHER_FORCED[model.dtype].relative_l2 if model.dtype in TEACHER_FORCED else FLOAT64_BOUND
    assert limit is not None
    rng, rows = np.random.default_rng(seed), []
    for forward, backward in _pairs(found):
        for output, error in _errors(found, forward, backward, ops, rng):
            rows.append((forward.name, forward.layer, output, error, "" if error <= limit else "out of bounds"))
    errors = np.array([row[3] for row in rows])
    wrong = int((~(errors <= limit)).sum())
    verdict = f"{wrong} of {len(rows)} gradients are out of bounds" if wrong else f"all {len(rows)} gradients are right"
    title = f"{model.device} {model.dtype}: gradients against finite differences, bound {limit:g}"
    lines = {"of each gradient": errors}
    panel = Curves("error", np.arange(len(rows)), lines, "row", "relative error", log=True, joined=False)
    columns = ("activation", "layer", "gradient", "error", "")
    return Result(title, columns, rows, {"errors": errors}, [panel], [verdict], failed=wrong > 0)


def _pairs(found: Trace) -> Iterator[tuple[Call, Call]]:
    """The calls of the forward pass, each with the one that takes the gradient of what it put out."""
    calls = record(found.config, found.parameters, found.tokens, found.targets)
    backward = {call.name: call for call in calls if call.direction == "backward"}
    return ((call, backward[call.name]) for call in calls if call.direction == "forward")


def _errors(
    found: Trace, forward: Call, backward: Call, ops: Layers, rng: np.random.Generator
) -> Iterator[tuple[str, float]]:
    inputs = _inputs(found, backward)
    dy = np.asarray(next(iter(inputs.values())), np.float64)
    dtype = found.parameters["wte.weight"].dtype
    gradients = LayerCall(backward.operation, inputs, OUTPUTS[backward.operation]).run(ops, dtype)
    arguments = _inputs(found, forward)
    for output, g in gradients.items():
        if output not in backward.outputs:  # losses, and gradients of biases or positions that the model does not have
            continue
        name = "qkv" if forward.layer == "rotary" else output.removeprefix("d")
        g = np.asarray(g, np.float64)
        v = _direction(g, arguments[name], rng)
        ends = []
        for sign in (1, -1):
            moved = {**arguments, name: np.asarray(arguments[name], np.float64) + sign * STEP * v}
            outputs = LayerCall(forward.operation, moved, OUTPUTS[forward.operation]).run(ReferenceLayers(), np.float64)
            ends.append(next(iter(outputs.values())))
        slope = (dy * (ends[0] - ends[1])).sum() / (2 * STEP)
        size = np.linalg.norm(g) * np.linalg.norm(v)
        yield output, float(abs(slope - (g * v).sum()) / size) if size else float(abs(slope))


def _direction(g: Array, x: Array, rng: np.random.Generator) -> Array:
    """Of the size of x, or of 1 where that is 0."""
    size = np.sqrt(np.mean(np.square(x, dtype=np.float64))) or 1.0
    along = g / (np.sqrt(np.mean(g**2)) or 1.0)
    v: Array = size * (along + rng.normal(size=g.shape))
    return v


def _inputs(found: Trace, call: Call) -> dict[str, Any]:
    return {name: value.read(found) if isinstance(value, Place) else value for name, value in call.inputs.items()}
