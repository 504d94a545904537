"""Each operation once, at the shapes that break things: what the tests of correctness and the benchmarks run on.

A case is made by a function that is named after the layer and takes its sizes, so a benchmark can make others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pygpt.comparing.layer_call import LayerCall
from pygpt.reference.dropout import Dropout

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


@dataclass(frozen=True)
class Case:
    """The forward call of a layer, and its backward call if it has one, with the same inputs."""

    name: str
    make: Callable[[], list[LayerCall]]

    def __str__(self) -> str:
        return self.name

    @cached_property
    def calls(self) -> list[LayerCall]:
        return self.make()


def normal(*shape: int, seed: int = 0, mean: float = 0.0, std: float = 1.0) -> Floats:
    return np.random.default_rng([seed, *shape]).normal(mean, std, shape).astype(np.float32)


def integers(high: int, *shape: int, seed: int = 0) -> Integers:
    return np.random.default_rng([seed, *shape]).integers(0, high, shape, np.int32)


def targets_of(N: int, V: int) -> Integers:
    """The first and the last token among them, and every third left out."""
    targets = integers(V, N)
    targets[0], targets[-1] = 0, V - 1
    targets[1:-1:3] = -1
    return targets


def embedding(B: int, T: int, V: int, C: int, positions: int | None) -> Case:
    """positions: rows of wpe, None for no wpe."""

    def make() -> list[LayerCall]:
        wpe = normal(positions, C, seed=1) if positions else None
        tokens, weights = integers(V, B, T), {"wte": normal(V, C), "wpe": wpe}
        tokens[0, -1] = V - 1
        return [
            LayerCall("embedding_forward", {"tokens": tokens, **weights}, ("x",)),
            LayerCall("embedding_backward", {"dx": normal(B, T, C), "tokens": tokens, **weights}, ("dwte", "dwpe")),
        ]

    return Case(f"embedding-B{B}-T{T}-V{V}-C{C}" + ("" if positions else "-no_wpe"), make)


def layernorm(N: int, C: int, bias: bool = True) -> Case:
    def make() -> list[LayerCall]:
        x, weight = normal(N, C, mean=2.0, std=3.0), normal(C, mean=1.0, std=0.5)
        inputs = {"x": x, "weight": weight, "bias": normal(C, seed=1) if bias else None, "eps": 1e-5}
        forward = LayerCall("layernorm_forward", inputs, ("y", "mean", "rstd"))
        statistics = {name: forward.exact[name].astype(np.float32) for name in ("mean", "rstd")}
        inputs = {"dy": normal(N, C, seed=2), "x": x, "weight": weight, **statistics}
        return [forward, LayerCall("layernorm_backward", inputs, ("dx", "dweight", "dbias"))]

    return Case(f"layernorm-N{N}-C{C}" + ("" if bias else "-no_bias"), make)


def linear(N: int, IC: int, OC: int, bias: bool = True) -> Case:
    def make() -> list[LayerCall]:
        inputs = {"x": normal(N, IC), "weight": normal(IC, OC, seed=1)}
        forward = LayerCall("linear_forward", {**inputs, "bias": normal(OC, seed=2) if bias else None}, ("y",))
        inputs["dy"] = normal(N, OC, seed=3)
        return [forward, LayerCall("linear_backward", inputs, ("dx", "dweight", "dbias"))]

    return Case(f"linear-N{N}-IC{IC}-OC{OC}" + ("" if bias else "-no_bias"), make)


def matmul(M: int, N: int, K: int, transposed: str = "") -> Case:
    """transposed: which of the operands are, "", "a", "b" or "ab"."""

    def make() -> list[LayerCall]:
        a = normal(*((K, M) if "a" in transposed else (M, K)))
        b = normal(*((N, K) if "b" in transposed else (K, N)), seed=1)
        flags = {"transpose_a": "a" in transposed, "transpose_b": "b" in transposed}
        return [LayerCall("matmul", {"a": a, "b": b, **flags}, ("c",))]

    return Case(f"matmul-M{M}-N{N}-K{K}" + (f"-{transposed}" if transposed else ""), make)


def rotary(B: int, T: int, NH: int, HS: int) -> Case:
    def make() -> list[LayerCall]:
        qkv = {"qkv": normal(B, T, 3 * NH * HS), "n_head": NH}
        dqkv = {"dqkv": normal(B, T, 3 * NH * HS, seed=1), "n_head": NH}
        return [LayerCall("rotary_forward", qkv, ("y",)), LayerCall("rotary_backward", dqkv, ("dx",))]

    return Case(f"rotary-B{B}-T{T}-NH{NH}-HS{HS}", make)


def attention(
    B: int,
    T: int,
    NH: int,
    HS: int,
    dropout: float = 0.0,
    std: float = 1.0,
    scale: float | None = None,
    causal: bool = True,
) -> Case:
    def make() -> list[LayerCall]:
        drop = Dropout(dropout, seed=2**40 + 1, site=2, step=3) if dropout else None
        inputs = {
            "qkv": normal(B, T, 3 * NH * HS, std=std),
            "n_head": NH,
            "dropout": drop,
            "scale": scale,
            "causal": causal,
        }
        forward = LayerCall("attention_forward", inputs, ("y", "lse"))
        results = {name: forward.exact[name].astype(np.float32) for name in ("y", "lse")}
        inputs = {"dy": normal(B, T, NH * HS, seed=1), **results, **inputs}
        probabilities = LayerCall(
            "attention_probabilities",
            {name: inputs[name] for name in ("lse", "qkv", "n_head", "scale", "causal")},
            ("p",),
        )
        return [forward, LayerCall("attention_backward", inputs, ("dqkv",)), probabilities]

    name = f"attention-B{B}-T{T}-NH{NH}-HS{HS}" + (f"-std{std:g}" if std != 1.0 else "")
    name += "" if causal else "-bidirectional"
    name += "" if scale is None else f"-scale{scale:g}"
    return Case(name + (f"-dropout{dropout:g}" if dropout else ""), make)


def activation(layer: str, n: int) -> Case:
    """layer: gelu, exact_gelu, relu."""

    def make() -> list[LayerCall]:
        x = normal(n, std=2.0)
        x[: n // 2 : 7] *= 20  # where tanh is 1 in float32, and beyond where exp overflows
        return [
            LayerCall(f"{layer}_forward", {"x": x}, ("y",)),
            LayerCall(f"{layer}_backward", {"dy": normal(n, seed=1), "x": x}, ("dx",)),
        ]

    return Case(f"{layer}-{n}", make)


def residual(n: int) -> Case:
    def make() -> list[LayerCall]:
        return [
            LayerCall("residual_forward", {"x1": normal(n), "x2": normal(n, seed=1)}, ("y",)),
            LayerCall("residual_backward", {"dy": normal(n, seed=2)}, ("dx1", "dx2")),
        ]

    return Case(f"residual-{n}", make)


def dropout(n: int, p: float) -> Case:
    def make() -> list[LayerCall]:
        drop = Dropout(p, seed=2**63 + 5, site=7, step=11)
        return [
            LayerCall("dropout_forward", {"x": normal(n), "dropout": drop}, ("y",)),
            LayerCall("dropout_backward", {"dy": normal(n, seed=1), "dropout": drop}, ("dx",)),
        ]

    return Case(f"dropout-{n}-p{p:g}", make)


def cross_entropy(N: int, V: int, Vp: int, std: float = 3.0) -> Case:
    def make() -> list[LayerCall]:
        inputs = {"logits": normal(N, Vp, std=std), "targets": targets_of(N, V), "vocab_size": V}
        return [
            LayerCall("cross_entropy_forward", inputs, ("losses",)),
            LayerCall("cross_entropy_backward", {"dlosses": normal(N), **inputs}, ("dlogits",)),
            LayerCall("cross_entropy_in_place", {"dlosses": normal(N), **inputs}, ("losses", "dlogits")),
        ]

    return Case(f"cross_entropy-N{N}-V{V}-Vp{Vp}" + (f"-std{std:g}" if std != 3.0 else ""), make)


def classifier(N: int, C: int, V: int, rows: int | None) -> Case:
    def make() -> list[LayerCall]:
        inputs = {"x": normal(N, C), "wte": normal(V, C, seed=1, std=0.2), "targets": targets_of(N, V), "rows": rows}
        return [
            LayerCall("classifier_forward", inputs, ("losses",)),
            LayerCall("classifier_backward", {"dlosses": normal(N, seed=2), **inputs}, ("losses", "dx", "dwte")),
        ]

    return Case(f"classifier-N{N}-C{C}-V{V}-rows{rows}", make)


def in_float32(rates: dict[str, float]) -> dict[str, float]:
    return {name: float(np.float32(value)) for name, value in rates.items()}  # 1 - beta2 would differ


def adamw(n: int, step: int, weight_decay: float) -> Case:
    def make() -> list[LayerCall]:
        tensors = {"w": normal(n), "m": normal(n, seed=1), "v": normal(n, seed=2) ** 2, "dw": normal(n, seed=3)}
        rates = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": weight_decay}
        return [LayerCall("adamw_step", {**tensors, **in_float32(rates), "step": step}, ("w", "m", "v"))]

    return Case(f"adamw-{n}-step{step}", make)


def sgd(n: int, momentum: float) -> Case:
    def make() -> list[LayerCall]:
        tensors = {"w": normal(n), "m": normal(n, seed=1) if momentum else None, "dw": normal(n, seed=3)}
        rates = in_float32({"lr": 0.3, "momentum": momentum, "weight_decay": 0.1})
        return [LayerCall("sgd_step", {**tensors, **rates}, ("w", "m") if momentum else ("w",))]

    return Case(f"sgd-{n}" + (f"-momentum{momentum:g}" if momentum else ""), make)


def muon(R: int, C: int, parts: int = 1) -> Case:
    """Of small weights and a large rate, so that what w becomes is mostly the update."""

    def make() -> list[LayerCall]:
        tensors = {"w": normal(R, C, std=1e-3), "m": normal(R, C, seed=1), "dw": normal(R, C, seed=3)}
        rates = in_float32({"lr": 1.0, "momentum": 0.95, "weight_decay": 0.1})
        return [LayerCall("muon_step", {**tensors, **rates, "parts": parts}, ("w", "m"))]

    return Case(f"muon-R{R}-C{C}" + (f"-parts{parts}" if parts > 1 else ""), make)


CASES = [
    embedding(1, 1, 2, 8, positions=1),
    embedding(3, 5, 4, 24, positions=7),
    embedding(2, 67, 65, 80, positions=80),
    embedding(1, 3, 50257, 8, positions=4),
    embedding(2, 5, 4, 24, positions=None),
    layernorm(1, 8),
    layernorm(4, 3),
    layernorm(5, 33),
    layernorm(67, 80),
    layernorm(19, 768),
    layernorm(5, 1600),
    layernorm(5, 1027),  # wider than a block of CUDA's backward pass
    layernorm(3, 8200),
    linear(1, 8, 8),
    linear(1, 33, 65),
    linear(2, 801, 51),
    linear(1, 40, 301),
    linear(3, 33, 203),
    linear(4, 801, 101),
    linear(5, 7, 9),
    linear(4, 24, 7, bias=False),
    linear(7, 129, 100),
    linear(67, 80, 240),
    linear(33, 1601, 37),
    linear(131, 257, 517),
    *(matmul(5, 7, 3, transposed) for transposed in ("", "a", "b", "ab")),
    *(matmul(37, 131, 67, transposed) for transposed in ("", "a", "b", "ab")),
    *(matmul(100, 259, 801, transposed) for transposed in ("", "a", "b", "ab")),
    matmul(20, 2801, 1601),
    matmul(1401, 17, 1541, "a"),
    matmul(1, 50257, 16, "b"),
    matmul(2, 35, 33, "b"),
    matmul(3, 65, 801, "b"),
    matmul(4, 70, 17, "b"),
    matmul(6, 66, 31),
    rotary(1, 1, 1, 2),
    rotary(2, 7, 3, 6),
    rotary(3, 67, 2, 80),
    rotary(1, 5000, 1, 8),  # angles with many digits
    attention(1, 1, 1, 8),
    attention(2, 1, 3, 64),
    attention(2, 7, 3, 8),
    attention(1, 33, 2, 32),
    attention(2, 67, 1, 64),
    attention(1, 17, 2, 80),
    attention(1, 35, 1, 128),
    attention(1, 131, 2, 32),
    attention(1, 5, 2, 5),
    attention(1, 9, 1, 32, std=2.0),
    attention(2, 67, 2, 64, scale=0.3),
    attention(1, 9, 2, 5, scale=0.7),
    attention(1, 300, 1, 64),
    attention(2, 19, 2, 8, dropout=0.3),
    attention(1, 66, 1, 64, dropout=0.1),
    attention(1, 1, 1, 8, causal=False),
    attention(2, 67, 2, 8, causal=False),
    attention(1, 131, 1, 64, causal=False),
    attention(1, 17, 2, 5, causal=False),
    attention(2, 19, 2, 8, dropout=0.3, causal=False),
    *(activation(layer, n) for layer in ("gelu", "exact_gelu", "relu") for n in (1, 7, 1003)),
    residual(1),
    residual(1003),
    dropout(1, 0.5),
    dropout(1003, 0.1),
    dropout(6, 0.0),
    cross_entropy(1, 2, 2),
    cross_entropy(1, 1, 1),
    cross_entropy(5, 65, 65),
    cross_entropy(7, 65, 80),
    cross_entropy(3, 50257, 50304),
    cross_entropy(3, 11967, 11968),
    cross_entropy(5, 65, 65, std=100.0),
    classifier(1, 8, 2, rows=None),
    classifier(7, 24, 65, rows=3),
    classifier(67, 80, 65, rows=64),
    classifier(3, 16, 50257, rows=2),
    adamw(1, step=1, weight_decay=0.0),
    adamw(1003, step=10, weight_decay=0.1),
    sgd(1, momentum=0.0),
    sgd(1003, momentum=0.0),
    sgd(1003, momentum=0.9),
    muon(1, 1),
    muon(1, 9),
    muon(9, 1),
    muon(7, 5),
    muon(33, 65),
    muon(67, 24),
    muon(40, 120, parts=3),
    muon(129, 100, parts=2),
    # above the sizes from which a layer divides its work (csrc/divides_work.h), where no case above is
    embedding(3, 367, 300, 8, positions=367),
    embedding(1, 3, 4, 1032, positions=3),
    layernorm(13, 72, bias=False),
    layernorm(4101, 4),
    layernorm(1601, 264),
    attention(1, 523, 1, 8),
    attention(1, 523, 1, 8, dropout=0.1),
    attention(1, 523, 1, 8, dropout=0.1, causal=False),
    *(activation(layer, 10007) for layer in ("gelu", "exact_gelu", "relu")),
    residual(4099),
    dropout(10007, 0.1),
    adamw(10007, step=3, weight_decay=0.1),
    sgd(10007, momentum=0.9),
    muon(200, 300),
]
