"""Where the time of a training step goes: each layer's share, and beside it the least time that the work allows.

The calls of a step are made one after the other, as csrc/gpt2.c makes them, on the tensors of a model that has just
trained; so what a layer reads lies in memory, not in a cache that the layer before has filled with something else. The
bound of a call is what its FLOPs take at the peak rate, or what its bytes take at the memory's, whichever is more: each
input is read once, each output written once, and a gradient that is added to is both.
"""

from __future__ import annotations

import math
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
from pygpt.backends.library import cpu_library, ffi
from pygpt.backends.pointers import as_integers, floats, integers, kernel_table

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
    model, config = side.model, side.config
    k = kernel_table(cpu_library(), side.kernels, side.dtype)
    p, g, a, d = model.parameters, model.gradients, model.activations, model.activation_gradients
    (B, T), C, NH, V = tokens.shape, config.n_embd, config.n_head, config.vocab_size
    N, eps, L = B * T, config.layer_norm_epsilon, config.n_layer
    tokens = ffi().from_buffer("int32_t[]", as_integers(tokens))  # keeps it alive, as the model does its tensors
    targets = as_integers(targets)
    scores = B * T * (T + 1) / 2 * C * 2  # FLOPs of one product of (T,HS) and (T,HS) in each head, causal

    def norm(name: str, x: str, number_of_block: str) -> tuple[Call, Call]:
        full = number_of_block + name
        w, b = f"{full}.weight", f"{full}.bias"
        statistics_of = floats(a[f"{full}.mean"]), floats(a[f"{full}.rstd"])
        forward = partial(
            k.layernorm_forward, floats(a[full]), *statistics_of, floats(a[x]), floats(p[w]), floats(p[b]), N, C, eps
        )
        gradients = floats(d[x]), floats(g[w]), floats(g[b])
        inputs = floats(d[full]), floats(a[x]), floats(p[w])
        backward = partial(k.layernorm_backward, *gradients, *inputs, *statistics_of, N, C)
        return Call(name, "forward", forward, 0, 2 * N * C), Call(name, "backward", backward, 0, 4 * N * C)

    def linear(name: str, x: str, number_of_block: str) -> tuple[Call, Call]:
        full = number_of_block + name
        w, b = f"{full}.weight", f"{full}.bias"
        IC, OC = p[w].shape
        forward = partial(k.linear_forward, floats(a[full]), floats(a[x]), floats(p[w]), floats(p[b]), N, IC, OC)
        gradients = floats(d[x]), floats(g[w]), floats(g[b])
        backward = partial(k.linear_backward, *gradients, floats(d[full]), floats(a[x]), floats(p[w]), N, IC, OC)
        flops, weight = 2.0 * N * IC * OC, IC * OC
        return (
            Call(name, "forward", forward, flops, N * (IC + OC) + weight),
            Call(name, "backward", backward, 2 * flops, N * (2 * IC + OC) + 3 * weight),
        )

    def attention(h: str) -> tuple[Call, Call]:
        y, lse, qkv = f"{h}attn.heads", f"{h}attn.lse", f"{h}attn.c_attn"
        sizes = B, T, NH, C // NH, ffi().NULL
        forward = partial(k.attention_forward, floats(a[y]), floats(a[lse]), floats(a[qkv]), *sizes)
        inputs = floats(d[y]), floats(a[y]), floats(a[lse]), floats(a[qkv])
        backward = partial(k.attention_backward, floats(d[qkv]), *inputs, *sizes)
        # backward: dv, dp, dq, dk and the scores again, because nothing of size T x T is kept
        return (
            Call("attn.heads", "forward", forward, 2 * scores, 4 * N * C),
            Call("attn.heads", "backward", backward, 5 * scores, 8 * N * C),
        )

    def gelu(h: str) -> tuple[Call, Call]:
        x, y = f"{h}mlp.c_fc", f"{h}mlp.act"
        n = a[x].size
        forward = partial(k.gelu_forward, floats(a[y]), floats(a[x]), n)
        backward = partial(k.gelu_backward, floats(d[x]), floats(d[y]), floats(a[x]), n)
        return Call("mlp.act", "forward", forward, 0, 2 * n), Call("mlp.act", "backward", backward, 0, 3 * n)

    def residual(name: str, x1: str, x2: str, h: str) -> tuple[Call, Call]:
        y, n = h + name, N * C
        forward = partial(k.residual_forward, floats(a[y]), floats(a[x1]), floats(a[x2]), n)
        backward = partial(k.residual_backward, floats(d[x1]), floats(d[x2]), floats(d[y]), n)
        return Call(name, "forward", forward, 0, 3 * n), Call(name, "backward", backward, 0, 3 * n)

    pairs: list[tuple[Call, Call]] = []
    x = "embd"
    for layer in range(L):
        h = f"h.{layer}."
        pairs += [norm("ln_1", x, h), linear("attn.c_attn", f"{h}ln_1", h), attention(h)]
        pairs += [linear("attn.c_proj", f"{h}attn.heads", h), residual("resid_mid", x, f"{h}attn.c_proj", h)]
        pairs += [norm("ln_2", f"{h}resid_mid", h), linear("mlp.c_fc", f"{h}ln_2", h), gelu(h)]
        pairs += [linear("mlp.c_proj", f"{h}mlp.act", h)]
        pairs += [residual("resid_post", f"{h}resid_mid", f"{h}mlp.c_proj", h)]
        x = f"{h}resid_post"
    pairs.append(norm("ln_f", x, ""))

    yield Call("zero_grad", "update", model.zero_grad, 0, config.num_parameters)
    embedding = partial(
        k.embedding_forward,
        floats(a["embd"]),
        tokens,
        floats(p["wte.weight"]),
        floats(p["wpe.weight"]),
        B,
        T,
        C,
    )
    yield Call("embd", "forward", embedding, 0, 3 * N * C)
    yield from (forward for forward, _ in pairs)
    yield _classifier(k, p, g, a, d, targets, N, C, V)
    yield from (backward for _, backward in reversed(pairs))
    gradients = floats(g["wte.weight"]), floats(g["wpe.weight"])
    embedding = partial(k.embedding_backward, *gradients, floats(d["embd"]), tokens, B, T, C)
    yield Call("embd", "backward", embedding, 0, 3 * N * C + 2 * T * C)
    scaled = model.clip_grad_norm(0) > LARGEST_NORM
    clip = partial(model.clip_grad_norm, LARGEST_NORM)
    yield Call("clip_grad_norm", "update", clip, 0, (3 if scaled else 1) * config.num_parameters)
    adamw = partial(model.adamw_step, LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY)
    yield Call("adamw_step", "update", adamw, 0, 7 * config.num_parameters)


def _classifier(k: Any, p: Any, g: Any, a: Any, d: Any, targets: Any, N: int, C: int, V: int) -> Call:
    """The head forward and backward in one, in chunks of rows."""
    chunks = math.ceil(N / max(LOGITS // V, 64))  # as csrc/model.c has it
    rows = math.ceil(N / chunks)
    scratch = np.empty((rows, V), np.float32)
    dlosses = np.full(N, 1 / N, np.float32)

    def run() -> None:
        outputs = floats(a["losses"]), floats(d["ln_f"]), floats(g["wte.weight"])
        inputs = floats(dlosses), floats(a["ln_f"]), floats(p["wte.weight"]), integers(targets)
        cpu_library().classifier_backward(k, *outputs, *inputs, floats(scratch), rows, N, C, V)

    return Call("classifier", "backward", run, 6.0 * N * V * C, 2 * N * C + 3 * V * C)


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
