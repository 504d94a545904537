"""Exact results of exercises that are no file of the project: from its layers, and from derivatives by a complex step.

f′(x) = Im f(x + ih) / h      exactly, because h² vanishes beside 1      (Squire & Trapp 1998)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.config import GPT2Config
from pygpt.parameters import parameter_table
from pygpt.reference import attention, cross_entropy, embedding, gelu, gpt2, layernorm, linear
from pygpt.reference.arrays import Array

STEP = 1e-30


def gradients(expression: Callable[..., Any], numbers: Sequence[float]) -> tuple[float, Array]:
    """An expression of numbers: its value, and its derivatives, (n,)."""
    found = _derivative(lambda x: expression(*x), np.array(numbers))
    return expression(*numbers), found


def count(tokens: Array, vocab_size: int) -> Array:
    """How often each token follows each, (V,V): the embedding's gradient where the next tokens come as one-hot rows."""
    one_hot = np.eye(vocab_size)
    following = one_hot[tokens[None, 1:]]
    return embedding.backward(following, tokens[None, :-1], wte=one_hot, wpe=following[0])[0]


def loss(counts: Array, tokens: Array) -> float:
    """Of the bigram model with one added to each count: it is a softmax of their logarithms."""
    return float(cross_entropy.forward(np.log(counts + 1)[tokens[:-1]], tokens[1:]).mean())


def mlp_backward(
    dy: Array, x: Array, w1: Array, b1: Array, w2: Array, b2: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Of y = GELU(x W1 + b1) W2 + b2."""

    def forward(t: Mapping[str, Array]) -> Array:
        return linear.forward(gelu.forward(linear.forward(t["x"], t["w1"], t["b1"])), t["w2"], t["b2"])

    found = _gradients(forward, dy, {"x": x, "w1": w1, "b1": b1, "w2": w2, "b2": b2})
    return found["x"], found["w1"], found["b1"], found["w2"], found["b2"]


def batchnorm(
    x: Array, w: Array, b: Array, running_mean: Array, running_var: Array, momentum: float, eps: float
) -> Array:
    """y: (N,C), in training; the running statistics are changed in place."""
    running_mean += momentum * (x.mean(0) - running_mean)
    running_var += momentum * (x.var(0) - running_var)
    return _normalised(x.T, eps).T * w + b


def batchnorm_evaluate(x: Array, w: Array, b: Array, running_mean: Array, running_var: Array, eps: float) -> Array:
    """y: (N,C), by the running statistics: a linear layer whose matrix is diagonal."""
    r = 1 / np.sqrt(running_var + eps)
    return linear.forward(x, np.diag(w * r), b - running_mean * r * w)


def batchnorm_backward(dy: Array, x: Array, w: Array, eps: float) -> tuple[Array, Array, Array]:
    """dx: (N,C), dw, db: (C,)."""
    tensors = {"x": x, "w": w, "b": np.zeros_like(w)}
    found = _gradients(lambda t: _normalised(t["x"].T, eps).T * t["w"] + t["b"], dy, tensors)
    return found["x"], found["w"], found["b"]


def factor(n_layer: int) -> float:
    """What fresh projections onto the stream are multiplied by."""
    config = GPT2Config(vocab_size=1, n_positions=1, n_embd=1, n_layer=n_layer, n_head=1)
    std = {parameter.name: parameter.std for parameter in parameter_table(config)}
    return std["h.0.mlp.c_proj.weight"] / std["h.0.mlp.c_fc.weight"]


def stream(x: Array, weights: Array, g: float) -> tuple[Array, Array]:
    """x_n: (N,C), and the standard deviations of x_0 ... x_n."""
    found = [x]
    for w in weights:
        found.append(found[-1] + g * linear.forward(_normalised(found[-1], 1e-5), w, None))
    return found[-1], np.array([x.std() for x in found])


def stream_backward(dy: Array, x: Array, weights: Array, g: float) -> tuple[Array, Array]:
    """dx: (N,C), dweights: (n,C,C)."""
    found = _gradients(lambda t: stream(t["x"], t["weights"], g)[0], dy, {"x": x, "weights": weights})
    return found["x"], found["weights"]


def block(x: Array, p: Mapping[str, Array], n_head: int) -> Array:
    """A block of the Transformer, (B,T,C): a model of one block, whose table holds the rows of x."""
    B, T, C = x.shape
    inner = p["mlp.c_fc.weight"].shape[1]
    config = GPT2Config(vocab_size=B * T, n_positions=T, n_embd=C, n_layer=1, n_head=n_head, n_inner=inner)
    dtype = np.result_type(x, *p.values())
    model = gpt2.zeros(config, dtype)
    model["wte.weight"] = x.reshape(B * T, C).astype(dtype)
    model.update({f"h.0.{name}": value for name, value in p.items()})
    return gpt2.forward(ReferenceLayers(), model, config, np.arange(B * T).reshape(B, T))["h.0.resid_post"]


def block_backward(dy: Array, x: Array, p: Mapping[str, Array], n_head: int) -> tuple[Array, dict[str, Array]]:
    """dy: (B,T,C).  Returns dx, and the gradients of the parameters by name."""
    found = _gradients(lambda t: block(t["x"], {name: t[name] for name in p}, n_head), dy, {"x": x, **p})
    return found.pop("x"), found


def attend(qkv: Array, keys: Array, values: Array, n_head: int) -> tuple[Array, Array, Array]:
    """The last rows of attention over all positions: qkv (n,3C); keys, values: (NH,t,HS) of the positions before."""
    earlier = np.stack([np.zeros_like(keys), keys, values]).transpose(2, 0, 1, 3)  # (t,3,NH,HS)
    rows = np.concatenate([earlier.reshape(len(earlier), qkv.shape[1]), qkv])[None]
    y, _ = attention.forward(rows, n_head)
    _, keys, values = attention.split(rows, n_head)
    return y[0, -len(qkv) :], keys[0], values[0]


def _normalised(x: Array, eps: float) -> Array:
    """LayerNorm without weight and bias; of the transpose, it is BatchNorm."""
    return layernorm.forward(x, np.ones(x.shape[-1]), None, eps)[0]


def _gradients(f: Callable[[Mapping[str, Array]], Array], dy: Array, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Of Σ dy ⊙ f(tensors), by name."""

    def along(name: str, value: Array) -> Any:
        return (dy * f({**tensors, name: value})).sum()

    return {name: _derivative(partial(along, name), value) for name, value in tensors.items()}


def _derivative(f: Callable[[Array], Any], x: Array) -> Array:
    """Of a number f(x), by each element of x."""
    found = np.empty(x.shape)
    for at in np.ndindex(x.shape):
        stepped = x.astype(np.complex128)
        stepped[at] += 1j * STEP
        found[at] = f(stepped).imag / STEP
    return found
