"""Where the time of a training step goes: each layer's share, and beside it the least time that the work allows.

The calls of a step are made one after the other, as csrc/gpt2.c makes them, on the tensors of a model that has just
trained; so what a layer reads lies in memory, not in a cache that the layer before has filled with something else. The
bound of a call is what its FLOPs take at the peak rate, or what its bytes take at the memory's, whichever is more: each
input is read once, each output written once, and a gradient that is added to is both.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.session import Session
from benchmarks.steps import BETAS, LARGEST_NORM, LEARNING_RATE, WEIGHT_DECAY, PygptSteps, Step
from benchmarks.table import number, percent, render
from benchmarks.worker import Worker, take_turns
from pygpt.backends import recorder
from pygpt.backends.library import cpu_library, ffi
from pygpt.backends.pointers import kernel_table
from pygpt.config import GPT2Config

FLOAT = 4  # bytes
LOGITS = 2**26  # that the head makes at a time, as in csrc/model.c


@dataclass(frozen=True)
class Call:
    """One call of a step."""

    name: str  # of the activation that the layer puts out, without the number of its block
    direction: str  # "forward", "backward" or "update"
    run: Callable[[], Any]
    flops: float  # of matrix products; other arithmetic is cheaper than the memory that it waits for
    floats: float  # read and written


@dataclass(frozen=True)
class LayerSteps(PygptSteps):
    """Cases are Step(...) as in PygptSteps, and ("layers", Step(...)), whose result is (name, direction) -> Cost."""

    def prepare(self, case: Any) -> Callable[[], Any]:
        if isinstance(case, Step):
            return super().prepare(case)
        step: Step = case[1]
        batch = step.random_batch(self.config.vocab_size)
        self.model.forward_backward(*batch)
        calls = list(_calls(self, *batch))
        last = self.model.activation_gradients[f"h.{self.config.n_layer - 1}.resid_post"]

        def run() -> dict[tuple[str, str], Cost]:
            last.fill(0)  # as the model does, because ln_f adds to it; it is part of the rest
            costs: dict[tuple[str, str], Cost] = {}
            for call in calls:
                start = time.perf_counter()
                call.run()
                seconds = time.perf_counter() - start
                before = costs.get((call.name, call.direction), Cost())
                costs[call.name, call.direction] = before.and_call(call, seconds)
            return costs

        return run


@dataclass(frozen=True)
class Cost:
    """Of all calls of one name and direction in a step."""

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0

    def and_call(self, call: Call, seconds: float) -> Cost:
        return Cost(self.calls + 1, self.seconds + seconds, self.flops + call.flops, self.bytes + FLOAT * call.floats)


def _calls(side: PygptSteps, tokens: Any, targets: Any) -> Iterator[Call]:
    """The step as csrc/gpt2.c has it, without dropout, every activation kept."""
    model, parameters = side.model, side.config.num_parameters
    yield Call("zero_grad", "update", model.zero_grad, 0, parameters)
    for call in recorder.record(side.config, model.parameters, tokens, targets):
        if call.operation != "classifier_forward":  # the backward pass computes the losses too
            yield _layer(side, call, *tokens.shape)
    scaled = model.clip_grad_norm(0) > LARGEST_NORM
    clip = partial(model.clip_grad_norm, LARGEST_NORM)
    yield Call("clip_grad_norm", "update", clip, 0, (3 if scaled else 1) * parameters)
    adamw = partial(model.adamw_step, LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY)
    yield Call("adamw_step", "update", adamw, 0, 7 * parameters)


def _layer(side: PygptSteps, call: recorder.Call, B: int, T: int) -> Call:
    """A call of the kernel itself: outputs first, inputs after, sizes last, as csrc/pygpt.h has it."""
    kernels, name = kernel_table(cpu_library(), side.kernels, side.dtype), re.sub(r"^h\.\d+\.", "", call.name)
    sizes, flops, floats = _work(side.config, call, B, T)
    values = [*call.outputs.values(), *call.inputs.values()]
    tensors = [value.read(side.model) if isinstance(value, recorder.Place) else value for value in values]
    arrays = [tensor for tensor in tensors if isinstance(tensor, np.ndarray)]
    if call.layer == "classifier":
        name, rows = call.layer, sizes[0]
        arrays = [side.model.activations["losses"], *arrays, np.empty((rows, side.config.vocab_size), np.float32)]
        kernel = partial(cpu_library().classifier_backward, kernels)
    else:
        kernel = getattr(kernels, call.operation)
    if call.operation == "embedding_backward":
        arrays = arrays[:-2]  # wte and wpe are there for their shapes
    pointers = (ffi().from_buffer("int32_t[]" if x.dtype == np.int32 else "float[]", x) for x in arrays)  # kept alive
    return Call(name, call.direction, partial(kernel, *pointers, *sizes), flops, floats)


def _work(config: GPT2Config, call: recorder.Call, B: int, T: int) -> tuple[tuple[Any, ...], float, float]:
    """The sizes that the kernel is told, and FLOPs and floats as in Call."""
    N, C, V, eps = B * T, config.n_embd, config.vocab_size, config.layer_norm_epsilon
    n, inner, rows = N * C, N * config.inner, math.ceil(N / math.ceil(N / max(LOGITS // V, 64)))  # as csrc/model.c
    IC, OC = call.inputs["weight"].shape if call.layer == "linear" else (0, 0)
    heads = B, T, config.n_head, config.head_size, config.attention_scale(0), config.causal, ffi().NULL
    scores = B * T * (T + 1) / 2 * C * 2  # FLOPs of one product of (T,HS) and (T,HS) in each head, causal
    work: dict[str, tuple[tuple[Any, ...], float, float]] = {
        "embedding_forward": ((B, T, C), 0, 3 * n),
        "embedding_backward": ((B, T, C), 0, 3 * n + 2 * T * C),
        "layernorm_forward": ((N, C, eps), 0, 2 * n),
        "layernorm_backward": ((N, C), 0, 4 * n),
        "linear_forward": ((N, IC, OC), 2.0 * N * IC * OC, N * (IC + OC) + IC * OC),
        "linear_backward": ((N, IC, OC), 4.0 * N * IC * OC, N * (2 * IC + OC) + 3 * IC * OC),
        "attention_forward": (heads, 2 * scores, 4 * n),
        # dv, dp, dq, dk and the scores again, because nothing of size T x T is kept
        "attention_backward": (heads, 5 * scores, 8 * n),
        "gelu_forward": ((inner,), 0, 2 * inner),
        "gelu_backward": ((inner,), 0, 3 * inner),
        "residual_forward": ((n,), 0, 3 * n),
        "residual_backward": ((n,), 0, 3 * n),
        "classifier_backward": ((rows, N, C, V), 6.0 * N * V * C, 2 * n + 3 * V * C),
    }
    return work[call.operation]


def measure(session: Session) -> dict[str, Any]:
    """By dtype, the layers in the order in which a step comes to them, with the step's own time."""
    return {dtype: _measure(session, dtype) for dtype in session.dtypes}


def _measure(session: Session, dtype: str) -> dict[str, Any]:
    B, T = (2, 8) if session.quick else (4, 1024)
    step = Step(B, T)
    session.check_memory(session.memory_needed(session.config, B, T, dtype, "none"))
    cases = [step, ("layers", step)]
    peaks = [dtype, "copy", "triad"]
    with Worker(LayerSteps(session.config, session.threads, dtype, session.kernels)) as worker:
        whole, layers, rate, *bandwidths = take_turns(
            [*((worker, case) for case in cases), *((session.peaks, name) for name in peaks)],
            session.turns,
            lambda seconds: session.say_duration(f"layers, {dtype}, {session.repeats} repeats", seconds),
        )
    bandwidth = max(found.median_result for found in bandwidths)
    seconds = whole.median
    assert seconds is not None  # pygpt's failure is a UserError
    rows = []
    for name, direction in layers.results[0]:
        costs = [found[name, direction] for found in layers.results]
        spent = statistics.median(cost.seconds for cost in costs)
        products, memory = costs[0].flops / rate.median_result, costs[0].bytes / bandwidth
        row = {"name": name, "direction": direction, "calls": costs[0].calls, "seconds": spent}
        row |= {"share": spent / seconds, "flops": costs[0].flops, "bytes": costs[0].bytes}
        row |= {"bound": max(products, memory), "limit": "FLOPs" if products > memory else "bytes"}
        rows.append({**row, "of_bound": max(products, memory) / spent})
    return {
        "B": B,
        "T": T,
        "step_seconds": seconds,
        "rest_seconds": seconds - sum(row["seconds"] for row in rows),
        "peak_gflops": rate.median_result / 1e9,
        "bandwidth_gbytes": bandwidth / 1e9,
        "layers": rows,
    }


def table(session: Session, found: dict[str, Any]) -> str:
    return "\n\n".join(_table(session, dtype, values) for dtype, values in found.items())


def _table(session: Session, dtype: str, found: dict[str, Any]) -> str:
    seconds = found["step_seconds"]
    digits = 3 if seconds < 0.1 else 1
    rows: list[Sequence[str]] = [
        (
            row["name"],
            row["direction"],
            str(row["calls"]),
            number(1e3 * row["seconds"], digits),
            f"{100 * row['share']:.1f} %",
            number(1e3 * row["bound"], digits),
            row["limit"],
            percent(row["of_bound"]),
        )
        for row in found["layers"]
    ]
    bound = sum(row["bound"] for row in found["layers"])
    rest = found["rest_seconds"]
    rows.append(("rest", "", "", number(1e3 * rest, digits), f"{100 * rest / seconds:.1f} %", "", "", ""))
    rows.append(
        (
            "step",
            "",
            "",
            number(1e3 * seconds, digits),
            "100.0 %",
            number(1e3 * bound, digits),
            "",
            percent(bound / seconds),
        )
    )
    title = (
        f"layers of a training step, {dtype}, {found['B']} x {found['T']}, {session.median}; "
        f"peak {found['peak_gflops']:.0f} GFLOP/s, {found['bandwidth_gbytes']:.1f} GB/s"
    )
    head = ("", "", "calls", "ms", "share", "bound, ms", "by", "of bound")
    return render(title, head, rows, left=2)
