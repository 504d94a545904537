"""What one rank updates of a model, and the moments of just that, in the host's memory or a device's."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pygpt.backends.library import cpu_library, ffi
from pygpt.backends.native_parts import NativeParts
from pygpt.backends.native_tensors import NativeTensors
from pygpt.backends.pointers import Floats, floats
from pygpt.model import GPT2, layers
from pygpt.parallel.flat import HostFlat
from pygpt.parameters import parameter_table
from pygpt.training.optimizer import update
from pygpt.training.settings import TrainSettings


class Slice(Protocol):
    """A part of the flat buffers of a model."""

    def sums_of_squares(self) -> NDArray[np.float64]:
        """Of the stretches of its gradients over which a norm is summed, in their order."""

    def clip(self, sums: NDArray[np.float64]) -> float:
        """Clip its gradients by the norm of all, and return it, as a single rank finds it.  sums: of all stretches."""

    def update(self, lr: float) -> None:
        """The optimizer's step number model.steps + 1 with the gradients that the model holds."""

    def read(self, kind: str, part: slice) -> Floats:
        """Of a part of the model's flat buffer that lies in it.

        kind: "first_moments", "second_moments" or, on a device, "parameters", the float32 ones.
        """

    def write(self, kind: str, part: slice, values: Floats) -> None:
        """Replace moments."""


class HostSlice:
    """A Slice on the CPU."""

    def __init__(
        self, model: GPT2, settings: TrainSettings, own: slice, kinds: set[str], weights: HostFlat, gradients: HostFlat
    ) -> None:
        """kinds: of moments."""
        self._model, self._settings, self._own = model, settings, own
        self._layers = layers(model.device, model.dtype, model.kernels)
        self._weights, self._gradients = weights.values, gradients.values
        assert isinstance(model.parameters, NativeTensors)
        self._places = {name: model.parameters.place(name) for name in model.parameters}
        self._moments = {kind: np.zeros(own.stop - own.start, np.float32) for kind in kinds}

    def sums_of_squares(self) -> NDArray[np.float64]:
        return sums_of_squares(self._gradients[self._own])

    def clip(self, sums: NDArray[np.float64]) -> float:
        norm = math.sqrt(np.cumsum(sums)[-1])
        max_norm = float(np.float32(self._settings.grad_clip))  # as C takes it
        if 0 < max_norm < norm:
            self._gradients[self._own] *= np.float32(max_norm / norm)
        return norm

    def update(self, lr: float) -> None:
        for parameter in parameter_table(self._model.config):
            decay = self._settings.weight_decay if parameter.weight_decay else 0.0
            part = overlap(self._places[parameter.name], self._own)
            if part.start < part.stop:
                self._update(part, lr, decay)

    def _update(self, part: slice, lr: float, decay: float) -> None:
        settings, w, dw = self._settings, self._weights[part], self._gradients[part]
        held = {kind: values[behind(part, self._own)] for kind, values in self._moments.items()}
        m = held["first_moments"] if settings.optimizer == "adamw" or settings.used_momentum else None
        if settings.optimizer == "adamw":
            assert m is not None
            rates = settings.beta1, settings.beta2, settings.adam_eps, decay
            self._layers.adamw_step(w, m, held["second_moments"], dw, lr, *rates, self._model.steps + 1)
        else:
            self._layers.sgd_step(w, m, dw, lr, settings.used_momentum, decay)

    def read(self, kind: str, part: slice) -> Floats:
        return self._moments[kind][behind(part, self._own)]

    def write(self, kind: str, part: slice, values: Floats) -> None:
        self._moments[kind][behind(part, self._own)] = values


class DeviceSlice:
    """A Slice on a device, whose optimizer knows that it has only that."""

    def __init__(self, model: GPT2, settings: TrainSettings, own: slice, parts: NativeParts) -> None:
        self._model, self._settings, self._parts = model, settings, parts
        parts.own(own)

    def sums_of_squares(self) -> NDArray[np.float64]:
        return self._parts.sums_of_squares()

    def clip(self, sums: NDArray[np.float64]) -> float:
        return self._parts.clip(sums, self._settings.grad_clip)

    def update(self, lr: float) -> None:
        update(self._model, self._settings, lr)

    def read(self, kind: str, part: slice) -> Floats:
        return self._parts.read(kind, part)

    def write(self, kind: str, part: slice, values: Floats) -> None:
        self._parts.write(kind, part, values)


def overlap(place: slice, owned: slice) -> slice:
    """What of a place is in a slice; empty where nothing is."""
    start = min(max(place.start, owned.start), owned.stop)
    return slice(start, max(start, min(place.stop, owned.stop)))


def behind(part: slice, begin: slice) -> slice:
    """A part of a flat array, counted from the beginning of another."""
    return slice(part.start - begin.start, part.stop - begin.start)


def sums_of_squares(x: Floats) -> NDArray[np.float64]:
    """Of the stretches over which the CPU sums a norm, in their order."""
    library = cpu_library()
    sums = np.empty(library.pygpt_sums_of_squares(ffi().NULL, floats(x), x.size))
    library.pygpt_sums_of_squares(ffi().cast("double *", sums.ctypes.data), floats(x), x.size)
    return sums
