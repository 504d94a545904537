"""The tensors of a page: float32, in a block for each block of the model and one for the two ends.

Names: an activation or parameter as it is; `d:` before it for its gradient, `D:` for its change in the step, `m:` and
`v:` for AdamW's moments before the step. Scores and the gradients of probabilities are stored for each head, as S and
P, and in a causal model only up to the diagonal. What follows from these (P, dS, ΔP, p) the page computes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pygpt.reference.arrays import Array, log_sum_exp
from pygpt.study.page.graph import Layer, graph
from pygpt.study.page.window import Rows, Window
from pygpt.study.step import Step


@dataclass(frozen=True)
class Stored:
    """One tensor of two axes; lower: only up to the diagonal, "S" where −∞ lies above it and "0" where 0 does."""

    name: str
    block: int
    values: Array
    rows: Rows = None
    columns: Rows = None
    lower: str | None = None

    @property
    def size(self) -> int:
        rows, columns = self.values.shape
        if self.lower:
            return rows * (rows + 1) // 2
        return (rows if self.rows is None else len(self.rows)) * (
            columns if self.columns is None else len(self.columns)
        )

    def numbers(self) -> Array:
        """What is stored, in one row."""
        if self.lower:
            return self.values[np.tri(len(self.values), dtype=bool)]
        part = self.values if self.rows is None else self.values[self.rows]
        return (part if self.columns is None else part[:, self.columns]).ravel()


def tensors(step: Step, window: Window) -> Iterator[Stored]:
    """All that a page stores."""
    config, layers = step.before.config, graph(step.before)
    ends = config.n_layer
    shown = [(layer, ends if layer.block is None else layer.block) for layer in layers if _is_shown(layer, window)]
    places: dict[str, int] = {}  # of the activations that these put out or read: in whose numbers they stand
    for layer, block in shown:
        places |= {name: block for name in layer.ins if name not in places} | {layer.id: block}
    for name, block in places.items():
        yield from _activation(step, window, name, block)
    for layer, block in shown:
        if layer.kind == "attention":
            yield from _attention(step, layer.id.removesuffix(".heads"), block)
        elif layer.kind == "layernorm":
            yield from _norm(step, layer.id, layer.ins[0], block, window)
        elif layer.kind == "linear":
            yield from _weights(step, window, layer.id, block)
    before, change = _lse(step)
    yield Stored("lse", ends, before)
    yield Stored("D:lse", ends, change)
    for name in dict.fromkeys(("wte.weight", "wpe.weight", config.head)):
        if name in step.before.parameters:
            yield from _parameter(step, window, name, ends)


def encode(stored: list[Stored]) -> tuple[dict[str, Any], list[list[int]], dict[int, str]]:
    """The table of the tensors, the windows that it names, and the blocks in base64; equal tensors are stored once."""
    table: dict[str, Any] = {}
    windows: dict[bytes, int] = {}
    blocks: dict[int, list[bytes]] = {}
    places: dict[tuple[int, bytes], int] = {}
    ends: dict[int, int] = {}
    for tensor in stored:
        data = np.ascontiguousarray(tensor.numbers(), "<f4").tobytes()
        at = places.setdefault((tensor.block, data), ends.get(tensor.block, 0))
        if at == ends.get(tensor.block, 0):
            blocks.setdefault(tensor.block, []).append(data)
            ends[tensor.block] = at + len(data)
        about: dict[str, Any] = {"shape": tensor.values.shape, "block": tensor.block, "offset": at}
        for axis, numbers in (("rows", tensor.rows), ("cols", tensor.columns)):
            if numbers is not None:
                about[axis] = windows.setdefault(np.asarray(numbers, np.int64).tobytes(), len(windows))
        if tensor.lower:
            about["lower"] = tensor.lower
        table[tensor.name] = about
    lists = [np.frombuffer(numbers, np.int64).tolist() for numbers in windows]
    return table, lists, {block: base64.b64encode(b"".join(parts)).decode() for block, parts in blocks.items()}


def _activation(step: Step, window: Window, name: str, block: int) -> Iterator[Stored]:
    trace = step.before
    columns = None if name == "losses" else window.axes(name, trace.config)[1]
    values = {"": trace.activations[name], "d:": trace.activation_gradients[name], "D:": step.change(name)}
    for prefix, value in values.items():
        yield Stored(prefix + name, block, value[0][:, None] if name == "losses" else value[0], columns=columns)


def _attention(step: Step, name: str, block: int) -> Iterator[Stored]:
    before, after, causal = step.before, step.after, step.before.config.causal
    S, S_after = (trace.activations[f"{name}.scores"][0] for trace in (before, after))
    dP = before.activation_gradients[f"{name}.probabilities"][0]
    seen = np.isfinite(S)  # all, or where causal those up to the diagonal
    change = np.where(seen, S_after, 0) - np.where(seen, S, 0)
    for head in range(len(S)):
        yield Stored(f"{name}.S.{head}", block, S[head], lower="S" if causal else None)
        yield Stored(f"d:{name}.P.{head}", block, dP[head], lower="0" if causal else None)
        yield Stored(f"D:{name}.S.{head}", block, change[head], lower="0" if causal else None)


def _norm(step: Step, name: str, x: str, block: int, window: Window) -> Iterator[Stored]:
    """mean and rstd of each row, and the means ⟨u⟩ and ⟨u x̂⟩ of the backward pass, u = w ⊙ dy."""
    trace = step.before
    mean, rstd = (trace.activations[f"{name}.{part}"][0][:, None] for part in ("mean", "rstd"))
    u = trace.parameters[f"{name}.weight"] * trace.activation_gradients[name][0]
    x_hat = (trace.activations[x][0] - mean) * rstd
    means = {"mean": mean, "rstd": rstd, "u": u.mean(1, keepdims=True), "ux": (u * x_hat).mean(1, keepdims=True)}
    for part, values in means.items():
        yield Stored(f"{name}.{part}", block, values)
    yield from _weights(step, window, name, block)


def _weights(step: Step, window: Window, name: str, block: int) -> Iterator[Stored]:
    """A layer's weight, and its bias if it has one."""
    for part in ("weight", "bias"):
        if f"{name}.{part}" in step.before.parameters:
            yield from _parameter(step, window, f"{name}.{part}", block)


def _parameter(step: Step, window: Window, name: str, block: int) -> Iterator[Stored]:
    trace = step.before
    rows, columns = window.axes(name, trace.config)
    values = {"": trace.parameters[name], "d:": trace.gradients[name], "D:": step.change(name)}
    if step.number > 1:
        values |= {"m:": step.moments_before.first[name], "v:": step.moments_before.second[name]}
    if name == "wpe.weight":  # no other position has a gradient
        rows = np.arange(trace.tokens.shape[1])
    for prefix, value in values.items():
        yield Stored(prefix + name, block, np.atleast_2d(value), rows, columns)


def _lse(step: Step) -> tuple[Array, Array]:
    """log Σ_v exp(z_v) of each row, (T,1), and its change."""
    before, after = (log_sum_exp(trace.activations["logits"][0]) for trace in (step.before, step.after))
    return before, after - before


def _is_shown(layer: Layer, window: Window) -> bool:
    return layer.block is None or layer.block in window.blocks
