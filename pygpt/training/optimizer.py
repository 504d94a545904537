"""The optimizer of a training run: its step, and what it keeps from one step to the next."""

from __future__ import annotations

from typing import Any

from pygpt.config import GPT2Config
from pygpt.model import GPT2
from pygpt.parameters import parameter_table
from pygpt.training.settings import TrainSettings


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
