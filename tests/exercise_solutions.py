"""What solves the exercises that are no file of the project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pygpt

Array = NDArray[Any]


class Value:
    """A number, what it was made of, and the derivative by each of these."""

    def __init__(self, data: float, made_of: tuple[tuple[Value, float], ...] = ()) -> None:
        self.data, self.made_of, self.grad = float(data), made_of, 0.0

    def __add__(self, other: Value | float) -> Value:
        other = as_value(other)
        return Value(self.data + other.data, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other: Value | float) -> Value:
        other = as_value(other)
        return Value(self.data * other.data, ((self, other.data), (other, self.data)))

    def __pow__(self, exponent: float) -> Value:
        return Value(self.data**exponent, ((self, exponent * self.data ** (exponent - 1)),))

    def tanh(self) -> Value:
        t = np.tanh(self.data)
        return Value(t, ((self, 1 - t**2),))

    def backward(self) -> None:
        ordered: list[Value] = []
        seen: set[int] = set()

        def visit(value: Value) -> None:
            if id(value) not in seen:
                seen.add(id(value))
                for source, _ in value.made_of:
                    visit(source)
                ordered.append(value)

        visit(self)
        self.grad = 1.0
        for value in reversed(ordered):
            for source, derivative in value.made_of:
                source.grad += value.grad * derivative

    def __radd__(self, other: float) -> Value:
        return self + other

    def __rmul__(self, other: float) -> Value:
        return self * other

    def __neg__(self) -> Value:
        return self * -1.0

    def __sub__(self, other: Value | float) -> Value:
        return self + -1.0 * other

    def __truediv__(self, other: Value) -> Value:
        return self * other**-1.0


def as_value(x: Value | float) -> Value:
    return x if isinstance(x, Value) else Value(x)


def gradients(expression: Callable[..., Value], numbers: Sequence[float]) -> tuple[float, Array]:
    leaves = [Value(number) for number in numbers]
    result = expression(*leaves)
    result.backward()
    return result.data, np.array([leaf.grad for leaf in leaves])


def count(tokens: Array, vocab_size: int) -> Array:
    counts = np.zeros((vocab_size, vocab_size))
    for a, b in pairwise(tokens):
        counts[a, b] += 1
    return counts


def loss(counts: Array, tokens: Array) -> float:
    p = (counts + 1) / (counts + 1).sum(1, keepdims=True)
    return float(-np.log(p[tokens[:-1], tokens[1:]]).mean())


ops = pygpt.layers("numpy", dtype="float64")


def mlp_backward(dy: Array, x: Array, w1: Array, b1: Array, w2: Array, b2: Array) -> tuple[Array, ...]:
    h = ops.linear_forward(x, w1, b1)
    da, dw2, db2 = ops.linear_backward(dy, ops.gelu_forward(h), w2)
    dx, dw1, db1 = ops.linear_backward(ops.gelu_backward(da, h), x, w1)
    return dx, dw1, db1, dw2, db2


def batchnorm(
    x: Array, w: Array, b: Array, running_mean: Array, running_var: Array, momentum: float, eps: float
) -> Array:
    mean, var = x.mean(0), x.var(0)
    running_mean += momentum * (mean - running_mean)
    running_var += momentum * (var - running_var)
    return batchnorm_evaluate(x, w, b, mean, var, eps)


def batchnorm_evaluate(x: Array, w: Array, b: Array, running_mean: Array, running_var: Array, eps: float) -> Array:
    return (x - running_mean) / np.sqrt(running_var + eps) * w + b


def batchnorm_backward(dy: Array, x: Array, w: Array, eps: float) -> tuple[Array, ...]:
    r = 1 / np.sqrt(x.var(0) + eps)
    x_hat, u = (x - x.mean(0)) * r, w * dy
    return r * (u - u.mean(0) - x_hat * (u * x_hat).mean(0)), (dy * x_hat).sum(0), dy.sum(0)


def factor(n_layer: int) -> float:
    return (2 * n_layer) ** -0.5


def normalised(x: Array) -> tuple[Array, Array, Array]:
    return ops.layernorm_forward(x, np.ones(x.shape[1]), np.zeros(x.shape[1]))


def states(x: Array, weights: Array, g: float) -> list[Array]:
    found = [x]
    for w in weights:
        found.append(found[-1] + g * normalised(found[-1])[0] @ w)
    return found


def stream(x: Array, weights: Array, g: float) -> tuple[Array, Array]:
    found = states(x, weights, g)
    return found[-1], np.array([x.std() for x in found])


def stream_backward(dy: Array, x: Array, weights: Array, g: float) -> tuple[Array, Array]:
    dx, dweights = dy, np.empty_like(weights)
    for k, (state, w) in reversed(list(enumerate(zip(states(x, weights, g), weights, strict=False)))):
        y, mean, rstd = normalised(state)
        dweights[k] = g * y.T @ dx
        dx = dx + ops.layernorm_backward(g * dx @ w.T, state, np.ones(x.shape[1]), mean, rstd)[0]
    return dx, dweights


def activations(x: Array, p: dict[str, Array], n_head: int) -> dict[str, Any]:
    """Of a block, each under the name of its layer; the statistics of a LayerNorm follow its output."""

    def affine(name: str, x: Array) -> Array:
        return ops.linear_forward(x, p[f"{name}.weight"], p[f"{name}.bias"])

    a: dict[str, Any] = {"x": x, "ln_1": ops.layernorm_forward(x, p["ln_1.weight"], p["ln_1.bias"])}
    a["c_attn"] = affine("attn.c_attn", a["ln_1"][0])
    a["heads"] = ops.attention_forward(a["c_attn"], n_head)
    a["mid"] = x + affine("attn.c_proj", a["heads"][0])
    a["ln_2"] = ops.layernorm_forward(a["mid"], p["ln_2.weight"], p["ln_2.bias"])
    a["c_fc"] = affine("mlp.c_fc", a["ln_2"][0])
    a["act"] = ops.gelu_forward(a["c_fc"])
    a["y"] = a["mid"] + affine("mlp.c_proj", a["act"])
    return a


def block(x: Array, p: dict[str, Array], n_head: int) -> Array:
    return activations(x, p, n_head)["y"]


def block_backward(dy: Array, x: Array, p: dict[str, Array], n_head: int) -> tuple[Array, dict[str, Array]]:
    a, dp = activations(x, p, n_head), {}

    def affine(name: str, dy: Array, x: Array) -> Array:
        dx, dp[f"{name}.weight"], dp[f"{name}.bias"] = ops.linear_backward(dy, x, p[f"{name}.weight"])
        return dx

    def norm(name: str, dy: Array, x: Array, past: Array) -> Array:
        _, mean, rstd = a[name]
        found = ops.layernorm_backward(dy, x, p[f"{name}.weight"], mean, rstd)
        dp[f"{name}.weight"], dp[f"{name}.bias"] = found[1:]
        return past + found[0]

    dh = ops.gelu_backward(affine("mlp.c_proj", dy, a["act"]), a["c_fc"])
    dmid = norm("ln_2", affine("mlp.c_fc", dh, a["ln_2"][0]), a["mid"], dy)
    dheads = affine("attn.c_proj", dmid, a["heads"][0])
    dqkv = ops.attention_backward(dheads, *a["heads"], a["c_attn"], n_head)
    return norm("ln_1", affine("attn.c_attn", dqkv, a["ln_1"][0]), x, dmid), dp


def attend(qkv: Array, keys: Array, values: Array, n_head: int) -> tuple[Array, Array, Array]:
    n, before = len(qkv), keys.shape[1]
    q, k, v = qkv.reshape(n, 3, n_head, -1).transpose(1, 2, 0, 3)
    keys, values = np.concatenate([keys, k], 1), np.concatenate([values, v], 1)
    s = q @ keys.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    p = np.exp(s) * np.tri(n, before + n, before)
    y = p / p.sum(-1, keepdims=True) @ values
    return y.swapaxes(0, 1).reshape(n, -1), keys, values
