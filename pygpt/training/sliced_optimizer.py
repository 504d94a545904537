"""An optimizer of which each rank has a slice (ZeRO, stage 1; Rajbhandari et al. 2020, section 5.1).

    the sum of the gradient over ranks, a slice on each → its norm → clipping and update of the slice → all parameters

The moments exist once, over all ranks, and so do the float32 parameters where the layers read copies in bfloat16: then
these copies are what is put together. The bits are those of one rank: an update works on each number by itself, and
the squares of the gradient are summed over the same stretches, whose sums are added in their order.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from pygpt.backends.native_tensors import NativeTensors
from pygpt.backends.pointers import Floats
from pygpt.files.tensor_file import StoredTensor
from pygpt.model import GPT2
from pygpt.parallel.flat import DeviceFlat, HostFlat, RoundedFlat, flat_gradients, flat_parameters
from pygpt.parallel.overlap import GradientExchange
from pygpt.parallel.ranks import Ranks
from pygpt.parameters import parameter_shapes
from pygpt.training.optimizer import Gathered, Tensors, moment_shapes
from pygpt.training.settings import TrainSettings
from pygpt.training.slices import DeviceSlice, HostSlice, Slice, behind, overlap

SLICED = ("adamw", "sgd", "momentum")
"""The optimizers that update each number by itself, as Muon does not."""


class SlicedOptimizer:
    """An Optimizer for several ranks."""

    def __init__(self, model: GPT2, settings: TrainSettings, ranks: Ranks) -> None:
        self._ranks, self._model = ranks, model
        self._weights = flat_parameters(model)
        gradients = GradientExchange(model, ranks, gathered=False)
        self.last_pass = gradients.last_pass
        assert isinstance(model.parameters, NativeTensors)
        self._places = {name: model.parameters.place(name) for name in model.parameters}
        self._shapes = moment_shapes(settings.optimizer, model.config)
        self._held = [(each, self._make_slice(model, settings, each.own)) for each in gradients.exchanges]

    def _make_slice(self, model: GPT2, settings: TrainSettings, own: slice) -> Slice:
        weights, gradients = self._weights, flat_gradients(model)
        if isinstance(weights, DeviceFlat):
            return DeviceSlice(model, settings, own, weights.parts)
        assert isinstance(gradients, HostFlat)
        kinds = {_split(name)[0] for name in self._shapes}
        return HostSlice(model, settings, own, kinds, weights, gradients)

    def step(self, lr: float) -> float:
        mine = [(exchange.own.start, held.sums_of_squares()) for exchange, held in self._held]
        sums = sorted(itertools.chain(*self._ranks.gather(mine)), key=lambda pair: pair[0])
        in_order, steps = np.concatenate([each for _, each in sums]), self._model.steps + 1
        for exchange, held in self._held:
            norm = held.clip(in_order)
            held.update(lr)
            exchange.gather(self._weights)
        self._model.steps = steps
        return norm

    # ---- checkpoints ----

    def load(self, tensors: Mapping[str, StoredTensor]) -> None:
        for name in self._shapes:
            kind, parameter = _split(name)
            place = self._places[parameter]
            stored = tensors[name].float32().reshape(-1)
            for exchange, held in self._held:
                part = overlap(place, exchange.own)
                held.write(kind, part, stored[behind(part, place)])

    @contextlib.contextmanager
    def gathered(self) -> Iterator[Gathered]:
        parameters = self._model.parameters
        if isinstance(self._weights, RoundedFlat):
            parameters = _GatheredTensors(self, parameter_shapes(self._model.config), "parameters.")
        gathered = Gathered(parameters, _GatheredTensors(self, self._shapes))
        if self._ranks.first:
            try:
                yield gathered
            finally:
                self._ranks.from_first("")
        else:
            while name := self._ranks.from_first(""):
                self._send_or_collect(name)
            yield gathered

    def collect(self, name: str) -> Floats:
        """On the first rank: a tensor, of which it tells the others to send what they have: (n,)."""
        self._ranks.from_first(name)
        return self._send_or_collect(name)

    def _send_or_collect(self, name: str) -> Floats:
        """Send this rank's part of a tensor to the first, which gets it whole: (n,)."""
        kind, parameter = _split(name)
        place = self._places[parameter]
        whole = np.empty(place.stop - place.start if self._ranks.first else 0, np.float32)
        for exchange, held in self._held:
            for rank, owned in enumerate(exchange.slices):
                part = overlap(place, owned)
                if part.start == part.stop:
                    continue
                if rank == self._ranks.rank:
                    mine = held.read(kind, part)
                    if self._ranks.first:
                        whole[behind(part, place)] = mine
                    else:
                        self._ranks.world.Send(mine, 0)
                elif self._ranks.first:
                    self._ranks.world.Recv(whole[behind(part, place)], rank)
        return whole


class _GatheredTensors(Tensors):
    def __init__(self, optimizer: SlicedOptimizer, shapes: Mapping[str, tuple[int, ...]], kind: str = "") -> None:
        """kind: what stands before the names."""
        super().__init__(shapes)
        self._optimizer, self._kind = optimizer, kind

    def __getitem__(self, name: str) -> Floats:
        return self._optimizer.collect(self._kind + name).reshape(self.shapes[name])


def _split(name: str) -> tuple[str, str]:
    """The kind and the parameter of a tensor, first_moments.wte.weight or parameters.wte.weight."""
    kind, parameter = name.split(".", 1)
    return kind, parameter
