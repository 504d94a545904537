"""Exercises from attention's scores to the whole of GPT-2, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.config import GPT2Config
from pygpt.exercises import mathematics
from pygpt.exercises.exercise import Call, Exercise, floats, project_file
from pygpt.reference import attention, gpt2
from pygpt.reference.arrays import Array

SHAPES = ((1, 1, 1, 4), (1, 6, 2, 3), (2, 5, 3, 4))  # B, T, NH, HS


def _scores() -> Iterator[Call]:
    rng = np.random.default_rng(1)
    for B, T, NH, HS in SHAPES:
        yield Call("scores", {"q": floats(rng, B, NH, T, HS), "k": floats(rng, B, NH, T, HS)}, ("s",))


def _one_head() -> Iterator[Call]:
    rng = np.random.default_rng(2)
    for B, T, C in ((1, 1, 4), (1, 6, 3), (2, 5, 8)):
        yield Call("forward", {"qkv": floats(rng, B, T, 3 * C), "n_head": 1}, ("y", "lse"))


def _heads() -> Iterator[Call]:
    rng = np.random.default_rng(3)
    for B, T, NH, HS in SHAPES:
        yield Call("split", {"qkv": floats(rng, B, T, 3 * NH * HS), "n_head": NH}, ("q", "k", "v"))
        yield Call("merge", {"x": floats(rng, B, NH, T, HS)}, ("merged",))


def _attention() -> Iterator[Call]:
    rng = np.random.default_rng(4)
    for B, T, NH, HS in SHAPES:
        yield Call("forward", {"qkv": floats(rng, B, T, 3 * NH * HS), "n_head": NH}, ("y", "lse"))
    # scores whose exponentials overflow
    yield Call("forward", {"qkv": floats(rng, 1, 7, 24, std=50), "n_head": 2}, ("y", "lse"))


def _attention_backward() -> Iterator[Call]:
    rng = np.random.default_rng(5)
    for B, T, NH, HS in SHAPES:
        qkv = floats(rng, B, T, 3 * NH * HS).astype(np.float64)
        y, lse = attention.forward(qkv, NH)
        inputs = {"dy": floats(rng, B, T, NH * HS), "y": y, "lse": lse, "qkv": qkv, "n_head": NH}
        yield Call("backward", inputs, ("dqkv",))


def _block() -> Iterator[Call]:
    rng = np.random.default_rng(6)
    for B, T, C, inner, NH in ((1, 1, 4, 6, 1), (2, 5, 8, 12, 2)):
        yield Call("block", {"x": floats(rng, B, T, C), "p": _block_parameters(rng, C, inner), "n_head": NH}, ("y",))


def _block_backward() -> Iterator[Call]:
    rng = np.random.default_rng(7)
    for B, T, C, inner, NH in ((1, 2, 4, 5, 1), (2, 3, 4, 6, 2)):
        tensors = {"dy": floats(rng, B, T, C), "x": floats(rng, B, T, C)}
        inputs = {**tensors, "p": _block_parameters(rng, C, inner), "n_head": NH}
        yield Call("block_backward", inputs, ("dx", "dp"))


def _block_parameters(rng: np.random.Generator, C: int, inner: int) -> dict[str, Array]:
    config = GPT2Config(vocab_size=1, n_positions=1, n_embd=C, n_layer=1, n_head=1, n_inner=inner)
    p = _parameters(rng, config)
    return {name.removeprefix("h.0."): value for name, value in p.items() if name.startswith("h.0.")}


def _gpt_forward() -> Iterator[Call]:
    for inputs in _models():
        yield Call("forward", inputs, ("a",))


def _gpt_backward() -> Iterator[Call]:
    rng = np.random.default_rng(8)
    for inputs in _models():
        p, config = inputs["p"], inputs["config"]
        a = gpt2.forward(inputs["ops"], p, config, inputs["tokens"], inputs["targets"])
        dp = {name: floats(rng, *value.shape) for name, value in p.items()}
        dlosses = floats(rng, *inputs["tokens"].shape)
        yield Call("backward", {**inputs, "dp": dp, "a": a, "dlosses": dlosses}, ("losses", "da"), ("dp",))


def _models() -> Iterator[dict[str, Any]]:
    """Small ones, with a batch for each."""
    rng = np.random.default_rng(9)
    for B, T, L, NH in ((1, 1, 1, 1), (2, 5, 2, 2)):
        config = GPT2Config(vocab_size=11, n_positions=T + 2, n_embd=8, n_layer=L, n_head=NH, n_inner=12)
        p = {name: value.astype(np.float64) for name, value in _parameters(rng, config).items()}
        tokens, targets = rng.integers(0, 11, (2, B, T))
        yield {"ops": ReferenceLayers(), "p": p, "config": config, "tokens": tokens, "targets": targets}


def _parameters(rng: np.random.Generator, config: GPT2Config) -> dict[str, Array]:
    return {name: floats(rng, *value.shape, std=0.5) for name, value in gpt2.zeros(config, np.float32).items()}


EXERCISES = [
    Exercise(
        "attention_scores",
        attention,
        _scores,
        "q @ k.swapaxes(-1, -2) gives all products. np.tri(T, dtype=bool) is true where u ≤ t, for np.where.",
        project_file(attention),
    ),
    Exercise(
        "attention_head",
        attention,
        _one_head,
        "np.split(qkv, 3, axis=-1), the scores, log_sum_exp of the exercise softmax, exp(s − lse) @ v. lse gets "
        "an axis for its one head.",
        project_file(attention),
    ),
    Exercise(
        "attention_heads",
        attention,
        _heads,
        "Reshape the channels to (NH,HS), then swapaxes(1, 2) exchanges T and NH. merge does both the other way "
        "round: first the exchange, then the reshape.",
        project_file(attention),
    ),
    Exercise(
        "attention",
        attention,
        _attention,
        "Everything of attention_head works on (B,NH,T,HS) unchanged. √HS, not √C. Subtract each row's largest score.",
        project_file(attention),
    ),
    Exercise(
        "attention_backward",
        attention,
        _attention_backward,
        "P = exp(S − lse[..., None]). With dS, dq = dS k, dk = dSᵀ q (both divided by √HS), and dv = Pᵀ dy. "
        "Concatenate the three, merged, along the last axis.",
        project_file(attention),
    ),
    Exercise(
        "block",
        mathematics,
        _block,
        "layernorm_forward returns three things, attention_forward two: the first is the output. The second "
        "branch reads the stream after the first has been added.",
    ),
    Exercise(
        "block_backward",
        mathematics,
        _block_backward,
        "The last branch first. layernorm_backward takes what goes past the branch as dx, and returns the sum. "
        "What it calls mean and rstd, layernorm_forward has returned.",
    ),
    Exercise(
        "gpt_forward",
        gpt2,
        _gpt_forward,
        "The exercise block, with a dictionary that takes every result. The positions are ops.embedding_forward's "
        "work: it takes all rows of wpe.",
        project_file(gpt2),
    ),
    Exercise(
        "gpt_backward",
        gpt2,
        _gpt_backward,
        "A helper for linear layers and one for LayerNorms keep it short. layernorm_backward's dx may be given: "
        "what the residual connection brings past the branch; a copy, or two activations share one array.",
        project_file(gpt2),
    ),
]
