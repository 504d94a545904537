"""One forward and one backward pass of which everything is kept: activations, scores and logits, and their gradients.

The graph of pygpt/reference/gpt2.py runs over the layers of any device. Besides what a model keeps, by the names of
docs/architecture.md, there are

    h.0.attn.scores           S: (B,NH,T,T), −∞ where a key lies after its query
    h.0.attn.probabilities    P: (B,NH,T,T)
    logits                    (B,T,V)

each with its gradient: dS, whose rows sum to 0, dP, and dlogits, whose rows sum to 0 too. mean, rstd and lse have none.
The first two come from q, k, v and dy as the device multiplies them, which in bfloat16 may mean rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pygpt.backends.interface import Layers
from pygpt.backends.numpy_model import check_batch
from pygpt.backends.recorder import record
from pygpt.comparing.compare import bfloat16_layers
from pygpt.config import GPT2Config
from pygpt.model import GPT2, layers
from pygpt.reference import attention, gpt2
from pygpt.reference.arrays import Array, Operands, exact, row_of_integers
from pygpt.study.changes import Change, ChangedLayers
from pygpt.study.result import Curves, Map, Result


@dataclass(frozen=True)
class Trace:
    """A pass over B rows of T tokens.  Gradients are those of the loss."""

    config: GPT2Config  # without dropout
    tokens: Array  # (B,T)
    targets: Array  # (B,T), negative where nothing is to be predicted
    loss: float  # mean cross-entropy in nats over the targets that are not negative
    parameters: dict[str, Array]
    activations: dict[str, Array]
    gradients: dict[str, Array]  # of the parameters
    activation_gradients: dict[str, Array]

    @property
    def stream(self) -> list[str]:
        """The names of the residual stream at the beginning and after each block: L + 1."""
        last = "resid_post" if self.config.norm_position == "pre" else "ln_2"
        return ["embd", *(f"h.{layer}.{last}" for layer in range(self.config.n_layer))]

    @property
    def shown_losses(self) -> Array:
        """The losses for a picture: (B,T), NaN where nothing is to be predicted."""
        return np.where(self.targets >= 0, self.activations["losses"], np.nan)

    def attention(self, kind: str) -> Array:
        """ "scores" or "probabilities" of all layers: (L,B,NH,T,T)."""
        return np.stack([self.activations[f"h.{layer}.attn.{kind}"] for layer in range(self.config.n_layer)])


@dataclass(frozen=True)
class Machine:
    """What a pass runs on: its layers, and what becomes of q, k, v and dy before attention multiplies them."""

    layers: Layers
    attended: Operands

    @classmethod
    def of(cls, model: GPT2) -> Machine:
        """The machine that a model runs on."""
        rounds = model.dtype == "bfloat16"
        attended = bfloat16_layers(model.device, model.kernels).attended if rounds else exact
        return cls(layers(model.device, model.dtype, model.kernels), attended)


def trace(
    model: GPT2 | str | Path, tokens: ArrayLike, targets: ArrayLike | None = None, changes: Sequence[Change] = ()
) -> Trace:
    """Run a model, or the one in a folder in float64, forward and backward, with some activations changed on the way.

    tokens: (T,) or (B,T) integers; targets: of the same shape, if not given the next token of the row, and none after
    its last.  The model is not changed.  Raises UserError for tokens outside the vocabulary, more of them than the
    model has positions, and changes that do not fit.
    """
    if not isinstance(model, GPT2):
        model = GPT2.from_pretrained(model, device="numpy", dtype="float64")
    tokens = _rows("tokens", tokens)
    targets = next_tokens(tokens) if targets is None else _rows("targets", targets)
    config = replace(model.config, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    check_batch(config, tokens, targets)
    p = {name: np.array(value) for name, value in model.parameters.items()}
    return run(Machine.of(model), config, p, tokens, targets, changes)


def run(
    machine: Machine,
    config: GPT2Config,
    p: dict[str, Array],
    tokens: Array,
    targets: Array,
    changes: Sequence[Change] = (),
) -> Trace:
    """trace() of parameters by name; nothing is checked but the changes."""
    # the losses come from the backward pass
    calls = [call for call in record(config, p, tokens, targets) if call.operation != "classifier_forward"]
    over: Any = ChangedLayers(machine.layers, calls, changes)
    a = gpt2.forward(over, p, config, tokens)
    dlosses = gpt2.mean_loss_backward(targets, 1.0, a[config.head_input].dtype)
    dp = {name: np.zeros_like(value) for name, value in p.items()}
    a["losses"], da = gpt2.backward(over, p, dp, a, config, tokens, targets, dlosses)
    _add_logits(machine.layers, config, p, a, da, targets)
    for layer in range(config.n_layer):
        _add_attention(machine, a, da, layer, config)
    loss = float(gpt2.mean_loss(np.asarray(a["losses"], np.float64), targets))
    return Trace(config, tokens, targets, loss, p, a, dp, da)


def next_tokens(tokens: Array) -> Array:
    """tokens: (B,T).  Returns the targets: (B,T), -1 at the end of each row."""
    return np.concatenate([tokens[:, 1:], np.full_like(tokens[:, :1], -1)], axis=1)


def summary(found: Trace) -> Result:
    """All tensors of a trace: shape, root mean square, largest magnitude, and the same of the gradients.

    Panels: the root mean square of the residual stream and of its gradient, by depth; P and dS of each head.
    """
    rows = []
    for name, x in found.activations.items():
        dx = found.activation_gradients.get(name)
        rows.append((name, _shape(x), *_sizes(x), *(("", "") if dx is None else _sizes(dx))))
    for name, w in found.parameters.items():
        rows.append((name, _shape(w), *_sizes(w), *_sizes(found.gradients[name])))
    arrays = dict(found.activations)
    arrays |= {f"d {name}": value for name, value in found.activation_gradients.items()}
    arrays |= {f"d {name}": value for name, value in found.gradients.items()}
    maps = [
        Map(f"{title}, layer {layer}, head {head}", of[f"h.{layer}.attn.{kind}"][0, head], "key", "query", signed)
        for title, of, kind, signed in (
            ("P", found.activations, "probabilities", False),
            ("dS", found.activation_gradients, "scores", True),
        )
        for layer in range(found.config.n_layer)
        for head in range(found.config.n_head)
    ]
    of_stream = {
        label: np.array([_sizes(of[name])[0] for name in found.stream])
        for label, of in (("x", found.activations), ("dx", found.activation_gradients))
    }
    stream = Curves("rms of the residual stream", np.arange(len(found.stream)), of_stream, "depth", "", log=True)
    title = f"loss {found.loss:.6f} nats a token; rms is the root mean square, max the largest magnitude"
    columns = ("tensor", "shape", "rms", "max", "gradient's rms", "max")
    return Result(title, columns, rows, {"loss": np.array(found.loss), **arrays}, [stream, *maps])


def _add_logits(
    ops: Layers, config: GPT2Config, p: dict[str, Array], a: dict[str, Array], da: dict[str, Array], targets: Array
) -> None:
    x = a[config.head_input].reshape(-1, config.n_embd)
    logits = ops.matmul(x, p[config.head], transpose_b=True)
    dlogits = ops.cross_entropy_backward(da["losses"].reshape(-1), logits, targets.reshape(-1))
    a["logits"], da["logits"] = (z.reshape(*targets.shape, -1) for z in (logits, dlogits))


def _add_attention(machine: Machine, a: dict[str, Array], da: dict[str, Array], layer: int, config: GPT2Config) -> None:
    name, settings = f"h.{layer}.attn", (config.attention_scale(layer), config.causal)
    qkv, dy = (machine.attended(x) for x in (a[f"{name}.{gpt2.attended(config)}"], da[f"{name}.heads"]))
    q, k, v = attention.split(qkv, config.n_head)
    p = machine.layers.attention_probabilities(a[f"{name}.lse"], qkv, config.n_head, *settings)
    a[f"{name}.scores"], a[f"{name}.probabilities"] = attention.scores(q, k, *settings), p
    y = attention.merge(p @ v)  # of the head itself, if its output was changed
    da[f"{name}.scores"] = attention.scores_backward(dy, y, p, v)
    da[f"{name}.probabilities"] = attention.probabilities_backward(dy, v)


def _rows(name: str, values: ArrayLike) -> Array:
    """(T,) or (B,T) integers as (B,T)."""
    return np.stack([row_of_integers(name, row) for row in np.atleast_2d(np.asarray(values))])


def _shape(x: Array) -> str:
    return " x ".join(map(str, x.shape))


def _sizes(x: Array) -> tuple[float, float]:
    """Root mean square and largest magnitude of what is finite, as scores after their query are not."""
    x = x[np.isfinite(x)]
    if not x.size:
        return math.nan, math.nan
    return float(np.sqrt(np.mean(x**2))), float(abs(x).max())
