"""GPT-2 (Radford et al. 2019): the forward and backward pass of the whole model.

Parameters have Hugging Face's names and layout (pygpt/parameters.py); an activation that a layer with parameters puts
out has that layer's name. `docs/architecture.md` lists the activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pygpt.config import GPT2Config
from pygpt.parameters import parameter_shapes, parameter_table

from . import attention, classifier, dropout, embedding, gelu, layernorm, linear, philox, residual
from .arrays import Array, Operands, exact
from .dropout import Dropout

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


def sites(
    config: GPT2Config, layer: int, drop: Dropout | None
) -> tuple[Dropout | None, Dropout | None, Dropout | None]:
    """The dropouts of one block: attention probabilities, attention branch, feed-forward branch."""
    if drop is None:
        return None, None, None
    probabilities = replace(drop, p=config.attn_pdrop, site=1 + 3 * layer)
    attention_branch = replace(drop, p=config.resid_pdrop, site=2 + 3 * layer)
    feed_forward_branch = replace(drop, p=config.resid_pdrop, site=3 + 3 * layer)
    return probabilities, attention_branch, feed_forward_branch


def forward(
    p: Mapping[str, Array],
    config: GPT2Config,
    tokens: Array,
    targets: Array | None = None,
    drop: Dropout | None = None,
    operands: Operands = exact,
    stored: Operands = exact,
) -> dict[str, Array]:
    """Run the model.

    p: parameters by name; tokens, targets: (B,T) integers.  Of drop, the seed and the step are used, and the
    probabilities of config; None is no dropout.  stored: applied to every weight and activation, but not to mean, rstd,
    lse and losses.  Returns every activation by name, `losses` (B,T) only with targets.
    """
    p = {name: stored(value) for name, value in p.items()}
    a: dict[str, Array] = {}

    def keep(name: str, x: Array) -> Array:
        a[name] = stored(x)
        return a[name]

    def norm(name: str, x: Array) -> Array:
        w, b = p[f"{name}.weight"], p[f"{name}.bias"]
        y, mean, rstd = layernorm.forward(x, w, b, config.layer_norm_epsilon)
        y = keep(name, y)
        a[f"{name}.mean"], a[f"{name}.rstd"] = mean, rstd
        return y

    def affine(name: str, x: Array) -> Array:
        return keep(name, linear.forward(x, p[f"{name}.weight"], p[f"{name}.bias"], operands))

    x = keep("embd", embedding.forward(tokens, p["wte.weight"], p["wpe.weight"]))
    if config.embd_pdrop:
        x = keep("drop", dropout.forward(x, drop and replace(drop, p=config.embd_pdrop, site=0)))

    for layer in range(config.n_layer):
        h = f"h.{layer}"
        probabilities_drop, attention_drop, feed_forward_drop = sites(config, layer, drop)

        y = norm(f"{h}.ln_1", x)
        qkv = affine(f"{h}.attn.c_attn", y)
        y, a[f"{h}.attn.lse"] = attention.forward(qkv, config.n_head, probabilities_drop)
        y = keep(f"{h}.attn.heads", y)
        y = affine(f"{h}.attn.c_proj", y)
        if config.resid_pdrop:
            y = keep(f"{h}.attn.resid_dropout", dropout.forward(y, attention_drop))
        x = keep(f"{h}.resid_mid", residual.forward(x, y))

        y = norm(f"{h}.ln_2", x)
        y = affine(f"{h}.mlp.c_fc", y)
        y = keep(f"{h}.mlp.act", gelu.forward(y))
        y = affine(f"{h}.mlp.c_proj", y)
        if config.resid_pdrop:
            y = keep(f"{h}.mlp.dropout", dropout.forward(y, feed_forward_drop))
        x = keep(f"{h}.resid_post", residual.forward(x, y))

    x = norm("ln_f", x)
    if targets is not None:
        a["losses"] = classifier.forward(x, p["wte.weight"], targets, HEAD_ROWS, operands, stored)
    return a


def mean_loss(losses: Array, targets: Array) -> Any:
    """Mean of the losses, (B,T), over the targets that are not negative; 0 if all are."""
    return losses.sum() / max(1, counted(targets))


def counted(targets: Array) -> int:
    """How many targets are not negative."""
    return int((targets >= 0).sum())


def backward(
    p: Mapping[str, Array],
    dp: Mapping[str, Array],
    a: dict[str, Array],
    config: GPT2Config,
    tokens: Array,
    targets: Array,
    drop: Dropout | None = None,
    scale: float = 1.0,
    operands: Operands = exact,
    stored: Operands = exact,
) -> dict[str, Array]:
    """Add scale * d(mean loss)/d(parameter) to the gradients dp; nothing where all targets are negative.

    a: the activations that forward returned for the same tokens and drop; the head runs again here and fills in its
    `losses`, so a forward pass without targets is enough.  stored: as in forward, and of the gradients of activations.
    Returns the gradient of each activation by name (none for mean, rstd and lse, through which the formulas of the
    layers go in one step).
    """
    p = {name: stored(value) for name, value in p.items()}
    da: dict[str, Array] = {}

    def norm(name: str, x: str) -> Array:
        mean, rstd = a[f"{name}.mean"], a[f"{name}.rstd"]
        dx, dw, db = layernorm.backward(da[name], a[x], p[f"{name}.weight"], mean, rstd)
        dp[f"{name}.weight"][...] += dw
        dp[f"{name}.bias"][...] += db
        return dx

    def affine(name: str, x: str) -> None:
        dx, dw, db = linear.backward(da[name], a[x], p[f"{name}.weight"], operands)
        da[x] = stored(dx)
        dp[f"{name}.weight"][...] += dw
        dp[f"{name}.bias"][...] += db

    da["losses"] = np.full(targets.shape, scale / counted(targets) if counted(targets) else 0, a["ln_f"].dtype)
    wte = p["wte.weight"]
    a["losses"], dx, dwte = classifier.backward(da["losses"], a["ln_f"], wte, targets, HEAD_ROWS, operands, stored)
    da["ln_f"] = stored(dx)
    dp["wte.weight"][...] += dwte
    embedded = "drop" if config.embd_pdrop else "embd"
    inputs = [embedded] + [f"h.{layer}.resid_post" for layer in range(config.n_layer)]
    da[inputs[-1]] = stored(norm("ln_f", inputs[-1]))

    for layer in reversed(range(config.n_layer)):
        h, x = f"h.{layer}", inputs[layer]
        probabilities_drop, attention_drop, feed_forward_drop = sites(config, layer, drop)

        dx, dy = residual.backward(da[f"{h}.resid_post"])
        if config.resid_pdrop:
            da[f"{h}.mlp.dropout"] = dy
            dy = stored(dropout.backward(dy, feed_forward_drop))
        da[f"{h}.mlp.c_proj"] = dy
        affine(f"{h}.mlp.c_proj", f"{h}.mlp.act")
        da[f"{h}.mlp.c_fc"] = stored(gelu.backward(da[f"{h}.mlp.act"], a[f"{h}.mlp.c_fc"]))
        affine(f"{h}.mlp.c_fc", f"{h}.ln_2")
        da[f"{h}.resid_mid"] = stored(dx + norm(f"{h}.ln_2", f"{h}.resid_mid"))

        dx, dy = residual.backward(da[f"{h}.resid_mid"])
        if config.resid_pdrop:
            da[f"{h}.attn.resid_dropout"] = dy
            dy = stored(dropout.backward(dy, attention_drop))
        da[f"{h}.attn.c_proj"] = dy
        affine(f"{h}.attn.c_proj", f"{h}.attn.heads")
        y, lse, qkv = (a[f"{h}.attn.{name}"] for name in ("heads", "lse", "c_attn"))
        dy = da[f"{h}.attn.heads"]
        dqkv = attention.backward(dy, y, lse, qkv, config.n_head, probabilities_drop)
        da[f"{h}.attn.c_attn"] = stored(dqkv)
        affine(f"{h}.attn.c_attn", f"{h}.ln_1")
        da[x] = stored(dx + norm(f"{h}.ln_1", x))

    if config.embd_pdrop:
        on_embedding = drop and replace(drop, p=config.embd_pdrop, site=0)
        da["embd"] = stored(dropout.backward(da["drop"], on_embedding))
    dwte, dwpe = embedding.backward(da["embd"], tokens, wte, p["wpe.weight"])
    dp["wte.weight"][...] += dwte
    dp["wpe.weight"][...] += dwpe
    return da
