"""Peak resident memory of a training process, and what recomputing costs in time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.session import Session
from benchmarks.steps import PygptSteps, Step, TorchSteps
from benchmarks.table import number, ratio, render
from benchmarks.worker import Side, UnavailableError, Worker, take_turns
from pygpt.backends.interface import RECOMPUTE

DTYPE = "float32"


def measure(session: Session) -> list[dict[str, Any]]:
    """Each recompute mode, then torch: peak bytes, and seconds a step.  Torch's processes come one by one, untimed."""
    B, T = (2, 8) if session.quick else (4, 1024)
    step, rows = Step(B, T), []
    sides = [PygptSteps(session.config, session.threads, DTYPE, session.kernels, mode) for mode in RECOMPUTE]
    told = {mode: session.memory_needed(session.config, B, T, DTYPE, mode) for mode in RECOMPUTE}
    session.check_memory(sum(told.values()))  # they are all there at once
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(side)) for side in sides]
        timings = take_turns(
            [(worker, step) for worker in workers],
            session.turns,
            lambda seconds: session.say_duration(f"memory, {session.repeats} repeats of pygpt", seconds),
        )
        for side, worker, timing in zip(sides, workers, timings, strict=True):
            row = {"alternative": f"pygpt, recompute {side.recompute}", "bytes": worker.peak_memory()}
            rows.append({**row, "bytes_told": told[side.recompute], "seconds": timing.median, "absent": None})
    others: list[Side] = []
    if session.torch != "none":
        others.append(TorchSteps(session.config, session.threads, DTYPE))
    if session.torch == "all":
        others.append(TorchSteps(session.config, session.threads, DTYPE, compiled=True))
    for other in others:
        session.say(f"memory, two steps of {other.name}")
        row = {"alternative": other.name, "bytes": None, "bytes_told": None, "seconds": None, "absent": None}
        with Worker(other) as worker:
            try:
                worker.prepare(step)
                row["bytes"] = worker.peak_memory()
            except UnavailableError as error:
                row["absent"] = str(error)
        rows.append(row)
    return [{"dtype": DTYPE, "B": B, "T": T, **row} for row in rows]


def table(session: Session, found: Sequence[dict[str, Any]]) -> str:
    keep_all = found[0]["seconds"]
    rows: list[Sequence[str]] = [
        (
            row["alternative"],
            number(row["bytes"] and row["bytes"] / 1e9, 2),
            "" if row["bytes_told"] is None else number(row["bytes_told"] / 1e9, 2),
            "" if row["seconds"] is None else number(1e3 * row["seconds"], 1),
            "" if row["seconds"] is None else ratio(row["seconds"] / keep_all),
        )
        for row in found
    ]
    title = (
        f"peak resident memory of a training process, {DTYPE}, {found[0]['B']} x {found[0]['T']}; "
        f"time of a step, {session.median}\n  told: what the model is said to take before the run"
    )
    notes = [f"{row['alternative']}: {row['absent']}" for row in found if row["absent"] is not None]
    return render(title, ("", "GB", "told, GB", "ms", "of none"), rows, left=1, notes=notes)
