"""One call of one layer, which any backend can run: what comparison, tests and benchmarks are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pygpt.backends.interface import Layers
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.comparing.metrics import Difference, difference
from pygpt.reference.arrays import Array, Operands, exact
from pygpt.reference.bfloat16 import FLOAT32


@dataclass(frozen=True)
class LayerCall:
    """A method of pygpt.layers(...) and its arguments by name; arrays of numbers are float32.

    outputs: the names of what it returns, or of the arguments that it changes if it returns nothing.
    """

    operation: str
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...]

    @property
    def gradients(self) -> tuple[str, ...]:
        """The outputs that are added to, to buffers that may be given under the same names."""
        arguments = signature(getattr(ReferenceLayers, self.operation)).parameters
        return tuple(name for name in self.outputs if name in arguments and name not in self.inputs)

    def run(
        self, ops: Layers, dtype: DTypeLike = np.float32, buffers: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """What ops = pygpt.layers(...) makes of the inputs, in this dtype, by name.

        buffers: gradients to add to; they are changed.
        """
        arguments = {name: _copy(value, dtype) for name, value in self.inputs.items()}
        returned = getattr(ops, self.operation)(**arguments, **(buffers or {}))
        if returned is None:
            return {name: arguments[name] for name in self.outputs}
        return dict(zip(self.outputs, returned if isinstance(returned, tuple) else (returned,), strict=True))

    @cached_property
    def exact(self) -> dict[str, Array]:
        """The outputs in float64."""
        return self.run(ReferenceLayers(), np.float64)

    def stored(self, stored: Operands) -> LayerCall:
        """The same call with this done to every input that is stored in bfloat16 where tensors are."""
        if stored is exact:
            return self
        return replace(self, inputs={name: _stored(name, value, stored) for name, value in self.inputs.items()})

    def as_held(self, emulation: ReferenceLayers | None) -> LayerCall:
        """The same call with inputs rounded to bfloat16 where they are stored so, or attention begins by rounding them.

        Their rounding is nobody's error then; that of attention's inputs exp enlarges the more the larger scores are.
        """
        if emulation is None:
            return self
        return self.stored(emulation.attended if self.operation.startswith("attention") else emulation.stored)

    def differences(self, ops: Layers, emulation: ReferenceLayers | None = None) -> dict[str, Difference]:
        """Each output of ops against float64.

        emulation: of bfloat16, for ρ; all three begin with inputs as it holds them.  Gradients that are to be added to
        buffers start at random numbers of their own size, so that a layer that overwrites them does not pass.
        """
        stored = emulation.stored if emulation else exact
        return self.as_held(emulation)._differences(ops, emulation, stored)

    def _differences(self, ops: Layers, emulation: ReferenceLayers | None, stored: Operands) -> dict[str, Difference]:
        right = self.exact
        rng = np.random.default_rng(0)
        start = {
            name: (rng.normal(size=right[name].shape) * _rms(right[name])).astype(np.float32) for name in self.gradients
        }

        def added(layers: Layers) -> dict[str, Array]:
            found = self.run(layers, np.float32, {name: value.copy() for name, value in start.items()})
            return {
                name: value - start[name].astype(np.float64) if name in start else value
                for name, value in found.items()
            }

        found, emulated = added(ops), added(emulation) if emulation else {}
        emulated = {name: _stored(name, value.astype(np.float32), stored) for name, value in emulated.items()}
        emulated = {name: judged(name, value, right) for name, value in emulated.items()}
        return {
            name: difference(judged(name, found[name], right), judged(name, right[name], right), emulated.get(name))
            for name in self.outputs
        }


def judged(name: str, value: Array, right: Mapping[str, Array]) -> Array:
    """What of an output is compared; right: all of them, in float64.

    LayerNorm's mean is compared as mean + 1 / rstd: it may be 0, as behind another LayerNorm, while its rounding errors
    are relative to the numbers that it is the mean of.
    """
    return value + 1 / right["rstd"] if name == "mean" else value


def _copy(value: Any, dtype: DTypeLike) -> Any:
    """An array of numbers in another dtype; integers and settings as they are."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(dtype)
    return value


def _stored(name: str, value: Any, stored: Operands) -> Any:
    """An array of float32 as it is stored; anything else as it is."""
    if isinstance(value, np.ndarray) and value.dtype == np.float32 and name not in FLOAT32:
        return stored(value)
    return value


def _rms(x: Array) -> float:
    """Root mean square; 1 for zeros."""
    return float(np.sqrt(np.mean(x**2))) or 1.0
