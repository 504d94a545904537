"""Whole training steps against torch: GPT-2 124M, and the model of the preset bytes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.session import Session
from benchmarks.steps import PygptSteps, Step, TorchSteps
from benchmarks.table import number, percent, ratio, render
from benchmarks.work import FORMULA, flops_per_token
from benchmarks.worker import Side, Timing, Worker, take_turns
from pygpt.config import GPT2Config
from pygpt.memory import available_memory, gigabytes
from pygpt.text.prepare import prepare
from pygpt.training.settings import PRESETS, TrainSettings

BATCHES = ((4, 64), (4, 256), (4, 1024))
TORCH_MEMORY = 0.9  # of what this library takes with recompute "none", to judge beforehand whether it will fit
EQUAL = 0.01  # relative difference of the first losses of equal models, at most


def measure_steps(session: Session) -> list[dict[str, Any]]:
    """Each batch, dtype and alternative: seconds a step, tokens/s, fraction of the peak, ratio to this library's."""
    batches = ((2, 8), (2, 16)) if session.quick else BATCHES
    cases = [Step(B, T) for B, T in batches]
    return [row for dtype in session.dtypes for row in _measure(session, session.config, dtype, cases)]


def measure_character(session: Session) -> list[dict[str, Any]]:
    """The model of the preset bytes, in which each iteration takes another batch from token files."""
    settings = TrainSettings(**PRESETS["bytes"])
    B, T = (2, 8) if session.quick else (settings.batch_size, settings.seq_len)
    sizes: dict[str, Any] = {"n_layer": settings.n_layer, "n_head": settings.n_head, "n_embd": settings.n_embd}
    config = GPT2Config(vocab_size=256, n_positions=T, **sizes)
    with _token_files() as folder:
        cases = [Step(B, T, folder=folder)]
        return [row for dtype in session.dtypes for row in _measure(session, config, dtype, cases)]


def _measure(session: Session, config: GPT2Config, dtype: str, cases: Sequence[Step]) -> Iterator[dict[str, Any]]:
    sides: list[Side] = [PygptSteps(config, session.threads, dtype, session.kernels, session.recompute)]
    if session.torch != "none":
        sides.append(TorchSteps(config, session.threads, dtype))
    if session.torch == "all":
        sides.append(TorchSteps(config, session.threads, dtype, compiled=True))
    workers: list[Worker] = []
    absent: dict[str, Timing] = {}
    try:
        for side, sentence in zip(sides, _room(session, config, dtype, cases, len(sides)), strict=True):
            if sentence is None:
                workers.append(Worker(side))
            else:
                absent[side.name] = Timing(absent=sentence)
        session.say(f"training step, {dtype}: starting {', '.join(worker.side.name for worker in workers)}")
        for case in cases:
            what = f"training step, {dtype}, {case.B} x {case.T}, {session.repeats} repeats of " + ", ".join(
                worker.side.name for worker in workers
            )
            *found, peak = take_turns(
                [*((worker, case) for worker in workers), (session.peaks, dtype)],
                session.turns,
                lambda seconds, what=what: session.say_duration(what, seconds),  # type: ignore[misc]
            )
            timings = absent | {worker.side.name: timing for worker, timing in zip(workers, found, strict=True)}
            first_losses = {name: timing.first_result for name, timing in timings.items()} if case == cases[0] else {}
            for side in sides:
                yield _row(side.name, dtype, config, case, timings, peak.median_result, first_losses)
    finally:
        for worker in workers:
            worker.close()


def _room(session: Session, config: GPT2Config, dtype: str, cases: Sequence[Step], sides: int) -> Iterator[str | None]:
    """For each side, which all live at once: None, or that the machine has not enough memory for it."""
    own = max(session.memory_needed(config, case.B, case.T, dtype) for case in cases)
    other = max(session.memory_needed(config, case.B, case.T, dtype, "none") for case in cases) * TORCH_MEMORY
    session.check_memory(own)
    left = available_memory() - own
    yield None
    for _ in range(sides - 1):
        fits = other <= left
        left -= int(other) if fits else 0
        yield None if fits else f"needs about {gigabytes(int(other))} of memory beside the others"


def _row(
    name: str,
    dtype: str,
    config: GPT2Config,
    case: Step,
    timings: dict[str, Timing],
    peak: float,
    first_losses: dict[str, Any],
) -> dict[str, Any]:
    seconds, own = timings[name].median, timings["pygpt"].median
    assert own is not None  # its failure is a UserError
    row: dict[str, Any] = {"dtype": dtype, "B": case.B, "T": case.T, "alternative": name}
    row["flops_per_token"] = flops_per_token(config, case.T)
    row["peak_gflops"] = peak / 1e9
    row["seconds"] = seconds
    row["tokens_per_second"] = None if seconds is None else case.B * case.T / seconds
    row["of_peak"] = None if seconds is None else row["tokens_per_second"] * row["flops_per_token"] / peak
    row["ratio"] = None if seconds is None else seconds / own
    row["absent"] = timings[name].absent
    loss = first_losses.get(name)
    row["first_loss"] = loss if loss is None or math.isfinite(loss) else str(loss)
    return row


def steps_table(session: Session, rows: Sequence[dict[str, Any]]) -> str:
    what = f"{session.config.num_parameters:,} parameters" if session.quick else "GPT-2 124M"
    return _table(session, f"training step, {what}", rows, digits=2)


def character_table(session: Session, rows: Sequence[dict[str, Any]]) -> str:
    return _table(session, "training iteration, preset bytes", rows, digits=2)


def _table(session: Session, what: str, rows: Sequence[dict[str, Any]], digits: int) -> str:
    head = ("dtype", "B x T", "", "ms", "tokens/s", "of peak", "ratio", "to float32")
    cells = []
    for row in rows:
        in_float32 = _find(rows, {**_place(row), "dtype": "float32"})
        own = _find(rows, {**_place(row), "alternative": "pygpt"})
        both = in_float32 and in_float32["seconds"] is not None and row["dtype"] != "float32"
        cells.append(
            (
                row["dtype"],
                f"{row['B']} x {row['T']}",
                row["alternative"],
                number(None if row["seconds"] is None else 1e3 * row["seconds"], digits),
                number(row["tokens_per_second"], 0),
                percent(row["of_peak"]),
                "" if row["alternative"] == "pygpt" else ratio(row["ratio"]),
                ratio(in_float32["seconds"] / own["seconds"]) if both and in_float32 and own else "",
            )
        )
    title = (
        f"{what}: {FORMULA}, {session.median}\n"
        "  ratio: how many times faster pygpt is; to float32: than the alternative in float32"
    )
    return render(title, head, cells, left=3, notes=_notes(rows))


def _place(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("dtype", "B", "T", "alternative")}


def _find(rows: Sequence[dict[str, Any]], place: dict[str, Any]) -> dict[str, Any] | None:
    return next((row for row in rows if _place(row) == place), None)


def _notes(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    reasons = {(row["dtype"], row["alternative"]): row["absent"] for row in rows if row["absent"] is not None}
    for (dtype, name), reason in reasons.items():
        yield f"{name}, {dtype}: {reason}"
    for row in rows:
        own = _find(rows, {**_place(row), "alternative": "pygpt"})
        if own is None or row["first_loss"] is None:
            continue
        losses = f"{own['first_loss']} and {row['first_loss']}"
        if not abs(float(row["first_loss"]) / float(own["first_loss"]) - 1) <= EQUAL:
            yield f"{row['alternative']}, {row['dtype']}: the models are not equal, their first losses are {losses}"


@contextmanager
def _token_files() -> Iterator[str]:
    """A folder with a million random letters, as byte-level tokens."""
    with tempfile.TemporaryDirectory() as folder:
        letters = np.random.default_rng(0).integers(97, 123, 10**6, np.uint8).tobytes()
        text = Path(folder) / "letters.txt"
        text.write_bytes(letters)
        yield str(prepare(str(text), "byte", Path(folder) / "tokens"))
