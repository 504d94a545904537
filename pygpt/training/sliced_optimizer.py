"""An optimizer of which each rank has a slice (ZeRO, stage 1; Rajbhandari et al. 2020, section 5.1).

    the sum of the gradient over ranks, a slice on each → its norm → clipping and update of the slice → all parameters

The moments exist once, over all ranks. The bits are those of one rank: an update works on each number by itself, and
the squares of the gradient are summed over the same stretches, whose sums are added in their order.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from pygpt.backends.library import cpu_library, ffi
from pygpt.backends.native_tensors import NativeTensors
from pygpt.backends.pointers import Floats, floats
from pygpt.files.tensor_file import StoredTensor
from pygpt.model import GPT2, layers
from pygpt.parallel.exchange import Exchange
from pygpt.parallel.ranks import Ranks
from pygpt.parameters import parameter_table
from pygpt.training.optimizer import Moments, flat, moment_shapes
from pygpt.training.settings import TrainSettings

SLICED = ("adamw", "sgd", "momentum")
"""The optimizers that update each number by itself, as Muon does not."""


class SlicedOptimizer:
    """An Optimizer for a model on the CPU."""

    def __init__(self, model: GPT2, settings: TrainSettings, ranks: Ranks) -> None:
        self._model, self._settings, self._ranks = model, settings, ranks
        self._layers = layers(model.device, model.dtype, model.kernels)
        self._weights, self._gradients = flat(model.parameters), flat(model.gradients)
        self._exchange = Exchange(ranks, self._weights.size)
        self._own = self._exchange.own
        assert isinstance(model.parameters, NativeTensors)
        self._places = {name: model.parameters.place(name) for name in model.parameters}
        self._shapes = moment_shapes(settings.optimizer, model.config)
        size = self._own.stop - self._own.start
        self._moments = {kind: np.zeros(size, np.float32) for kind in {_split(name)[0] for name in self._shapes}}

    def step(self, lr: float) -> float:
        self._exchange.sum(self._gradients)
        norm = self._norm()
        max_norm = float(np.float32(self._settings.grad_clip))  # as C takes it
        if 0 < max_norm < norm:
            self._gradients[self._own] *= np.float32(max_norm / norm)
        for parameter in parameter_table(self._model.config):
            decay = self._settings.weight_decay if parameter.weight_decay else 0.0
            self._update(_overlap(self._places[parameter.name], self._own), lr, decay)
        self._exchange.gather(self._weights)
        self._model.steps += 1
        return norm

    def _norm(self) -> float:
        """As gpt2_clip_grad_norm() finds it."""
        sums = self._ranks.gather((self._own.start, _sums_of_squares(self._gradients[self._own])))
        in_order = np.concatenate([each for _, each in sorted(sums, key=lambda pair: pair[0])])
        return math.sqrt(np.cumsum(in_order)[-1])

    def _update(self, part: slice, lr: float, decay: float) -> None:
        settings, w, dw = self._settings, self._weights[part], self._gradients[part]
        held = {kind: values[_behind(part, self._own)] for kind, values in self._moments.items()}
        m = held["first_moments"] if settings.optimizer == "adamw" or settings.used_momentum else None
        if settings.optimizer == "adamw":
            assert m is not None
            rates = settings.beta1, settings.beta2, settings.adam_eps, decay
            self._layers.adamw_step(w, m, held["second_moments"], dw, lr, *rates, self._model.steps + 1)
        else:
            self._layers.sgd_step(w, m, dw, lr, settings.used_momentum, decay)

    # ---- checkpoints ----

    def load(self, tensors: Mapping[str, StoredTensor]) -> None:
        for name in self._shapes:
            kind, parameter = _split(name)
            place = self._places[parameter]
            part = _overlap(place, self._own)
            stored = tensors[name].float32().reshape(-1)
            self._moments[kind][_behind(part, self._own)] = stored[_behind(part, place)]

    @contextlib.contextmanager
    def gathered(self) -> Iterator[Moments]:
        moments = _GatheredMoments(self, self._ranks, self._shapes)
        if self._ranks.first:
            try:
                yield moments
            finally:
                self._ranks.from_first("")
        else:
            while name := self._ranks.from_first(""):
                self.collect(name)
            yield moments

    def collect(self, name: str) -> Floats:
        """Send this rank's part of a moment to the first, which gets it whole: (n,)."""
        kind, parameter = _split(name)
        place = self._places[parameter]
        whole = np.empty(place.stop - place.start if self._ranks.first else 0, np.float32)
        for rank, owned in enumerate(self._exchange.slices):
            part = _overlap(place, owned)
            if part.start == part.stop:
                continue
            if rank == self._ranks.rank:
                mine = self._moments[kind][_behind(part, owned)]
                if self._ranks.first:
                    whole[_behind(part, place)] = mine
                else:
                    self._ranks.world.Send(mine, 0)
            elif self._ranks.first:
                self._ranks.world.Recv(whole[_behind(part, place)], rank)
        return whole


class _GatheredMoments(Moments):
    """On the first rank; asking for one tells the others to send what they have of it."""

    def __init__(self, optimizer: SlicedOptimizer, ranks: Ranks, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(shapes)
        self._optimizer, self._ranks = optimizer, ranks

    def __getitem__(self, name: str) -> Floats:
        self._ranks.from_first(name)
        return self._optimizer.collect(name).reshape(self.shapes[name])


def _split(name: str) -> tuple[str, str]:
    """The kind and the parameter of a moment, first_moments.wte.weight."""
    kind, parameter = name.split(".", 1)
    return kind, parameter


def _overlap(place: slice, owned: slice) -> slice:
    """What of a place is in a slice; empty where nothing is."""
    start = min(max(place.start, owned.start), owned.stop)
    return slice(start, max(start, min(place.stop, owned.stop)))


def _behind(part: slice, begin: slice) -> slice:
    """A part of a flat array, counted from the beginning of another."""
    return slice(part.start - begin.start, part.stop - begin.start)


def _sums_of_squares(x: Floats) -> NDArray[np.float64]:
    """Of the stretches over which a norm is summed, in their order."""
    library = cpu_library()
    sums = np.empty(library.pygpt_sums_of_squares(ffi().NULL, floats(x), x.size))
    library.pygpt_sums_of_squares(ffi().cast("double *", sums.ctypes.data), floats(x), x.size)
    return sums
