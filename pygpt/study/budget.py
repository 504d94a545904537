"""The error of every layer of every backend against what rounding explains.

    ‖y − y₆₄‖ ≤ min(‖worst case‖, 3 √(Σ mean squares))      both from pygpt/study/rounding.py, element by element

Each layer gets the exact inputs, rounded to what the backend holds; the reference's formulas, run on numbers that carry
their rounding errors, say how far its outputs may be off. More than that is a finding: an error of the code, or a
formula of the backend with more roundings than the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pygpt.backends.interface import Layers
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.comparing.layer_call import LayerCall
from pygpt.memory import check_memory
from pygpt.reference import classifier, cross_entropy, exact_gelu, linear
from pygpt.reference.arrays import Array, exact, log_sum_exp
from pygpt.reference.bfloat16 import FLOAT32
from pygpt.study.backends import Backend, backends, calls
from pygpt.study.result import Curves, Result
from pygpt.study.rounding import ELEMENTARY, UNIT, Rounded
from pygpt.study.trace import Trace

DEVIATIONS = 3.0
"""Root mean squares that an error may have."""

ARRAYS = 16
"""In float64, of the size of the largest tensor, that the explanation of a layer takes."""


def budget(found: Trace, ops: Sequence[tuple[Backend, Layers]] | None = None) -> Result:
    """Of a trace in float64; ops: the backends with their layers, all that are here if not given.

    Arrays by backend, direction, activation and output, (3,): the relative error ‖y − y₆₄‖ / ‖y₆₄‖, what of it 3 √n
    explains, and the worst case.  The table has, of each kind of output, the one that comes nearest to its bound;
    failed where one is above.  Raises UserError for a model that is too large.
    """
    largest = max(x.size for x in (*found.parameters.values(), *found.activations.values()))
    check_memory(8 * ARRAYS * largest, "take a shorter text or a smaller model")
    asked = [(backend, backend.layers()) for backend in backends(found.config)] if ops is None else ops
    arrays: dict[str, Array] = {}
    nearest: dict[tuple[str, str, str, str], tuple[float, str, Array]] = {}
    findings = 0
    for direction, made in calls(found):
        explanations: dict[tuple[str, bool], tuple[LayerCall, dict[str, Rounded]]] = {}
        for backend, layers in asked:
            rounding = backend.dtype, backend.stores_bfloat16
            if rounding not in explanations:
                call = made.call.as_held(backend.emulation)
                explanations[rounding] = call, explained(call, backend)
            for output, (error, usual, worst) in _judge(*explanations[rounding], layers).items():
                numbers = np.array([error, usual, worst])
                arrays[f"{backend.name}: {direction} {made.name} {output}"] = numbers
                ratio = error / min(usual, worst) if error else 0.0
                findings += not ratio <= 1
                kind = (backend.name, direction, made.layer, output)
                if kind not in nearest or not ratio <= nearest[kind][0]:
                    nearest[kind] = ratio, made.name, numbers
    rows = [
        (*kind, name, *(float(number) for number in numbers), ratio, "" if ratio <= 1 else "finding")
        for kind, (ratio, name, numbers) in sorted(
            nearest.items(), key=lambda item: [backend.name for backend, _ in asked].index(item[0][0])
        )
    ]
    columns = (
        "backend",
        "direction",
        "layer",
        "output",
        "nearest in",
        "error",
        "3 √n",
        "worst case",
        "of the bound",
        "",
    )
    count = len(arrays)
    verdict = f"{findings} of {count} errors are findings" if findings else f"all {count} errors are within the budget"
    panels = [
        Curves(backend.name, np.arange(len(of)), _lines(of), "output", "relative error", log=True, joined=False)
        for backend, _ in asked
        for of in [np.stack([value for name, value in arrays.items() if name.startswith(f"{backend.name}: ")])]
    ]
    title = "errors of single layers against float64, beside what rounding explains"
    return Result(title, columns, rows, arrays, panels, [verdict], failed=findings > 0)


def _judge(call: LayerCall, may: dict[str, Rounded], layers: Layers) -> dict[str, tuple[float, float, float]]:
    """By output: relative error, 3 root mean squares of rounding, and its worst case, as parts of the exact norm."""
    right, made = call.exact, call.run(layers)
    judged = {}
    for output, rounding in may.items():
        size = np.linalg.norm(right[output]) or 1.0
        error = np.linalg.norm(np.asarray(made[output], np.float64) - right[output])
        usual, worst = DEVIATIONS * np.sqrt(rounding.square.sum()), np.linalg.norm(rounding.worst)
        judged[output] = float(error / size), float(usual / size), float(worst / size)
    return judged


def explained(call: LayerCall, backend: Backend) -> dict[str, Rounded]:
    """The outputs of a call with what rounding may have done to them on a backend."""
    unit = UNIT[backend.dtype]
    emulation = backend.emulation
    in_products = call.operation.startswith(("linear", "classifier", "matmul"))
    operands = unit if emulation and (in_products or emulation.attended is not exact) else 0.0
    inputs: dict[str, Any] = {
        name: Rounded(value, operands=operands) if _is_float(value) else value for name, value in call.inputs.items()
    }
    found: Any = getattr(_Layers(unit if backend.stores_bfloat16 else 0.0), call.operation)(**inputs)
    outputs = dict(zip(call.outputs, found if isinstance(found, tuple) else (found,), strict=True))
    if not backend.stores_bfloat16:
        return outputs
    return {name: y if name in FLOAT32 else y.within(unit) for name, y in outputs.items()}


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _places(numbers: Array, count: int) -> Array:
    """1 in each row where its number is, 0 elsewhere: (n,count)."""
    return (numbers.reshape(-1, 1) == np.arange(count)).astype(np.float64)


def _lines(of: Array) -> dict[str, Array]:
    """What is not 0, as where a layer only copies: (n,) each of (n,3)."""
    return dict(zip(("error", "3 √n", "worst case"), np.where(of > 0, of, np.nan).T, strict=True))


class _Layers(ReferenceLayers):
    """The reference's layers for numbers that carry their errors; those are its formulas that fill arrays."""

    def __init__(self, stored: float) -> None:
        """stored: the unit to which logits are rounded inside the classifier, 0 for not at all."""
        super().__init__()
        self._logits = stored

    def embedding_backward(self, dx: Any, tokens: Array, wte: Any, wpe: Any, *buffers: Any) -> Any:
        rows = dx.reshape(-1, dx.shape[-1])
        return _places(tokens, wte.shape[0]).T @ rows, dx.sum(0)

    def rotary_forward(self, qkv: Any, n_head: int) -> Any:
        return super().rotary_forward(qkv.within(ELEMENTARY), n_head)  # as if that were cosine's and sine's

    def rotary_backward(self, dqkv: Any, n_head: int) -> Any:
        return super().rotary_backward(dqkv.within(ELEMENTARY), n_head)

    def exact_gelu_forward(self, x: Any) -> Any:
        return x * self._normal(x)

    def exact_gelu_backward(self, dy: Any, x: Any) -> Any:
        return dy * (self._normal(x) + x * exact_gelu.normal_density(x))

    def classifier_forward(self, x: Any, wte: Any, targets: Array, rows: int | None = None) -> Any:
        return cross_entropy.forward(self._z(x, wte), targets.reshape(-1)).reshape(targets.shape)

    def classifier_backward(
        self, dlosses: Any, x: Any, wte: Any, targets: Array, rows: int | None = None, dwte: Any = None
    ) -> Any:
        z, targets = self._z(x, wte), targets.reshape(-1)
        losses = cross_entropy.forward(z, targets)
        p = np.exp(z - log_sum_exp(z)) - _places(targets, wte.shape[0])
        dz = np.where((targets < 0)[:, None], np.float64(0), dlosses.reshape(-1, 1) * p)
        dx, dhead, _ = linear.backward(dz, x, wte.T)
        return losses.reshape(dlosses.shape), dx, dhead.T

    def _z(self, x: Any, wte: Any) -> Any:
        z: Any = classifier.logits(linear.rows(x), wte)
        return z.within(self._logits)

    def _normal(self, x: Any) -> Rounded:
        phi: Array = exact_gelu.normal_distribution(x.value)
        return Rounded(phi).within(ELEMENTARY)
