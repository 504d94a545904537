"""One call of one layer, which any backend can run: what comparison, tests and benchmarks are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pygpt.backends.reference import ReferenceLayers
from pygpt.metrics import Difference, difference
from pygpt.reference.arrays import Array


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
        """The outputs that are added to buffers, which may be given under the same names."""
        if not self.operation.endswith("_backward"):
            return ()
        return tuple(name for name in self.outputs if name.startswith("d"))

    def run(
        self, ops: Any, dtype: DTypeLike = np.float32, buffers: Mapping[str, Array] | None = None
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

    def differences(self, ops: Any, emulation: ReferenceLayers | None = None) -> dict[str, Difference]:
        """Each output of ops against float64.

        emulation: of bfloat16, for ρ.  Gradients are added to buffers of random numbers of their own size, so that a
        layer that overwrites them does not pass.
        """
        exact = self.exact
        rng = np.random.default_rng(0)
        start = {
            name: (rng.normal(size=exact[name].shape) * _rms(exact[name])).astype(np.float32) for name in self.gradients
        }

        def added(layers: Any) -> dict[str, Array]:
            found = self.run(layers, np.float32, {name: value.copy() for name, value in start.items()})
            return {
                name: value - start[name].astype(np.float64) if name in start else value
                for name, value in found.items()
            }

        found, emulated = added(ops), added(emulation) if emulation else {}
        return {name: difference(found[name], exact[name], emulated.get(name)) for name in self.outputs}


def _copy(value: Any, dtype: DTypeLike) -> Any:
    """An array of numbers in another dtype; integers and settings as they are."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(dtype)
    return value


def _rms(x: Array) -> float:
    """Root mean square; 1 for zeros."""
    return float(np.sqrt(np.mean(x**2))) or 1.0
