"""The layer calls that a forward and backward pass of GPT-2 consists of, in the order of computation.

The text is that of reference/gpt2.py once more, with one difference: each layer gets its inputs from the activations
and gradients of a pass that has been made, not from the layer before. So each can be judged alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pygpt.comparing.layer_call import LayerCall
from pygpt.config import GPT2Config
from pygpt.reference.arrays import Array
from pygpt.reference.dropout import Dropout
from pygpt.reference.gpt2 import HEAD_ROWS, sites

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
class Place:
    """Where a model keeps what a call puts out."""

    kind: str  # a field of Pass
    name: str | None = None  # in it, if it is a mapping
    rows: Array | None = None  # only these

    def read(self, held: Pass) -> Array:
        values = getattr(held, self.kind)
        found: Array = values if self.name is None else values[self.name]
        return found if self.rows is None else found[self.rows]


@dataclass(frozen=True)
class ModelCall:
    """One call in a pass, named after the activation that the layer puts out in the forward pass.

    places: by output, where the model keeps it. In the backward pass a tensor to which several layers add is given to
    the last of them, when it is complete.
    """

    name: str
    layer: str  # the name of its files
    call: LayerCall
    places: Mapping[str, Place] = field(default_factory=dict)


def forward_calls(
    config: GPT2Config, p: Tensors, held: Pass, tokens: Array, targets: Array, drop: Dropout
) -> Iterator[ModelCall]:
    """From the embedding up to the losses.

    p: parameters in float32; held: the pass of which each call gets its inputs, rounded to float32; tokens, targets:
    (B,T) integers; drop: its seed and step.
    """
    a = held.activations

    def made(name: str, layer: str, output: str, inputs: dict[str, Any], *more: str) -> ModelCall:
        """more: outputs that are kept under the name of the activation, a dot, and their own."""
        call = LayerCall(f"{layer}_forward", inputs, (output, *more))
        places = {output: Place("activations", name), **{m: Place("activations", f"{name}.{m}") for m in more}}
        return ModelCall(name, layer, call, places)

    def norm(name: str, x: str) -> ModelCall:
        w, b = p[f"{name}.weight"], p[f"{name}.bias"]
        inputs = {"x": _float32(a[x]), "weight": w, "bias": b, "eps": config.layer_norm_epsilon}
        return made(name, "layernorm", "y", inputs, "mean", "rstd")

    def affine(name: str, x: str) -> ModelCall:
        inputs = {"x": _float32(a[x]), "weight": p[f"{name}.weight"], "bias": p[f"{name}.bias"]}
        return made(name, "linear", "y", inputs)

    def dropped(name: str, x: str, dropout: Dropout | None) -> ModelCall:
        return made(name, "dropout", "y", {"x": _float32(a[x]), "dropout": dropout})

    def added(name: str, x1: str, x2: str) -> ModelCall:
        return made(name, "residual", "y", {"x1": _float32(a[x1]), "x2": _float32(a[x2])})

    embeddings = {"tokens": tokens, "wte": p["wte.weight"], "wpe": p["wpe.weight"]}
    yield made("embd", "embedding", "x", embeddings)
    x = "embd"
    if "drop" in a:
        yield dropped("drop", "embd", replace(drop, p=config.embd_pdrop, site=0))
        x = "drop"

    for layer in range(config.n_layer):
        h = f"h.{layer}"
        probabilities_drop, attention_drop, feed_forward_drop = _sites(config, layer, drop)

        yield norm(f"{h}.ln_1", x)
        yield affine(f"{h}.attn.c_attn", f"{h}.ln_1")
        inputs = {"qkv": _float32(a[f"{h}.attn.c_attn"]), "n_head": config.n_head, "dropout": probabilities_drop}
        call = LayerCall("attention_forward", inputs, ("y", "lse"))
        places = {"y": Place("activations", f"{h}.attn.heads"), "lse": Place("activations", f"{h}.attn.lse")}
        yield ModelCall(f"{h}.attn.heads", "attention", call, places)
        yield affine(f"{h}.attn.c_proj", f"{h}.attn.heads")
        branch = f"{h}.attn.c_proj"
        if f"{h}.attn.resid_dropout" in a:
            yield dropped(f"{h}.attn.resid_dropout", branch, attention_drop)
            branch = f"{h}.attn.resid_dropout"
        yield added(f"{h}.resid_mid", x, branch)

        yield norm(f"{h}.ln_2", f"{h}.resid_mid")
        yield affine(f"{h}.mlp.c_fc", f"{h}.ln_2")
        yield made(f"{h}.mlp.act", "gelu", "y", {"x": _float32(a[f"{h}.mlp.c_fc"])})
        yield affine(f"{h}.mlp.c_proj", f"{h}.mlp.act")
        branch = f"{h}.mlp.c_proj"
        if f"{h}.mlp.dropout" in a:
            yield dropped(f"{h}.mlp.dropout", branch, feed_forward_drop)
            branch = f"{h}.mlp.dropout"
        yield added(f"{h}.resid_post", f"{h}.resid_mid", branch)
        x = f"{h}.resid_post"

    yield norm("ln_f", x)
    head = _head(config, p, a, targets)
    call = LayerCall("matmul", {"a": head["x"], "b": head["wte"], "transpose_b": True}, ("c",))
    yield ModelCall("logits", "matmul", call, {"c": Place("logits")})
    call = LayerCall("classifier_forward", head, ("losses",))
    yield ModelCall("losses", "classifier", call, {"losses": Place("activations", "losses")})


def backward_calls(
    config: GPT2Config, p: Tensors, held: Pass, tokens: Array, targets: Array, drop: Dropout
) -> Iterator[ModelCall]:
    """From the losses down to the embedding; arguments as in forward_calls."""
    a, da = held.activations, held.activation_gradients

    def affine(name: str, x: str) -> ModelCall:
        inputs = {"dy": _float32(da[name]), "x": _float32(a[x]), "weight": p[f"{name}.weight"]}
        call = LayerCall("linear_backward", inputs, ("dx", "dweight", "dbias"))
        return ModelCall(name, "linear", call, {"dx": Place("activation_gradients", x), **_parameters(name)})

    def norm(name: str, x: str) -> ModelCall:
        statistics = {"mean": _float32(a[f"{name}.mean"]), "rstd": _float32(a[f"{name}.rstd"])}
        inputs = {"dy": _float32(da[name]), "x": _float32(a[x]), "weight": p[f"{name}.weight"], **statistics}
        call = LayerCall("layernorm_backward", inputs, ("dx", "dweight", "dbias"))
        return ModelCall(name, "layernorm", call, {"dx": Place("activation_gradients", x), **_parameters(name)})

    def dropped(name: str, x: str, dropout: Dropout | None) -> ModelCall:
        call = LayerCall("dropout_backward", {"dy": _float32(da[name]), "dropout": dropout}, ("dx",))
        return ModelCall(name, "dropout", call, {"dx": Place("activation_gradients", x)})

    def added(name: str, branch: str) -> ModelCall:
        call = LayerCall("residual_backward", {"dy": _float32(da[name])}, ("dx1", "dx2"))
        return ModelCall(name, "residual", call, {"dx2": Place("activation_gradients", branch)})

    head = {"dlosses": _float32(da["losses"]).reshape(-1), **_head(config, p, a, targets)}
    call = LayerCall("classifier_backward", head, ("losses", "dx", "dwte"))
    places = {"dx": Place("activation_gradients", "ln_f")}
    only_head = np.setdiff1d(np.arange(config.vocab_size), tokens)  # rows to which the embedding adds nothing
    if len(only_head):
        places["dwte"] = Place("gradients", "wte.weight", only_head)
    yield ModelCall("losses", "classifier", call, places)

    embedded = "drop" if "drop" in a else "embd"
    entering = [embedded] + [f"h.{layer}.resid_post" for layer in range(config.n_layer)]
    yield norm("ln_f", entering[-1])
    for layer in reversed(range(config.n_layer)):
        h = f"h.{layer}"
        probabilities_drop, attention_drop, feed_forward_drop = _sites(config, layer, drop)

        if f"{h}.mlp.dropout" in a:
            yield added(f"{h}.resid_post", f"{h}.mlp.dropout")
            yield dropped(f"{h}.mlp.dropout", f"{h}.mlp.c_proj", feed_forward_drop)
        else:
            yield added(f"{h}.resid_post", f"{h}.mlp.c_proj")
        yield affine(f"{h}.mlp.c_proj", f"{h}.mlp.act")
        inputs = {"dy": _float32(da[f"{h}.mlp.act"]), "x": _float32(a[f"{h}.mlp.c_fc"])}
        place = Place("activation_gradients", f"{h}.mlp.c_fc")
        yield ModelCall(f"{h}.mlp.act", "gelu", LayerCall("gelu_backward", inputs, ("dx",)), {"dx": place})
        yield affine(f"{h}.mlp.c_fc", f"{h}.ln_2")
        yield norm(f"{h}.ln_2", f"{h}.resid_mid")

        if f"{h}.attn.resid_dropout" in a:
            yield added(f"{h}.resid_mid", f"{h}.attn.resid_dropout")
            yield dropped(f"{h}.attn.resid_dropout", f"{h}.attn.c_proj", attention_drop)
        else:
            yield added(f"{h}.resid_mid", f"{h}.attn.c_proj")
        yield affine(f"{h}.attn.c_proj", f"{h}.attn.heads")
        inputs = {"dy": _float32(da[f"{h}.attn.heads"]), "y": _float32(a[f"{h}.attn.heads"])}
        inputs |= {"lse": _float32(a[f"{h}.attn.lse"]), "qkv": _float32(a[f"{h}.attn.c_attn"])}
        settings = {"n_head": config.n_head, "dropout": probabilities_drop}
        call = LayerCall("attention_backward", {**inputs, **settings}, ("dqkv",))
        place = Place("activation_gradients", f"{h}.attn.c_attn")
        yield ModelCall(f"{h}.attn.heads", "attention", call, {"dqkv": place})
        yield affine(f"{h}.attn.c_attn", f"{h}.ln_1")
        yield norm(f"{h}.ln_1", entering[layer])

    if embedded == "drop":
        yield dropped("drop", "embd", replace(drop, p=config.embd_pdrop, site=0))
    inputs = {"dx": _float32(da["embd"]), "tokens": tokens, "wte": p["wte.weight"], "wpe": p["wpe.weight"]}
    places = {"dwte": Place("gradients", "wte.weight"), "dwpe": Place("gradients", "wpe.weight")}
    yield ModelCall("embd", "embedding", LayerCall("embedding_backward", inputs, ("dwte", "dwpe")), places)


def _head(config: GPT2Config, p: Tensors, a: Tensors, targets: Array) -> dict[str, Any]:
    """The classifier's inputs, rows of which the forward and the backward pass have in common."""
    x = _float32(a["ln_f"]).reshape(-1, config.n_embd)
    return {"x": x, "wte": p["wte.weight"], "targets": targets.reshape(-1), "rows": HEAD_ROWS}


def _parameters(name: str) -> dict[str, Place]:
    return {"dweight": Place("gradients", f"{name}.weight"), "dbias": Place("gradients", f"{name}.bias")}


def _sites(config: GPT2Config, layer: int, drop: Dropout) -> tuple[Dropout | None, Dropout | None, Dropout | None]:
    """As reference.gpt2.sites, with None where attention has no dropout, as in a model."""
    in_attention, on_attention, on_feed_forward = sites(config, layer, drop)
    return in_attention if config.attn_pdrop else None, on_attention, on_feed_forward


def _float32(x: Array) -> Array:
    return x.astype(np.float32)
