"""The layer calls of a forward and backward pass of GPT-2 (backends/recorder.py), each to be judged alone.

Each gets its inputs from the activations and gradients of a pass that has been made, not from the layer before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pygpt.backends.recorder import OUTPUTS, Place, record
from pygpt.comparing.layer_call import LayerCall
from pygpt.config import GPT2Config
from pygpt.reference.arrays import Array
from pygpt.reference.dropout import Dropout

Tensors = Mapping[str, Array]


@dataclass(frozen=True)
class Pass:
    """What a model holds after a forward and backward pass."""

    loss: float
    logits: Array  # (B*T,V)
    activations: Tensors
    activation_gradients: Tensors
    gradients: Tensors


@dataclass(frozen=True)
class ModelCall:
    """One call in a pass, named after the activation that the layer puts out in the forward pass.

    places: by output, where the model keeps it. In the backward pass a tensor to which several layers add is given to
    the last of them, when it is complete.
    """

    name: str
    layer: str  # the name of its files
    call: LayerCall
    places: Mapping[str, Place]


def forward_calls(
    config: GPT2Config, p: Tensors, held: Pass, tokens: Array, targets: Array, drop: Dropout
) -> Iterator[ModelCall]:
    """From the embedding up to the losses.

    p: parameters in float32; held: the pass of which each call gets its inputs, rounded to float32; tokens, targets:
    (B,T) integers; drop: its seed and step.
    """
    for made in _calls("forward", config, p, held, tokens, targets, drop):
        if made.layer == "classifier":
            x, wte = made.call.inputs["x"].reshape(-1, config.n_embd), made.call.inputs["wte"]
            call = LayerCall("matmul", {"a": x, "b": wte, "transpose_b": True}, ("c",))
            yield ModelCall("logits", "matmul", call, {"c": Place("logits")})
        yield made


def backward_calls(
    config: GPT2Config, p: Tensors, held: Pass, tokens: Array, targets: Array, drop: Dropout
) -> Iterator[ModelCall]:
    """From the losses down to the embedding; arguments as in forward_calls."""
    only_head = np.setdiff1d(np.arange(config.vocab_size), tokens)  # rows to which the embedding adds nothing
    for made in _calls("backward", config, p, held, tokens, targets, drop):
        if made.layer == "classifier" and config.tie_word_embeddings and len(only_head):
            made = replace(made, places={**made.places, "dwte": Place("gradients", "wte.weight", only_head)})
        yield made


def update_calls(p: Tensors, held: Pass) -> Iterator[ModelCall]:
    """The step of each optimizer, on the tensor that Muon takes as three matrices; arguments as in forward_calls.

    The rate is large, so that what comes out is mostly the update; for SGD, whose update is as small as the gradient,
    that is made as large as the weights.
    """
    name = "h.0.attn.c_attn.weight"
    w, dw = p[name], held.gradients[name].astype(np.float32)
    size = np.linalg.norm(dw)
    larger = (dw * (np.linalg.norm(w) / size if size else 1.0)).astype(np.float32)
    rates = {"lr": 8.0, "weight_decay": 0.125}  # exact in float32, as all others here
    sgd = {"w": w, "m": larger[::-1] / 2, "dw": larger, **rates, "momentum": 0.875}
    muon = {**sgd, "m": dw[::-1] / 2, "dw": dw, "parts": 3}
    betas = {"beta1": 0.875, "beta2": 0.96875, "eps": 2.0**-27, "step": 3}
    adamw = {"w": w, "m": dw[::-1] / 2, "v": dw**2, "dw": dw, **rates, **betas}
    yield ModelCall("update", "adamw", LayerCall("adamw_step", adamw, ("w", "m", "v")), {})
    yield ModelCall("update", "sgd", LayerCall("sgd_step", sgd, ("w", "m")), {})
    yield ModelCall("update", "muon", LayerCall("muon_step", muon, ("w", "m")), {})


def _calls(
    direction: str, config: GPT2Config, p: Tensors, held: Pass, tokens: Array, targets: Array, drop: Dropout
) -> Iterator[ModelCall]:
    calls = [call for call in record(config, p, tokens, targets, drop) if call.direction == direction]
    last = {place: call for call in calls for place in call.outputs.values()}
    for call in calls:
        inputs = {
            name: value.read(held).astype(np.float32) if isinstance(value, Place) else value
            for name, value in call.inputs.items()
        }
        places = {output: place for output, place in call.outputs.items() if last[place] is call}
        yield ModelCall(call.name, call.layer, LayerCall(call.operation, inputs, OUTPUTS[call.operation]), places)
