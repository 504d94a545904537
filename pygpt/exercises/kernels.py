"""Exercises in C and in CUDA: the functions of csrc/pygpt.h, from float32 to float32, as Python calls any layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.comparing.metrics import TEACHER_FORCED
from pygpt.exercises.exercise import Call, Exercise, floats


def _gelu() -> Iterator[Call]:
    rng = np.random.default_rng(1)
    for n, std in ((1, 1.0), (7, 1.0), (1003, 5.0)):
        x = floats(rng, n, std=std)
        yield Call("gelu_forward", {"x": x}, ("y",))
        yield Call("gelu_backward", {"dy": floats(rng, n), "x": x}, ("dx",))


def _layernorm_forward() -> Iterator[Call]:
    rng = np.random.default_rng(2)
    for N, C in ((1, 8), (4, 3), (5, 33), (67, 80)):
        inputs = {"x": floats(rng, N, C, mean=2, std=3), "weight": floats(rng, C), "bias": floats(rng, C)}
        yield Call("layernorm_forward", {**inputs, "eps": 1e-5}, ("y", "mean", "rstd"))
    inputs = {"x": floats(rng, 3, 40, mean=100), "weight": floats(rng, 40), "bias": floats(rng, 40)}
    yield Call("layernorm_forward", {**inputs, "eps": 1e-5}, ("y", "mean", "rstd"))


def _layernorm() -> Iterator[Call]:
    yield from _layernorm_forward()
    rng = np.random.default_rng(3)
    for N, C in ((1, 8), (4, 3), (5, 33), (67, 80)):
        x, weight = floats(rng, N, C, mean=2, std=3), floats(rng, C)
        _, mean, rstd = ReferenceLayers().layernorm_forward(x.astype(np.float64), weight, weight)
        statistics = {"mean": mean.astype(np.float32), "rstd": rstd.astype(np.float32)}
        to = {"dx": floats(rng, N, C), "dweight": floats(rng, C), "dbias": floats(rng, C)}
        inputs = {"dy": floats(rng, N, C), "x": x, "weight": weight, **statistics, **to}
        yield Call("layernorm_backward", inputs, tuple(to))


def _matmul() -> Iterator[Call]:
    rng = np.random.default_rng(4)
    for M, N, K in ((1, 1, 1), (5, 7, 3), (37, 131, 67)):
        for transpose_a in (False, True):
            for transpose_b in (False, True):
                a = floats(rng, *((K, M) if transpose_a else (M, K)))
                b = floats(rng, *((N, K) if transpose_b else (K, N)))
                inputs = {"a": a, "b": b, "transpose_a": transpose_a, "transpose_b": transpose_b}
                yield Call("matmul", inputs, ("c",))


def _cross_entropy() -> Iterator[Call]:
    rng = np.random.default_rng(5)
    for N, V, Vp, std in ((1, 2, 2, 1.0), (5, 65, 65, 3.0), (7, 65, 80, 3.0), (4, 9, 9, 100.0)):
        logits, targets = floats(rng, N, Vp, std=std), rng.integers(0, V, N, np.int32)
        targets[1::3] = -1
        inputs: dict[str, Any] = {"logits": logits, "targets": targets, "vocab_size": V}
        yield Call("cross_entropy_forward", inputs, ("losses",))
        yield Call("cross_entropy_backward", {"dlosses": floats(rng, N), **inputs}, ("dlogits",))


def _attention() -> Iterator[Call]:
    rng = np.random.default_rng(6)
    for B, T, NH, HS, std in ((1, 1, 1, 8, 1.0), (2, 7, 3, 8, 1.0), (1, 33, 2, 5, 1.0), (1, 9, 1, 16, 10.0)):
        yield Call("attention_forward", {"qkv": floats(rng, B, T, 3 * NH * HS, std=std), "n_head": NH}, ("y", "lse"))


def _residual() -> Iterator[Call]:
    rng = np.random.default_rng(7)
    for n in (1, 256, 1003):
        yield Call("residual_forward", {"x1": floats(rng, n), "x2": floats(rng, n)}, ("y",))


def _kernel(name: str, calls: Callable[[], Iterator[Call]], solution: str, hint: str) -> Exercise:
    return Exercise(name, ReferenceLayers(), calls, hint, solution, TEACHER_FORCED["float32"])


EXERCISES = [
    _kernel(
        "c_gelu",
        _gelu,
        "csrc/layers/gelu.c",
        "static const float SQRT_2_OVER_PI = 0.7978845608028654f; the rest is the formulas, for each i below n.",
    ),
    _kernel(
        "c_layernorm",
        _layernorm,
        "csrc/layers/layernorm.c",
        "Sum in double. Backward, each row needs two sums over its channels before its dx can be written.",
    ),
    _kernel(
        "c_matmul",
        _matmul,
        "csrc/layers/matmul.c",
        "op(a)_ik is a[i * K + k], or a[k * M + i] if transposed; op(b)_kj is b[k * N + j], or b[j * K + k].",
    ),
    _kernel(
        "c_cross_entropy",
        _cross_entropy,
        "csrc/layers/cross_entropy.c",
        "Row n begins at logits + n * Vp. Write every element of dlogits: rows that are left out, and the "
        "padding, as 0. Subtract the largest logit before the logarithm is added: their sum has too few digits in "
        "float32.",
    ),
    _kernel(
        "c_attention",
        _attention,
        "csrc/layers/attention.c",
        "Head h of position u has its key at qkv + (b * T + u) * 3 * C + C + h * HS. Row t of lse, which is not "
        "written yet, has no room for t + 1 scores unless the last row comes first; a variable-length array does.",
    ),
    _kernel(
        "cuda_residual",
        _residual,
        "cuda/layers/residual.cu",
        "const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; if (i < n) ...",
    ),
    _kernel(
        "cuda_gelu",
        _gelu,
        "cuda/layers/gelu.cu",
        "A __global__ static function with the body of the loop in C, for one i. Constants with an f.",
    ),
    _kernel(
        "cuda_layernorm",
        _layernorm_forward,
        "cuda/layers/layernorm.cu",
        "With blocks of 128 threads: n = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, "
        "blocks_for(N, 4) blocks; if (n >= N) return. In warp_sum, x += __shfl_xor_sync(0xffffffffu, x, delta) "
        "for delta = 16, 8, 4, 2, 1.",
    ),
]
