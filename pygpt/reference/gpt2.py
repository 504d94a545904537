"""GPT-2 (Radford et al. 2019): the forward and backward pass of the whole model.

Parameters have Hugging Face's names and layout (pygpt/parameters.py); an activation that a layer with parameters puts
out has that layer's name. `docs/architecture.md` lists the activations.

The layers are methods of `ops`: numpy's compute (pygpt/backends/numpy_layers.py calls the files beside this one), those
of a native library do too, and pygpt/backends/recorder.py only notes which are called. A gradient with several sources
is given to each of them, which adds to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from pygpt.config import GPT2Config
from pygpt.parameters import parameter_shapes, parameter_table

from . import philox, positions, post_norm
from .arrays import Array, Operands, exact
from .dropout import Dropout

if TYPE_CHECKING:
    from pygpt.backends.interface import Layers

HEAD_ROWS = 256
"""Rows of logits that exist at a time."""


def zeros(config: GPT2Config, dtype: DTypeLike) -> dict[str, Array]:
    """An array of zeros for each parameter, by name."""
    return {name: np.zeros(shape, dtype) for name, shape in parameter_shapes(config).items()}


def init_weights(parameters: Mapping[str, Array], config: GPT2Config, seed: int) -> None:
    """Fill the parameters with fresh float32 values; parameter number k draws from Philox's stream k."""
    for k, parameter in enumerate(parameter_table(config)):
        value = parameters[parameter.name]
        value[...] = parameter.mean
        if parameter.std:
            numbers = parameter.std * philox.normal(value.size, seed, k)
            value[...] = numbers.astype(np.float32).reshape(value.shape)


def dropout_at(site: int, p: float, drop: Dropout | None) -> Dropout:
    """The dropout of one place in the model; without drop, as in evaluation, it drops nothing."""
    return replace(drop, p=p, site=site) if drop else Dropout(0.0)


def block_dropouts(config: GPT2Config, layer: int, drop: Dropout | None) -> tuple[Dropout | None, Dropout, Dropout]:
    """Those of one block: attention probabilities (None for nothing), attention branch, feed-forward branch."""
    probabilities = dropout_at(1 + 3 * layer, config.attn_pdrop, drop)
    attention_branch = dropout_at(2 + 3 * layer, config.resid_pdrop, drop)
    feed_forward_branch = dropout_at(3 + 3 * layer, config.resid_pdrop, drop)
    return probabilities if probabilities.p else None, attention_branch, feed_forward_branch


def activation_of(ops: Layers, config: GPT2Config) -> tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]:
    """The nonlinearity of the feed-forward part: its forward and its backward function."""
    layer = {"gelu_new": "gelu", "gelu": "exact_gelu", "relu": "relu"}[config.activation_function]
    return getattr(ops, f"{layer}_forward"), getattr(ops, f"{layer}_backward")


def attended(config: GPT2Config) -> str:
    """The activation of a block that holds the queries, keys and values of attention."""
    return "rotary" if config.position_embedding == "rotary" else "c_attn"


def forward(
    ops: Layers,
    p: Mapping[str, Array],
    config: GPT2Config,
    tokens: Array,
    targets: Array | None = None,
    drop: Dropout | None = None,
    stored: Operands = exact,
) -> dict[str, Array]:
    """Run the model.

    p: parameters by name; tokens, targets: (B,T) integers.  Of drop, the seed and the step are used, and the
    probabilities of config; None is no dropout.  stored: applied to every weight and activation, but not to mean, rstd,
    lse and losses.  Returns every activation by name, `losses` (B,T) only with targets.
    """
    p = {name: stored(value) for name, value in p.items()}
    a: dict[str, Array] = {}
    activate, _ = activation_of(ops, config)

    def keep(name: str, x: Array) -> Array:
        a[name] = stored(x)
        return a[name]

    def norm(name: str, x: Array) -> Array:
        w, b = p[f"{name}.weight"], p.get(f"{name}.bias")
        y, mean, rstd = ops.layernorm_forward(x, w, b, config.layer_norm_epsilon)
        y = keep(name, y)
        a[f"{name}.mean"], a[f"{name}.rstd"] = mean, rstd
        return y

    def affine(name: str, x: Array) -> Array:
        return keep(name, ops.linear_forward(x, p[f"{name}.weight"], p.get(f"{name}.bias")))

    def attention(layer: int, x: Array) -> Array:
        h = f"h.{layer}.attn"
        probabilities_drop, branch_drop, _ = block_dropouts(config, layer, drop)
        qkv = affine(f"{h}.c_attn", x)
        if config.position_embedding == "rotary":
            qkv = keep(f"{h}.rotary", ops.rotary_forward(qkv, config.n_head))
        settings = config.n_head, probabilities_drop, config.attention_scale(layer), config.causal
        y, a[f"{h}.lse"] = ops.attention_forward(qkv, *settings)
        y = keep(f"{h}.heads", y)
        y = affine(f"{h}.c_proj", y)
        if config.resid_pdrop:
            y = keep(f"{h}.resid_dropout", ops.dropout_forward(y, branch_drop))
        return y

    def feed_forward(layer: int, x: Array) -> Array:
        h = f"h.{layer}.mlp"
        *_, branch_drop = block_dropouts(config, layer, drop)
        y = affine(f"{h}.c_fc", x)
        y = keep(f"{h}.act", activate(y))
        y = affine(f"{h}.c_proj", y)
        if config.resid_pdrop:
            y = keep(f"{h}.dropout", ops.dropout_forward(y, branch_drop))
        return y

    def add(name: str, x: Array, y: Array) -> Array:
        return keep(name, ops.residual_forward(x, y))

    def block(layer: int, x: Array) -> Array:
        h = f"h.{layer}"
        y = attention(layer, norm(f"{h}.ln_1", x))
        x = add(f"{h}.resid_mid", x, y)
        y = feed_forward(layer, norm(f"{h}.ln_2", x))
        return add(f"{h}.resid_post", x, y)

    wpe = positions.added_to_embedding(p, config)
    x = keep("embd", ops.embedding_forward(tokens, p["wte.weight"], wpe if wpe is None else stored(wpe)))
    if config.embd_pdrop:
        x = keep("drop", ops.dropout_forward(x, dropout_at(0, config.embd_pdrop, drop)))
    if config.norm_position == "post":
        x = post_norm.forward(post_norm.Forward(attention, feed_forward, norm, add), config.n_layer, x)
    else:
        for layer in range(config.n_layer):
            x = block(layer, x)
        x = norm("ln_f", x)
    if targets is not None:
        a["losses"] = ops.classifier_forward(x, p[config.head], targets, HEAD_ROWS)
    return a


def mean_loss(losses: Array, targets: Array) -> Any:
    """Mean of the losses, (B,T), over the targets that are not negative; 0 if all are."""
    return losses.sum() / max(1, _counted(targets))


def mean_loss_backward(targets: Array, scale: float, dtype: DTypeLike) -> Array:
    """scale * d(mean loss)/d(losses): (B,T); 0 if all targets are negative."""
    return np.full(targets.shape, scale / _counted(targets) if _counted(targets) else 0, dtype)


def _counted(targets: Array) -> int:
    """How many targets are not negative."""
    return int((targets >= 0).sum())


def backward(
    ops: Layers,
    p: Mapping[str, Array],
    dp: Mapping[str, Array],
    a: Mapping[str, Array],
    config: GPT2Config,
    tokens: Array,
    targets: Array,
    dlosses: Array,
    drop: Dropout | None = None,
    stored: Operands = exact,
) -> tuple[Array, dict[str, Array]]:
    """Add the gradient of Σ dlosses * losses, both (B,T), to the gradients of the parameters, dp.

    a: the activations that forward returned for the same tokens and drop, with or without losses, because the head runs
    again here.  stored: as in forward, and of the gradients of activations.  Returns the losses, and the gradient of
    each activation by name (none for mean, rstd and lse, through which the formulas of the layers go in one step).
    """
    p = {name: stored(value) for name, value in p.items()}
    da = {"losses": dlosses}
    _, activation_backward = activation_of(ops, config)

    def keep(name: str, dx: Array) -> Array:
        da[name] = stored(dx)
        return da[name]

    def norm(name: str, x: str, dx: Array | None = None) -> None:
        """dx: what the residual connection past it gives x, to which LayerNorm adds."""
        w, b = f"{name}.weight", f"{name}.bias"
        mean, rstd = a[f"{name}.mean"], a[f"{name}.rstd"]
        dx, _, _ = ops.layernorm_backward(da[name], a[x], p[w], mean, rstd, dx, dp[w], dp.get(b))
        keep(x, dx)

    def affine(name: str, x: str) -> None:
        w, b = f"{name}.weight", f"{name}.bias"
        dx, _, _ = ops.linear_backward(da[name], a[x], p[w], dp[w], dp.get(b))
        keep(x, dx)

    def attention(layer: int, dy: Array, x: str) -> None:
        """dy: of the branch's output; x: its input."""
        h = f"h.{layer}.attn"
        probabilities_drop, branch_drop, _ = block_dropouts(config, layer, drop)
        if config.resid_pdrop:
            dy = ops.dropout_backward(keep(f"{h}.resid_dropout", dy), branch_drop)
        keep(f"{h}.c_proj", dy)
        affine(f"{h}.c_proj", f"{h}.heads")
        y, lse, qkv = (a[f"{h}.{name}"] for name in ("heads", "lse", attended(config)))
        settings = config.n_head, probabilities_drop, config.attention_scale(layer), config.causal
        keep(f"{h}.{attended(config)}", ops.attention_backward(da[f"{h}.heads"], y, lse, qkv, *settings))
        if config.position_embedding == "rotary":
            keep(f"{h}.c_attn", ops.rotary_backward(da[f"{h}.rotary"], config.n_head))
        affine(f"{h}.c_attn", x)

    def feed_forward(layer: int, dy: Array, x: str) -> None:
        h = f"h.{layer}.mlp"
        *_, branch_drop = block_dropouts(config, layer, drop)
        if config.resid_pdrop:
            dy = ops.dropout_backward(keep(f"{h}.dropout", dy), branch_drop)
        keep(f"{h}.c_proj", dy)
        affine(f"{h}.c_proj", f"{h}.act")
        keep(f"{h}.c_fc", activation_backward(da[f"{h}.act"], a[f"{h}.c_fc"]))
        affine(f"{h}.c_fc", x)

    def split(name: str) -> tuple[Array, Array]:
        return ops.residual_backward(da[name])

    def add(name: str, dx: Array) -> None:
        keep(name, da[name] + dx)

    def block(layer: int, x: str) -> None:
        h = f"h.{layer}"
        dx, dy = split(f"{h}.resid_post")
        feed_forward(layer, dy, f"{h}.ln_2")
        norm(f"{h}.ln_2", f"{h}.resid_mid", dx)
        dx, dy = split(f"{h}.resid_mid")
        attention(layer, dy, f"{h}.ln_1")
        norm(f"{h}.ln_1", x, dx)

    head, last = config.head, config.head_input
    losses, dx, _ = ops.classifier_backward(dlosses, a[last], p[head], targets, HEAD_ROWS, dp[head])
    keep(last, dx)
    embedded = "drop" if config.embd_pdrop else "embd"
    if config.norm_position == "post":
        post_norm.backward(post_norm.Backward(attention, feed_forward, norm, split, add), config.n_layer, embedded)
    else:
        inputs = [embedded] + [f"h.{layer}.resid_post" for layer in range(config.n_layer)]
        norm("ln_f", inputs[-1])
        for layer in reversed(range(config.n_layer)):
            block(layer, inputs[layer])

    if config.embd_pdrop:
        keep("embd", ops.dropout_backward(da["drop"], dropout_at(0, config.embd_pdrop, drop)))
    wte, wpe = "wte.weight", "wpe.weight"
    ops.embedding_backward(da["embd"], tokens, p[wte], p.get(wpe), dp[wte], dp.get(wpe))
    return losses, da
