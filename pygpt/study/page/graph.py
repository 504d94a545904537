"""The layers of a page in the order of the forward pass: the calls that it consists of, with the head drawn as two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pygpt.backends.recorder import Place, record
from pygpt.study.trace import Trace


@dataclass(frozen=True)
class Layer:
    """id: the activation that it puts out; kind: the name of its files; ins: the activations that it reads."""

    id: str
    kind: str
    ins: tuple[str, ...]

    @property
    def block(self) -> int | None:
        """The number of its block; None at the two ends of the model."""
        return int(self.id.split(".")[1]) if self.id.startswith("h.") else None


def graph(trace: Trace) -> list[Layer]:
    """All layers, from the embedding up to the losses."""
    return list(_layers(trace))


def _layers(trace: Trace) -> Iterator[Layer]:
    for call in record(trace.config, trace.parameters, trace.tokens, trace.targets):
        if call.direction == "backward":
            return
        ins = tuple(str(place.name) for place in call.inputs.values() if isinstance(place, Place))
        if call.layer == "classifier":
            yield Layer("logits", "classifier", ins)
            yield Layer("losses", "cross_entropy", ("logits",))
        else:
            yield Layer(call.name, call.layer, ins)
