"""How the cost of a token changes with the batch and the length of its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.session import Session
from benchmarks.steps import PygptSteps, Step
from benchmarks.table import number, percent, ratio, render
from benchmarks.work import flops_per_token
from benchmarks.worker import Worker, take_turns
from pygpt.memory import available_memory

BATCHES, BATCHES_T = (1, 2, 4, 8, 16, 32), 256
LENGTHS, LENGTHS_B = (64, 128, 256, 512, 1024), 4


def points(quick: bool) -> list[tuple[str, int, int]]:
    """What grows, and B and T."""
    if quick:
        return [("B", B, 8) for B in (1, 2)] + [("T", 2, T) for T in (8, 16)]
    return [("B", B, BATCHES_T) for B in BATCHES] + [("T", LENGTHS_B, T) for T in LENGTHS]


def measure(session: Session) -> dict[str, Any]:
    """By dtype, seconds a token of forward and backward at each point, and seconds of the update, which is one a step.

    Points that do not fit into memory are left out.
    """
    return {dtype: _measure(session, dtype) for dtype in session.dtypes}


def _measure(session: Session, dtype: str) -> dict[str, Any]:
    side = PygptSteps(session.config, session.threads, dtype, session.kernels, session.recompute)
    room = available_memory()
    kept = [
        (grows, B, T)
        for grows, B, T in points(session.quick)
        if session.memory_needed(session.config, B, T, dtype) <= room
    ]
    if not kept:
        session.check_memory(session.memory_needed(session.config, *points(session.quick)[0][1:], dtype))
    shapes = list(dict.fromkeys((B, T) for _, B, T in kept))  # one may lie on both curves
    with Worker(side) as worker:
        cases = [Step(B, T, "passes") for B, T in shapes]
        *timings, update, peak = take_turns(
            [*((worker, case) for case in cases), (worker, Step(*shapes[0], "update")), (session.peaks, dtype)],
            session.turns,
            lambda seconds: session.say_duration(f"scaling, {dtype}, {session.repeats} repeats", seconds),
        )
    seconds_of = dict(zip(shapes, (timing.median for timing in timings), strict=True))
    found = []
    for grows, B, T in kept:
        seconds = seconds_of[B, T]
        assert seconds is not None  # pygpt's failure is a UserError
        flops = flops_per_token(session.config, T)
        row = {"grows": grows, "B": B, "T": T, "seconds_per_token": seconds / (B * T), "flops_per_token": flops}
        found.append({**row, "of_peak": flops * B * T / seconds / peak.median_result})
    return {"points": found, "update_seconds": update.median, "left_out": len(points(session.quick)) - len(kept)}


def relative(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> tuple[float, float]:
    """Time and FLOPs of a token, both relative to the first point of the same curve."""
    first = next(other for other in rows if other["grows"] == row["grows"])
    return (
        row["seconds_per_token"] / first["seconds_per_token"],
        row["flops_per_token"] / first["flops_per_token"],
    )


def table(session: Session, found: dict[str, Any]) -> str:
    return "\n\n".join(_table(session, dtype, values) for dtype, values in found.items())


def _table(session: Session, dtype: str, found: dict[str, Any]) -> str:
    rows: list[Sequence[str]] = []
    for row in found["points"]:
        seconds, flops = relative(found["points"], row)
        cells = row["grows"], str(row["B"]), str(row["T"]), number(1e3 * row["seconds_per_token"], 3)
        rows.append((*cells, ratio(seconds), ratio(flops), percent(row["of_peak"])))
    head = ("grows", "B", "T", "ms/token", "of first", "FLOPs of first", "of peak")
    notes = [f"the update, once a step: {1e3 * found['update_seconds']:.1f} ms"]
    if found["left_out"]:
        notes.append(f"{found['left_out']} points need more memory than there is")
    title = f"cost of a token as work grows, {dtype}, forward and backward, {session.median}"
    return render(title, head, rows, left=1, notes=notes)
