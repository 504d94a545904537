"""A model on a device against numpy in float64, layer by layer: docs/comparing.md.

Teacher-forced, each layer gets the exact inputs, rounded to float32, so that its error is its own. Free-running, the
whole model runs by itself, and errors add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pygpt.backends.devices import DEVICES
from pygpt.backends.interface import Layers
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.backends.numpy_model import ReferenceGPT2
from pygpt.comparing.layer_call import judged
from pygpt.comparing.metrics import (
    FREE_RUNNING,
    ORTHOGONALIZED,
    TEACHER_FORCED,
    Bound,
    Difference,
    difference,
)
from pygpt.comparing.model_calls import ModelCall, Pass, Tensors, backward_calls, forward_calls, update_calls
from pygpt.errors import UserError
from pygpt.model import GPT2
from pygpt.reference import bfloat16_attention
from pygpt.reference.arrays import Array, exact
from pygpt.reference.bfloat16 import round_bfloat16
from pygpt.reference.dropout import Dropout


@dataclass(frozen=True)
class Row:
    """One output of one layer of the model, in one of the passes; None where it is not seen in this way."""

    direction: str  # "forward", "backward" or "update"
    name: str  # of the activation that the layer puts out
    layer: str
    output: str
    teacher_forced: Difference | None
    free_running: Difference | None
    violations: tuple[str, ...]  # in words; empty within the bounds

    def __str__(self) -> str:
        return f"{self.name} ({self.layer}), {self.direction}, {self.output}"


def compare(model: GPT2, ops: Layers, tokens: Array, targets: Array) -> list[Row]:
    """Every output of every layer in the order of computation, up and down again, and of each optimizer's step.

    model: with recompute="none", and dtype float32 or bfloat16; its gradients are replaced. ops: pygpt.layers() of the
    same device, dtype and kernels. tokens, targets: (B,T) integers. With dropout in the configuration, the masks of
    step 0 are drawn.  Raises UserError as model.forward does, and for a dtype without bounds.
    """
    if model.dtype not in TEACHER_FORCED:
        raise UserError(f"dtype is {model.dtype!r}, expected {' or '.join(TEACHER_FORCED)}, which have bounds")
    return list(_rows(model, ops, tokens, targets))


def bfloat16_layers(device: str, kernels: str = "fast") -> ReferenceLayers:
    """What rounds to bfloat16 where a device does: the operands of products, and where it stores bfloat16 all else."""
    if device == "cpu" and kernels == "fast" and DEVICES[device].multiplies_bfloat16():
        return ReferenceLayers(round_bfloat16, attention=bfloat16_attention)
    return ReferenceLayers(round_bfloat16, round_bfloat16 if DEVICES[device].stores_bfloat16 else exact)


def perturb(model: GPT2, seed: int) -> None:
    """Add random numbers to all parameters: in a fresh model attention is uniform, and biases are 0."""
    rng = np.random.default_rng(seed)
    for name, value in model.parameters.items():
        model.set_parameter(name, value + rng.normal(0, 0.1, value.shape))


def first_out_of_bounds(rows: Sequence[Row]) -> Row | None:
    """The row where a fault shows first, None if all are within the bounds."""
    return next((row for row in rows if row.violations), None)


def table(rows: Sequence[Row], dtype: str) -> str:
    """The rows for people, ρ only in bfloat16."""
    with_rho = dtype == "bfloat16"
    metrics = f"{'rel. L2':>9}{'max/rms':>9}{'1-cos':>9}" + (f"{'rho':>7}" if with_rho else "")
    head = f"  {'':<26}{'':<12}{'':<9}"
    lines = [
        f"{head}{'teacher-forced':^{len(metrics)}}   {'free-running':^{len(metrics)}}".rstrip(),
        f"{head}{metrics}   {metrics}",
    ]
    direction = ""
    for row in rows:
        if row.direction != direction:
            direction = row.direction
            lines.append(direction)
        ways = "   ".join(_cells(found, with_rho, len(metrics)) for found in (row.teacher_forced, row.free_running))
        mark = "  out of bounds" if row.violations else ""
        lines.append(f"  {row.name:<26}{row.layer:<12}{row.output:<9}{ways}{mark}".rstrip())
    return "\n".join(lines)


def verdict(rows: Sequence[Row]) -> str:
    """The last line: whether all is well, or which layer is the first that is not."""
    first = first_out_of_bounds(rows)
    if first is None:
        return f"all {len(rows)} outputs are within the bounds"
    count = sum(bool(row.violations) for row in rows)
    return f"{count} of {len(rows)} outputs are out of bounds, the first: {first}: {'; '.join(first.violations)}"


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON has them."""
    return [asdict(row) for row in rows]


def _rows(model: GPT2, ops: Layers, tokens: Array, targets: Array) -> Iterator[Row]:
    drop = Dropout(0.0, seed=model.seed, step=0)
    parameters = {name: np.asarray(value, np.float32) for name, value in model.parameters.items()}
    found = _pass(model, tokens, targets)
    reference = _reference_pass(model, np.float64, ReferenceLayers(), parameters, tokens, targets, drop, found)
    emulated, emulation = None, None
    if model.dtype == "bfloat16":
        emulation = bfloat16_layers(model.device, model.kernels)
        emulated = _reference_pass(model, np.float32, emulation, parameters, tokens, targets, drop, found)

    def rows(direction: str, calls: Iterator[ModelCall], free_running: Bound) -> Iterator[Row]:
        usual = TEACHER_FORCED[model.dtype]
        for call in calls:
            bounds = (ORTHOGONALIZED if call.layer == "muon" else usual, free_running)
            alone = call.call.differences(ops, emulation)
            right = {output: place.read(reference) for output, place in call.places.items()}
            for output in call.call.outputs:
                place = call.places.get(output)
                together = None
                if place:
                    passes = [each for each in (found, reference, emulated) if each]
                    together = difference(*(judged(output, place.read(each), right) for each in passes))
                yield _row(direction, call.name, call.layer, output, (alone[output], together), bounds)

    batch = model.config, parameters, reference, tokens, targets, drop
    yield from rows("forward", forward_calls(*batch), FREE_RUNNING[model.dtype]["forward"])
    loss = difference(np.array(found.loss), np.array(reference.loss))
    yield _row("forward", "loss", "mean", "loss", (None, loss), (Bound(), FREE_RUNNING[model.dtype]["loss"]))
    yield from rows("backward", backward_calls(*batch), FREE_RUNNING[model.dtype]["backward"])
    yield from rows("update", update_calls(parameters, reference), Bound())


def _row(
    direction: str,
    name: str,
    layer: str,
    output: str,
    found: tuple[Difference | None, Difference | None],
    bounds: tuple[Bound, Bound],
) -> Row:
    ways = zip(("teacher-forced", "free-running"), found, bounds, strict=True)
    violations = (f"{way} {text}" for way, value, bound in ways if value for text in bound.violations(value))
    return Row(direction, name, layer, output, *found, tuple(violations))


def _pass(model: GPT2, tokens: Array, targets: Array) -> Pass:
    """The model run both ways, and half of the gradients: one that is overwritten, not added to, is too small then."""
    model.zero_grad()
    model.forward(tokens, targets, dropout_step=0)
    model.backward()
    loss = model.forward_backward(tokens, targets, dropout_step=0)
    gradients = {name: value / 2 for name, value in model.gradients.items()}
    logits = model.logits.reshape(-1, model.config.vocab_size)
    return Pass(loss, logits, model.activations, model.activation_gradients, gradients)


def _reference_pass(
    model: GPT2,
    dtype: DTypeLike,
    ops: ReferenceLayers,
    parameters: Mapping[str, Array],
    tokens: Array,
    targets: Array,
    drop: Dropout,
    found: Pass,
) -> Pass:
    reference = ReferenceGPT2(model.config, dtype)
    reference.ops = ops
    for name, value in parameters.items():
        reference.parameters[name][...] = value
    loss = reference.forward(tokens, targets, drop)
    activations = dict(reference.activations)
    if model.config.activation_function == "relu":
        reference.activations.update(_beside_the_jumps(activations, found.activations, model.config.n_layer))
    reference.backward()
    logits = reference.logits(0, tokens.size)
    return Pass(loss, logits, activations, reference.activation_gradients, reference.gradients)


def _beside_the_jumps(activations: Tensors, found: Tensors, n_layer: int) -> dict[str, Array]:
    """The inputs of ReLU for the backward pass, with the model's own where rounding has changed the sign.

    The derivative jumps at 0, so the gradient of such an element comes or goes as a whole. Of the elements that pass
    gradients on, these are 2 p e, with p the density of the inputs at 0 and e their mean error, and the gradient's
    relative error is √(2 p e): 0.06 where e is 0.5 % of their standard deviation. No rounding of gradients is that
    large, so the exact gradient is taken on the model's side of the jump; the forward pass bounds e.
    """
    names = [f"h.{layer}.mlp.c_fc" for layer in range(n_layer)]
    return {n: np.where((activations[n] > 0) == (found[n] > 0), activations[n], found[n]) for n in names}


def _cells(found: Difference | None, with_rho: bool, width: int) -> str:
    if found is None:
        return " " * width
    rho = "" if found.rho is None else f"{found.rho:7.2f}" if found.rho < 1000 else f"{found.rho:7.0e}"
    return f"{found.relative_l2:9.1e}{found.largest:9.1e}{found.one_minus_cosine:9.1e}" + (
        f"{rho:>7}" if with_rho else ""
    )
