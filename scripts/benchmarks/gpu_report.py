"""The figures of a check on a GPU, for people: fractions of the measured rate, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu_sides import MODELS
from benchmarks.table import number, percent, render
from benchmarks.work import flops_per_token
from pygpt.config import GPT2Config

FULL = "6 N + 12 L C T FLOPs a token"
CAUSAL = "6 N + 6 L C T FLOPs a token"
NAME = 100  # characters of a kernel's name that a table shows


def full_flops_per_token(config: GPT2Config, T: int) -> float:
    """6 N + 12 L C T: as most reports count, attention as if every position saw every other."""
    return 6.0 * config.num_parameters + 12.0 * config.n_layer * config.n_embd * T


def with_fractions(row: Mapping[str, Any], product_flops: float | None) -> dict[str, Any]:
    """A row with the fraction of the measured product rate, by both formulas; None where a number is absent."""
    tokens, config, T = row.get("tokens_per_second"), MODELS[row["model"]], row["T"]
    if tokens is None or product_flops is None:
        return {**row, "of_rate_full": None, "of_rate_causal": None}
    full, causal = full_flops_per_token(config, T), flops_per_token(config, T)
    return {
        **row,
        "of_rate_full": tokens * full / product_flops,
        "of_rate_causal": tokens * causal / product_flops,
    }


def steps_table(rows: Sequence[Mapping[str, Any]], rates: Mapping[str, float] | None) -> str:
    """Every model and batch, ours beside the others."""
    head = ("model", "side", "B", "T", "tokens/s", "of rate", "causal", "GiB", "")
    body = []
    for row in sorted(rows, key=lambda row: (list(MODELS).index(row["model"]), row["B"], row["side"] != "pygpt")):
        memory = row.get("memory")
        body.append(
            (
                row["model"],
                row["side"],
                str(row["B"]),
                str(row["T"]),
                number(row.get("tokens_per_second"), 0),
                percent(row.get("of_rate_full")),
                percent(row.get("of_rate_causal")),
                "" if memory is None else number(memory / 2**30),
                row.get("failed", ""),
            )
        )
    notes = [f"of rate: {FULL}, of the rate of a large bfloat16 product; causal: {CAUSAL}"]
    if rates:
        measured = f"product {rates['product_flops'] / 1e12:.0f} TFLOP/s, copy {rates['copy_bytes'] / 1e12:.2f} TB/s"
        notes.append(f"measured: {measured}")
    return render("training steps, bfloat16", head, body, 2, [*notes, *comparison(rows)])


def comparison(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each model, ours at its best beside each of the others at its best."""
    best: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        if row.get("tokens_per_second") is None:
            continue
        key = row["model"], row["side"]
        if key not in best or row["tokens_per_second"] > best[key]["tokens_per_second"]:
            best[key] = row
    sentences = []
    for (model, side), row in best.items():
        own = best.get((model, "pygpt"))
        if side == "pygpt" or own is None:
            continue
        times = own["tokens_per_second"] / row["tokens_per_second"]
        sentences.append(
            f"{model}: pygpt at B {own['B']} is {times:.2f} times {side} at B {row['B']}, each at its best"
        )
    return sentences


def kernels_table(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    head = ("kernels", "ms", "share", "bound, ms", "bound / time")
    body = [
        (
            row["group"],
            number(1e3 * row["seconds"], 2),
            percent(row["share"]),
            "" if row["bound"] is None else number(1e3 * row["bound"], 2),
            "" if row["of_bound"] is None else percent(row["of_bound"]),
        )
        for row in rows
    ]
    return render(title, head, body, 1)


def largest_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Kernels by their own names."""
    body = [
        (
            row["name"][:NAME],
            number(1e3 * row["seconds"], 3),
            number(row["launches"], 0),
            number(1e6 * row["seconds"] / row["launches"], 1),
        )
        for row in rows
    ]
    return render(f"the {len(rows)} that take longest", ("name", "ms", "launches", "mean, us"), body, 1)


def generation_table(rows: Sequence[Mapping[str, Any]], rates: Mapping[str, float] | None) -> str:
    head = ("model", "weights", "B", "tokens/s", "us each", "of copy", "prompt", "ms")
    body = [
        (
            row["model"],
            row["weights"],
            str(row["B"]),
            number(row["tokens_per_second"], 0),
            number(1e6 * row["seconds"], 0),
            percent(row["bytes"] / row["seconds"] / rates["copy_bytes"]) if rates else "",
            str(row["prompt"]),
            number(1e3 * row["prompt_seconds"], 1),
        )
        for row in rows
    ]
    note = "us each: a token for each of B sequences; of copy: bytes that it reads at least, of the rate of a copy"
    return render("generation", head, body, 2, [note])


def stages_table(stages: Sequence[Mapping[str, Any]]) -> str:
    return render(
        "stages",
        ("stage", "", "s", ""),
        [(stage["name"], stage["result"], str(stage["seconds"]), stage["sentence"]) for stage in stages],
        4,
    )


def text(found: Mapping[str, Any]) -> str:
    """Everything that was found, in one short text."""
    parts = []
    if machine := found.get("machine"):
        versions = (f"{name} {machine[name] or 'absent'}" for name in ("driver", "nvcc", "torch"))
        parts.append(f"{machine['device'] or 'no NVIDIA device'}; {', '.join(versions)}")
    if found.get("agreement"):
        lines = "\n".join(f"  {row['dtype']}: {row['verdict']}" for row in found["agreement"])
        parts.append(f"GPT-2 beside torch's model in float32, the same weights and tokens\n{lines}")
    if found.get("steps"):
        parts.append(steps_table(found["steps"], found.get("rates")))
    if found.get("kernels"):
        about = found["kernels_of"]
        title = f"kernels of a step, {about['model']}, {about['B']} x {about['T']}, bfloat16, launched one by one"
        parts.extend([kernels_table(found["kernels"], title), largest_table(found["largest"])])
    if found.get("generation"):
        parts.append(generation_table(found["generation"], found.get("rates")))
    parts.extend(found.get("notes", []))
    if found.get("stages"):
        parts.append(stages_table(found["stages"]))
    return "\n\n".join(parts)
