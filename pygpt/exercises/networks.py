"""Exercises from a number's derivative to the layers of a neural network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pygpt.comparing.metrics import TEACHER_FORCED
from pygpt.config import GPT2Config
from pygpt.exercises import mathematics
from pygpt.exercises.exercise import Call, Exercise, floats, project_file
from pygpt.reference import arrays, cross_entropy, embedding, gelu, gpt2, layernorm, linear


def _value() -> Iterator[Call]:
    expressions = (
        (lambda a, b: a + b, [2.0, -3.0]),
        (lambda a, b: a * b, [2.0, -3.0]),
        (lambda a: a + a, [1.5]),
        (lambda a: a * a * a, [1.5]),
        (lambda a: a**3.0, [-1.5]),
        (lambda a: np.tanh(a), [0.7]),
        (lambda a, b: a / b - b, [2.0, 3.0]),
        (lambda a, b, c: np.tanh(a * b + c) * np.tanh(a - 2.0 * c) + a**2.0, [0.3, -0.8, 0.5]),
        (lambda a, b: _repeated(a, b), [0.9, 0.2]),
    )
    for expression, numbers in expressions:
        yield Call("gradients", {"expression": expression, "numbers": numbers}, ("value", "derivatives"))


def _repeated(a: Any, b: Any) -> Any:
    """Each value is used twice: a backward pass that follows every path takes 2^40 steps."""
    for _ in range(40):
        a, b = 0.5 * (a + b), np.tanh(a * b)
    return a + b


def _bigram() -> Iterator[Call]:
    for T, V in ((2, 2), (9, 3), (200, 27)):
        tokens = np.random.default_rng(T).integers(0, V, T)
        yield Call("count", {"tokens": tokens, "vocab_size": V}, ("counts",))
        counts = mathematics.count(tokens, V)
        yield Call("loss", {"counts": counts, "tokens": tokens[: T // 2 + 1]}, ("loss",))


def _softmax() -> Iterator[Call]:
    rng = np.random.default_rng(1)
    for shape, std in (((1,), 1.0), ((3, 5), 1.0), ((2, 3, 7), 30.0), ((4, 9), 3000.0)):
        yield Call("log_sum_exp", {"x": floats(rng, *shape, std=std)}, ("lse",))
    yield Call("log_sum_exp", {"x": floats(rng, 3, 4) - 5000}, ("lse",))


def _cross_entropy() -> Iterator[Call]:
    rng = np.random.default_rng(2)
    for N, V, std in ((1, 2, 1.0), (5, 3, 1.0), (7, 65, 3.0), (6, 9, 1000.0)):
        logits, targets = floats(rng, N, V, std=std), rng.integers(0, V, N)
        yield Call("forward", {"logits": logits, "targets": targets}, ("losses",))
        yield Call("backward", {"dlosses": floats(rng, N), "logits": logits, "targets": targets}, ("dlogits",))
    logits, targets = floats(rng, 4, 3), np.array([1, -1, 2, -1])
    yield Call("forward", {"logits": logits, "targets": targets}, ("losses",))
    yield Call("backward", {"dlosses": floats(rng, 4), "logits": logits, "targets": targets}, ("dlogits",))


def _embedding() -> Iterator[Call]:
    rng = np.random.default_rng(3)
    for B, T, V, C, positions in ((1, 1, 2, 3, 1), (2, 5, 4, 3, 7), (3, 8, 11, 6, 8)):
        tokens, wte, wpe = rng.integers(0, V, (B, T)), floats(rng, V, C), floats(rng, positions, C)
        yield Call("forward", {"tokens": tokens, "wte": wte, "wpe": wpe}, ("x",))
        inputs = {"dx": floats(rng, B, T, C), "tokens": tokens, "wte": wte, "wpe": wpe}
        yield Call("backward", inputs, ("dwte", "dwpe"))


def _linear() -> Iterator[Call]:
    rng = np.random.default_rng(4)
    for rows, IC, OC in (((1,), 3, 2), ((5,), 4, 4), ((2, 3), 7, 5)):
        x, w = floats(rng, *rows, IC), floats(rng, IC, OC)
        yield Call("forward", {"x": x, "w": w, "b": floats(rng, OC)}, ("y",))
        yield Call("backward", {"dy": floats(rng, *rows, OC), "x": x, "w": w}, ("dx", "dw", "db"))


def _gelu() -> Iterator[Call]:
    rng = np.random.default_rng(5)
    for shape, std in (((1,), 1.0), ((3, 5), 1.0), ((2, 3, 4), 30.0)):
        x = floats(rng, *shape, std=std)
        yield Call("forward", {"x": x}, ("y",))
        yield Call("backward", {"dy": floats(rng, *shape), "x": x}, ("dx",))


def _mlp_backward() -> Iterator[Call]:
    rng = np.random.default_rng(6)
    for N, C, inner in ((1, 2, 3), (4, 3, 5)):
        tensors = {"x": floats(rng, N, C), "w1": floats(rng, C, inner), "b1": floats(rng, inner)}
        tensors |= {"w2": floats(rng, inner, C), "b2": floats(rng, C)}
        inputs = {name: value.astype(np.float64) for name, value in {"dy": floats(rng, N, C), **tensors}.items()}
        yield Call("mlp_backward", inputs, tuple(f"d{name}" for name in tensors))


def _initialisation() -> Iterator[Call]:
    for layers, std, seed in ((1, 0.02, 1), (3, 0.5, 7)):
        config = GPT2Config(
            vocab_size=7, n_positions=5, n_embd=4, n_layer=layers, n_head=2, n_inner=6, initializer_range=std
        )
        inputs = {"parameters": gpt2.zeros(config, np.float32), "config": config, "seed": seed}
        yield Call("init_weights", inputs, changed=("parameters",))


def _batchnorm() -> Iterator[Call]:
    rng = np.random.default_rng(8)
    for N, C in ((2, 1), (5, 3), (33, 2)):
        x, w, b = floats(rng, N, C, mean=2, std=3), floats(rng, C, mean=1), floats(rng, C)
        running = {"running_mean": floats(rng, C), "running_var": floats(rng, C) ** 2}
        inputs = {"x": x, "w": w, "b": b, **running, "momentum": 0.1, "eps": 1e-5}
        yield Call("batchnorm", inputs, ("y",), tuple(running))
        yield Call("batchnorm_evaluate", {"x": x, "w": w, "b": b, **running, "eps": 1e-2}, ("y",))
        yield Call("batchnorm_backward", {"dy": floats(rng, N, C), "x": x, "w": w, "eps": 1e-2}, ("dx", "dw", "db"))


def _layernorm() -> Iterator[Call]:
    rng = np.random.default_rng(7)
    for rows, C in (((1,), 8), ((4,), 3), ((2, 3), 33)):
        x, w, b = floats(rng, *rows, C, mean=2, std=3), floats(rng, C, mean=1), floats(rng, C)
        yield Call("forward", {"x": x, "w": w, "b": b, "eps": 1e-5}, ("y", "mean", "rstd"))
        yield Call("forward", {"x": x / 1000, "w": w, "b": b, "eps": 1e-2}, ("y", "mean", "rstd"))
        _, mean, rstd = layernorm.forward(x.astype(np.float64), w, b)
        inputs = {"dy": floats(rng, *rows, C), "x": x, "w": w, "mean": mean, "rstd": rstd}
        yield Call("backward", inputs, ("dx", "dw", "db"))


def _residual_scaling() -> Iterator[Call]:
    for n_layer in (1, 12):
        yield Call("factor", {"n_layer": n_layer}, ("g",))
    rng = np.random.default_rng(9)
    for n, N, C, g in ((1, 1, 3, 1.0), (4, 3, 5, 0.5)):
        tensors = {"x": floats(rng, N, C), "weights": floats(rng, n, C, C, std=C**-0.5)}
        yield Call("stream", {**tensors, "g": g}, ("y", "stds"))
        yield Call("stream_backward", {"dy": floats(rng, N, C), **tensors, "g": g}, ("dx", "dweights"))


EXERCISES = [
    Exercise(
        "value",
        mathematics,
        _value,
        "Let each operation make a Value that keeps its operands and the derivative by each. backward() sorts "
        "them by a depth-first walk that visits each value once, sets its own grad to 1, and goes through the "
        "list from its end.",
    ),
    Exercise(
        "bigram",
        mathematics,
        _bigram,
        "np.add.at(N, (first, next), 1) counts pairs that repeat. For the loss, divide the rows first, then pick "
        "one probability for each pair by indexing with two arrays.",
    ),
    Exercise(
        "softmax",
        arrays,
        _softmax,
        "m is the largest element of the row: x.max(-1, keepdims=True). It is subtracted before exp, added after log.",
        project_file(arrays),
    ),
    Exercise(
        "cross_entropy",
        cross_entropy,
        _cross_entropy,
        "np.take_along_axis(z, targets[:, None], -1) picks the targets' logits; a target of -1 would pick the "
        "last column, so replace it by 0 first, and the result by 0 afterwards.",
        project_file(cross_entropy),
    ),
    Exercise(
        "embedding",
        embedding,
        _embedding,
        "np.add.at(dwte, tokens, dx) adds every time that a token occurs. Rows of wpe from T on have gradient 0.",
        project_file(embedding),
    ),
    Exercise(
        "linear",
        linear,
        _linear,
        "Make two axes of all: x.reshape(-1, IC). Then dW = xᵀ dy, and db is the sum of dy over its rows.",
        project_file(linear),
    ),
    Exercise(
        "gelu",
        gelu,
        _gelu,
        "With t = tanh u: dy/dx = ½ (1 + t) + ½ x (1 − t²) du/dx, where du/dx = √(2/π) (1 + 3 · 0.044715 x²).",
        project_file(gelu),
    ),
    Exercise(
        "mlp_backward",
        mathematics,
        _mlp_backward,
        "da = dy W2ᵀ, dh = da ⊙ GELU′(h), dx = dh W1ᵀ. A weight's gradient is its input's transpose times the "
        "gradient of its output; a bias's is the sum of that over rows.",
    ),
    Exercise(
        "initialisation",
        gpt2,
        _initialisation,
        "enumerate(parameters.items()) numbers them. Ask for the endings of the names: .bias first, then ln_, "
        "then c_proj.weight, which has two kinds, both residual; all that remains is a matrix with σ.",
        "pygpt/parameters.py",
        TEACHER_FORCED["float32"],  # the project rounds to float32
    ),
    Exercise(
        "batchnorm",
        mathematics,
        _batchnorm,
        "Backward, with u = w ⊙ dy: dx = r (u − ⟨u⟩ − x̂ ⟨u ⊙ x̂⟩), where ⟨·⟩ is the mean over rows: LayerNorm's, along "
        "the other axis. running_mean += changes the array, running_mean = only names a new one.",
    ),
    Exercise(
        "layernorm",
        layernorm,
        _layernorm,
        "x̂ depends on x through x, μ and r. dx̂ = u; the path through μ gives −r ⟨u⟩, and the one through r "
        "gives −r x̂ ⟨u ⊙ x̂⟩. dw and db are summed over every axis but the last.",
        project_file(layernorm),
    ),
    Exercise(
        "residual_scaling",
        mathematics,
        _residual_scaling,
        "Keep every x_k. Backward, from the last branch: dW_k = g LN(x_k)ᵀ dx, then dx += the backward pass of LN, as "
        "in the exercise layernorm, of g dx W_kᵀ.",
    ),
]
