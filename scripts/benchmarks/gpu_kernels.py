"""Where a step's time goes on a GPU: kernels by name, in groups, each beside the time that its work takes at best."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pygpt.config import GPT2Config

# The first that matches; what none matches is a matrix product of cuBLAS, whose names change with its releases.
GROUPS: dict[str, str] = {
    "attention, forward": r"attention_(flash|wgmma)_forward|attention_row",
    "attention, backward": r"attention_flash|attention_wgmma|attention_query_row|attention_key_row",
    "LayerNorm, forward": r"layernorm_rows(?!_backward)",
    "LayerNorm, backward": r"layernorm_(rows|means)_backward",
    "cross-entropy": r"cross_entropy_rows",
    "embedding": r"\bembed\b|count_digits|sum_counts|\bmove\b|sum_slices|join_slices|sum_positions",
    "AdamW": r"\badamw\b",
    "SGD": r"\bsgd\b",
    "Muon": r"nesterov|divide_by_norm|polynomial|\bsubtract\b",
    "rotary positions": r"\brotate\b",
    "norm of the gradient": r"partial_sums_of_squares|sum_partial|scale_elements",
    "sums of gradients": r"elementwise<float,.*\bSum\b",
    "gradients to zero": r"[Mm]emset",
    "gradients of biases": r"sum_columns|add_partial_sums",
    "beside products": r"matmul_finish|add_bias|elementwise",
    "the pass itself": r"begin_pass|loss_gradients|mean_loss|set_scale|[Mm]emcpy|\bfill",
}
PRODUCTS = "matrix products"

BFLOAT16, FLOAT32 = 2, 4
LARGEST = 20  # kernels that are listed by their own names


@dataclass(frozen=True)
class Work:
    """What a group has to do in a step."""

    flops: float = 0.0  # at the rate of bfloat16 products
    bytes: float = 0.0  # read and written at least

    def seconds(self, rate: float, bandwidth: float) -> float:
        """At best: one overlaps the other."""
        return max(self.flops / rate, self.bytes / bandwidth)


def group_of(kernel: str) -> str:
    """The group of a kernel's name, with or without its arguments."""
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, kernel)), PRODUCTS)


def work_of_step(config: GPT2Config, B: int, T: int) -> dict[str, Work]:
    """Group -> its work in a step in bfloat16: forward, backward, clipping, AdamW.

    FLOPs are those of the products, causal, with 4 HS for a query and a key that it sees forward and 10 HS backward.
    Bytes count each tensor that a layer reads or writes once; groups without a figure have no bound.
    """
    N, L, C = B * T, config.n_layer, config.n_embd
    pairs = N * (T + 1) / 2
    weights = config.vocab_size * C + L * (4 * C * C + 2 * C * config.inner)
    stream = N * C * BFLOAT16
    parameters = config.num_parameters
    return {
        PRODUCTS: Work(flops=6.0 * N * weights),
        "attention, forward": Work(4.0 * C * L * pairs, 4.0 * L * stream),
        "attention, backward": Work(10.0 * C * L * pairs, 8.0 * L * stream),
        "LayerNorm, forward": Work(bytes=(8.0 * L + 2.0) * stream),
        "LayerNorm, backward": Work(bytes=(8.0 * L + 3.0) * stream),
        "gradients of biases": Work(bytes=L * N * (3.0 * C + config.inner) * BFLOAT16),
        "cross-entropy": Work(bytes=2.0 * N * config.vocab_size * BFLOAT16),
        "embedding": Work(bytes=3.0 * stream + 2.0 * FLOAT32 * min(N, config.vocab_size) * C),
        # weight and two moments in and out, the gradient in, the copy in bfloat16 out
        "AdamW": Work(bytes=(7.0 * FLOAT32 + BFLOAT16) * parameters),
        "norm of the gradient": Work(bytes=1.0 * FLOAT32 * parameters),
        "gradients to zero": Work(bytes=1.0 * FLOAT32 * parameters),
    }


class KernelTime(NamedTuple):
    """A kernel in one step, by its own name."""

    name: str
    launches: float
    seconds: float  # all of them together


def kernel_times(trace: Mapping[str, Any], steps: int) -> list[KernelTime]:
    """The kernels, copies and memsets of a step, the longest first, from a trace of several in Chrome's format."""
    durations: dict[str, list[float]] = {}
    for event in trace["traceEvents"]:
        if event.get("cat") in {"kernel", "gpu_memcpy", "gpu_memset"}:
            durations.setdefault(str(event["name"]), []).append(float(event["dur"]) / 1e6)
    times = [KernelTime(name, len(found) / steps, sum(found) / steps) for name, found in durations.items()]
    return sorted(times, key=lambda time: -time.seconds)


def shares(
    times: Iterable[KernelTime], work: Mapping[str, Work], rates: Mapping[str, float] | None
) -> list[dict[str, Any]]:
    """Rows of group, seconds, share of all kernels' time, bound in seconds and bound / seconds, the longest first.

    rates: of device_rates(); None where they are not known, and then there are no bounds.
    """
    seconds: dict[str, float] = {}
    for time in times:
        group = group_of(time.name)
        seconds[group] = seconds.get(group, 0.0) + time.seconds
    whole = sum(seconds.values())
    rows = []
    for group, found in sorted(seconds.items(), key=lambda entry: -entry[1]):
        bound = None
        if rates is not None and group in work:
            bound = work[group].seconds(rates["product_flops"], rates["copy_bytes"])
        of_bound = bound / found if bound is not None and found > 0 else None
        rows.append({"group": group, "seconds": found, "share": found / whole, "bound": bound, "of_bound": of_bound})
    return rows
