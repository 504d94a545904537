"""The optimizer of a training run: its step, and what it keeps from one step to the next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from pygpt.config import GPT2Config
from pygpt.files.tensor_file import StoredTensor
from pygpt.model import GPT2
from pygpt.parallel.overlap import GradientExchange
from pygpt.parallel.ranks import Ranks
from pygpt.parallel.tree import LastPass, by_itself
from pygpt.parameters import parameter_table
from pygpt.reference.arrays import Array
from pygpt.training.settings import TrainSettings


class Tensors(Mapping[str, Array]):
    """Arrays of known shapes by name, read when they are asked for."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class ModelMoments(Tensors):
    """The moments that a model holds, by their names in a checkpoint: first_moments.wte.weight, ..."""

    def __init__(self, model: GPT2, optimizer: str) -> None:
        super().__init__(moment_shapes(optimizer, model.config))
        self._model = model

    def __getitem__(self, name: str) -> Array:
        kind, parameter = name.split(".", 1)
        return getattr(self._model, kind)[parameter]

    def load(self, tensors: Mapping[str, StoredTensor]) -> None:
        """Give the model the moments of a checkpoint."""
        for parameter in parameter_table(self._model.config):
            named = (f"{kind}.{parameter.name}" for kind in ("first_moments", "second_moments"))
            if held := [tensors[name].float32() for name in named if name in self.shapes]:
                self._model.set_moments(parameter.name, *held)


class Gathered(NamedTuple):
    """What all ranks of a run have together, whole."""

    parameters: Mapping[str, Array]
    moments: Tensors  # by their names in a checkpoint


class Optimizer(Protocol):
    """All ranks of a run make the same calls."""

    @property
    def last_pass(self) -> LastPass:
        """What is around the last pass of a step, after which step() finds the gradients of all ranks summed."""

    def step(self, lr: float) -> float:
        """Clip the gradients and update the parameters.

        lr: of the schedule.  Returns the norm of the gradient before clipping.
        """

    def load(self, tensors: Mapping[str, StoredTensor]) -> None:
        """Take the moments of a checkpoint."""

    def gathered(self) -> contextlib.AbstractContextManager[Gathered]:
        """For the first rank to read within the block; the others give it what they have before they enter it."""


class WholeOptimizer:
    """Each rank updates all parameters."""

    def __init__(self, model: GPT2, settings: TrainSettings, ranks: Ranks) -> None:
        self._model, self._settings = model, settings
        self._moments = ModelMoments(model, settings.optimizer)
        self.last_pass: LastPass = by_itself
        if ranks.several:
            self.last_pass = GradientExchange(model, ranks, gathered=True).last_pass

    def step(self, lr: float) -> float:
        norm = self._model.clip_grad_norm(self._settings.grad_clip)
        update(self._model, self._settings, lr)
        return norm

    def load(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._moments.load(tensors)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[Gathered]:
        yield Gathered(self._model.parameters, self._moments)


def update(model: GPT2, settings: TrainSettings, lr: float) -> None:
    """One step of the optimizer with the gradients that the model holds.

    lr: of the schedule; Muon's matrices have theirs in the same proportion to its peak.
    """
    if settings.optimizer in ("sgd", "momentum"):
        model.sgd_step(lr, settings.used_momentum, settings.weight_decay)
        return
    betas = (settings.beta1, settings.beta2)
    others: dict[str, Any] = {"eps": settings.adam_eps, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        model.adamw_step(lr, betas, **others)
    else:
        muon_lr = settings.used_muon_lr * (lr / settings.learning_rate)
        model.muon_step(lr, muon_lr, settings.used_momentum, betas, **others)


def moment_shapes(optimizer: str, config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """The shapes of an optimizer's moments by their names in a checkpoint: first_moments.wte.weight, ...

    Plain gradient descent has none, and Muon no second moments of its matrices.
    """
    table = parameter_table(config)
    first = [] if optimizer == "sgd" else table
    second = {"adamw": table, "muon": [p for p in table if not p.muon]}.get(optimizer, [])
    kinds = {"first_moments": first, "second_moments": second}
    return {f"{kind}.{parameter.name}": parameter.shape for kind, held in kinds.items() for parameter in held}
