"""Singular values of weights, beside the law of random matrices (Marchenko & Pastur 1967).

For a matrix of N x M independent numbers of standard deviation σ, N ≥ M, the eigenvalues λ of AᵀA / N have the density

    √((λ₊ − λ)(λ − λ₋)) / (2π σ² y λ)      λ± = σ² (1 ± √y)²      y = M / N

so the largest singular value is near √(N λ₊) = σ (√N + √M), the edge. A fresh model fits; what training has learned
stands above the edge. QKᵀ = W_q W_kᵀ and OV = W_v W_o of each head are products, for which the law does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pygpt.command.flags import nearest
from pygpt.errors import UserError
from pygpt.model import GPT2
from pygpt.reference.arrays import Array
from pygpt.study.result import Curves, Result
from pygpt.text.text_files import listing


def spectrum(model: GPT2, name: str | None = None) -> Result:
    """Of every matrix and head, or of the one of this name, such as wte.weight, h.0.attn.c_attn.weight, h.0.head.1.qk.

    Arrays: singular values by name, largest first.  Raises UserError for a name that the model does not have.
    """
    known = _names(model)
    if name is not None and name not in known:
        raise UserError(f"there is no matrix {name}, expected {listing(known)}{nearest(name, known)}")
    rows, arrays, panels = [], {}, []
    for matrix, shape, s, sigma in _singular_values(model):
        if name not in (None, matrix):
            continue
        arrays[matrix] = s
        law: tuple[object, ...] = ("", "", "")
        lines = {"singular values": s}
        if sigma:
            N, M = max(shape), min(shape)
            edge = sigma * (np.sqrt(N) + np.sqrt(M))
            law = (float(edge), int((s > edge).sum()), distance(s, N, M, sigma))
            lines["Marchenko–Pastur"] = expected(N, M, sigma)
        effective = float((s**2).sum() ** 2 / (s**4).sum()) if s.any() else 0.0
        rows.append((matrix, " x ".join(map(str, shape)), float(s[0]), *law, effective))
        panels.append(Curves(matrix, np.arange(len(s)), lines, "number", "singular value"))
    columns = ("matrix", "shape", "largest", "edge", "above it", "distance from the law", "effective rank")
    title = "singular values; distance: the largest between the distribution and the law's; rank: (Σs²)² / Σs⁴"
    return Result(title, columns, rows, arrays, panels)


def law(N: int, M: int, sigma: float) -> tuple[Array, Array]:
    """Singular values in ascending order, and the part of them that the law has below each."""
    y = M / N
    angle = np.linspace(np.pi, 0, 4001)
    between = (angle[1:] + angle[:-1]) / 2  # where no eigenvalue is 0
    density = np.sin(between) ** 2 / (1 + y + 2 * np.sqrt(y) * np.cos(between))  # over the angle, up to a factor
    below = np.concatenate([[0.0], np.cumsum(density)])
    eigenvalue = np.maximum(sigma**2 * (1 + y + 2 * np.sqrt(y) * np.cos(angle)), 0)
    return np.sqrt(N * eigenvalue), below / below[-1]


def expected(N: int, M: int, sigma: float) -> Array:
    """The law's singular values, largest first: (M,)."""
    at, below = law(N, M, sigma)
    return np.interp((np.arange(M, 0, -1) - 0.5) / M, below, at)


def distance(s: Array, N: int, M: int, sigma: float) -> float:
    """The largest distance between the distribution of singular values, (M,), and the law (Kolmogorov's)."""
    at, below = law(N, M, sigma)
    right = np.interp(np.sort(s), at, below)
    steps = np.arange(M + 1) / M
    return float(max(abs(right - steps[1:]).max(), abs(right - steps[:-1]).max()))


def _singular_values(model: GPT2) -> Iterator[tuple[str, tuple[int, int], Array, float]]:
    """Name, shape, singular values, and σ of the elements, 0 for a product."""
    config, C = model.config, model.config.n_embd
    for name, value in model.parameters.items():
        if value.ndim == 2:
            w = np.asarray(value, np.float64)
            yield name, w.shape, np.linalg.svd(w, compute_uv=False), float(np.sqrt(np.mean(w**2)))
    for layer in range(config.n_layer):
        qkv = np.asarray(model.parameters[f"h.{layer}.attn.c_attn.weight"], np.float64)
        o = np.asarray(model.parameters[f"h.{layer}.attn.c_proj.weight"], np.float64)
        for head in range(config.n_head):
            part = slice(head * config.head_size, (head + 1) * config.head_size)
            q, k, v = (of[:, part] for of in np.split(qkv, 3, axis=1))
            yield _head(layer, head, "qk"), (C, C), _of_product(q, k), 0.0
            yield _head(layer, head, "ov"), (C, C), _of_product(v, o[part].T), 0.0


def _of_product(a: Array, b: Array) -> Array:
    """a, b: (C,HS).  Returns the singular values of a bᵀ that may differ from 0: (HS,)."""
    return np.linalg.svd(np.linalg.qr(a)[1] @ np.linalg.qr(b)[1].T, compute_uv=False)


def _head(layer: int, head: int, product: str) -> str:
    return f"h.{layer}.head.{head}.{product}"


def _names(model: GPT2) -> list[str]:
    config = model.config
    matrices = [name for name, value in model.parameters.items() if value.ndim == 2]
    return matrices + [
        _head(layer, head, product)
        for layer in range(config.n_layer)
        for head in range(config.n_head)
        for product in ("qk", "ov")
    ]
