"""The calls of layers that a pass of GPT-2 consists of: reference/gpt2.py, run with layers that only note them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

from pygpt.backends.interface import Layers
from pygpt.config import GPT2Config
from pygpt.reference import gpt2
from pygpt.reference.arrays import Array
from pygpt.reference.dropout import Dropout

OUTPUTS = {
    "embedding_forward": ("x",),
    "embedding_backward": ("dwte", "dwpe"),
    "layernorm_forward": ("y", "mean", "rstd"),
    "layernorm_backward": ("dx", "dweight", "dbias"),
    "linear_forward": ("y",),
    "linear_backward": ("dx", "dweight", "dbias"),
    "rotary_forward": ("y",),
    "rotary_backward": ("dx",),
    "attention_forward": ("y", "lse"),
    "attention_backward": ("dqkv",),
    "gelu_forward": ("y",),
    "gelu_backward": ("dx",),
    "exact_gelu_forward": ("y",),
    "exact_gelu_backward": ("dx",),
    "relu_forward": ("y",),
    "relu_backward": ("dx",),
    "residual_forward": ("y",),
    "residual_backward": ("dx1", "dx2"),
    "dropout_forward": ("y",),
    "dropout_backward": ("dx",),
    "classifier_forward": ("losses",),
    "classifier_backward": ("losses", "dx", "dwte"),
}
"""What the layers of the model return, by name."""


@dataclass(frozen=True)
class Place:
    """Where a model keeps a tensor."""

    kind: str  # its attribute: "activations", "activation_gradients", "gradients", "logits"
    name: str | None = None  # in it, if it is a mapping
    rows: Array | None = None  # only these

    def read(self, held: Any) -> Array:
        """The tensor of a model, or of whatever has its attributes."""
        values = getattr(held, self.kind)
        found: Array = values if self.name is None else values[self.name]
        return found if self.rows is None else found[self.rows]


@dataclass(frozen=True)
class Call:
    """One call in a pass."""

    operation: str  # a method of pygpt.layers(...)
    inputs: Mapping[str, Any]  # by argument, gradients that are added to left out; a Place for what the passes made
    outputs: Mapping[str, Place]  # by name, those that the model keeps

    @property
    def layer(self) -> str:
        """The name of its files."""
        return self.operation.rpartition("_")[0]

    @property
    def direction(self) -> str:
        """The pass: "forward" or "backward"."""
        return self.operation.rpartition("_")[2]

    @property
    def name(self) -> str:
        """The activation that the layer puts out in the forward pass; in the backward pass it takes its gradient."""
        places = self.outputs if self.direction == "forward" else self.inputs
        return next(iter(places.values())).name


def record(
    config: GPT2Config, p: Mapping[str, Array], tokens: Array, targets: Array, drop: Dropout | None = None
) -> list[Call]:
    """All calls from the embedding up to the losses, and down again to the embedding.

    p: parameters by name; tokens, targets: (B,T) integers; they are inputs of the calls as they are.
    """
    recorder: Any = _Recorder()
    dlosses: Any = _Tensor()
    dp: dict[str, Any] = {name: _Tensor() for name in p}
    a = gpt2.forward(recorder, p, config, tokens, targets, drop)
    _, da = gpt2.backward(recorder, p, dp, a, config, tokens, targets, dlosses, drop)
    kinds: dict[str, dict[str, Any]] = {"activations": a, "activation_gradients": da, "gradients": dp}
    places = {tensor: Place(kind, name) for kind, tensors in kinds.items() for name, tensor in tensors.items()}
    return [
        Call(
            operation,
            {name: places[value] if isinstance(value, _Tensor) else value for name, value in inputs.items()},
            {name: places[value] for name, value in outputs.items() if value in places},
        )
        for operation, inputs, outputs in recorder.calls
    ]


class _Tensor:
    """Stands for one until it is known where the model keeps it."""

    def __add__(self, other: _Tensor) -> _Tensor:
        """A gradient of two sources is kept where the layer writes its part."""
        return self


class _Recorder:
    """Layers that put out _Tensors; a gradient that is added to is given, and is put out itself."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], dict[str, _Tensor]]] = []

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def note(*values: Any) -> Any:
            inputs = signature(getattr(Layers, operation)).bind(self, *values).arguments
            del inputs["self"]
            outputs = {name: inputs.pop(name, None) or _Tensor() for name in OUTPUTS[operation]}
            self.calls.append((operation, inputs, outputs))
            first, *more = outputs.values()
            return (first, *more) if more else first

        return note
