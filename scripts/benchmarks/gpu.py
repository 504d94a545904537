"""What scripts/gpu_check.sh runs on a GPU.  See docs/performance.md.

Each alternative runs in a process of its own, one after the other, and is ended when its time is over."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu_report
from benchmarks.gpu_agree import beside_torch
from benchmarks.gpu_kernels import LARGEST, KernelTime, shares, work_of_step
from benchmarks.gpu_sides import (
    LLMC_DEPTHS,
    MODELS,
    describe_device,
    device_rates,
    kernels_of_step,
    measure_generation,
    measure_llmc,
    measure_side,
    torch_device,
)
from benchmarks.session import TINY, TINY_TILES
from benchmarks.steps import Step
from pygpt.backends.interface import DTYPES, WEIGHTS
from pygpt.command.cli import run as run_main
from pygpt.command.flags import Parser
from pygpt.errors import UserError
from pygpt.files.atomic import write_file
from pygpt.model import GPT2

RESULT = "RESULT "  # before a row in the output of a process
SIDES = ("rates", "pygpt", "torch", "kernels", "generation")


@dataclass(frozen=True)
class Task:
    """A process: what it measures, and for how long at most."""

    side: str  # one of SIDES, or "llm.c", which runs by itself
    seconds: float
    model: str = "gpt2"
    batches: tuple[int, ...] = ()


# In this order, because later ones are the first to be left out. pygpt's memory grows from batch to batch; torch
# compiles for each, so it begins with the one that suits it most.
PLANS = {
    "generation": (
        Task("rates", 40),
        Task("generation", 60, "gpt2", (1, 8)),
    ),
    "step": (
        Task("rates", 40),
        Task("pygpt", 40, "gpt2", (64,)),
        Task("kernels", 40, "gpt2", (64,)),
    ),
    "tables": (
        Task("rates", 40),
        Task("pygpt", 50, "gpt2", (32, 64, 128)),
        Task("torch", 90, "gpt2", (64, 32, 128)),
        Task("kernels", 40, "gpt2", (64,)),
        Task("generation", 40, "gpt2", (1, 8)),
        Task("pygpt", 40, "gpt2-medium", (16,)),
        Task("torch", 60, "gpt2-medium", (16,)),
        Task("llm.c", 30, "gpt2", (32, 64)),
        Task("llm.c", 20, "gpt2-medium", (16,)),
    ),
}


def quick_plan(plan: Sequence[Task]) -> list[Task]:
    """The same sides, each once, with tiny sizes."""
    own = (task for task in plan if task.side in SIDES)
    tiny = (replace(task, model="tiny", batches=task.batches and (1, 2)) for task in own)
    return list({task.side: task for task in tiny}.values())


def measure(
    plan: Sequence[Task], seconds: float, *, device: str, quick: bool, llmc: Path | None
) -> Iterator[dict[str, Any]]:
    """Everything in the plan, in so many seconds.  Yields all that is found, whenever there is more.

    A part that finds nothing leaves its reason in "notes".
    """
    found: dict[str, Any] = {"formulas": {"of_rate_full": gpu_report.FULL, "of_rate_causal": gpu_report.CAUSAL}}
    found |= {"machine": describe_device(), "rates": None, "steps": [], "kernels": [], "generation": [], "notes": []}
    T = TINY.n_positions if quick else 1024
    end = time.monotonic() + seconds
    for task in plan:
        left = end - time.monotonic()
        limit = min(task.seconds, left)
        name = f"{task.side}, {task.model}" if task.batches else task.side
        if task.side == "llm.c":
            found["steps"] += _llmc(task, T, llmc, limit) if llmc is not None and left > 5 else []
        elif left < 5:
            found["notes"].append(f"{name}: no time was left")
        else:
            rows, problem = _ask(task, T, limit, device=device, quick=quick)
            if problem:
                found["notes"].append(f"{name}: {problem}")
            _take(found, task, rows, T)
        flops = found["rates"] and found["rates"]["product_flops"]
        found["steps"] = [gpu_report.with_fractions(row, flops) for row in found["steps"]]
        yield found


def _llmc(task: Task, T: int, folder: Path | None, limit: float) -> list[dict[str, Any]]:
    assert folder is not None
    if task.model not in LLMC_DEPTHS:
        return []
    return [measure_llmc(folder, task.model, B, T, limit / len(task.batches)) for B in task.batches]


def _take(found: dict[str, Any], task: Task, rows: list[Any], T: int) -> None:
    if task.side == "rates":
        found["rates"] = rows[0] if rows else None
    elif task.side == "generation":
        found["generation"] += rows
    elif task.side != "kernels":
        found["steps"] += rows
    elif not rows:
        pass
    elif not rows[0]:
        found["notes"].append("kernels: the profiler has seen none on the device")
    else:
        B, times = task.batches[0], [KernelTime(*row) for row in rows[0]]
        found["kernels"] = shares(times, work_of_step(MODELS[task.model], B, T), found["rates"])
        found["largest"] = [time._asdict() for time in times[:LARGEST]]
        found["kernels_of"] = {"model": task.model, "B": B, "T": T}


def _ask(task: Task, T: int, limit: float, *, device: str, quick: bool) -> tuple[list[Any], str]:
    """The rows that a process tells before its time is over, and why there are no more of them; "" if it was done."""
    command = [sys.executable, "-m", "benchmarks.gpu", "side", task.side, "--model", task.model, "--device", device]
    command += ["--batches", ",".join(map(str, task.batches)), "--seq-len", str(T), *(["--quick"] if quick else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # where this process finds its modules
    environment["PYGPT_CUDA_GRAPH"] = "0" if task.side == "kernels" else "1"
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    over = threading.Event()

    def end() -> None:
        over.set()
        os.killpg(process.pid, signal.SIGKILL)  # with those that it has started to compile

    timer = threading.Timer(limit, end)
    timer.daemon = True  # nobody waits for it when this process is interrupted
    timer.start()
    rows, said = [], "it said nothing"
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(RESULT):
                rows.append(json.loads(line[len(RESULT) :]))
            elif line.strip():
                said = line.strip()[:200]
                print(line, end="", flush=True)
        status = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:  # interrupted, before its time was over
            end()
        process.stdout.close()
    if over.is_set():
        return rows, f"ended after {limit:.0f} s"
    return rows, f"its process ended with status {status}: {said}" if status else ""


# ---- the commands ----


def main() -> int | None:
    flags = _parser().parse()
    if flags.command == "side":
        return _side(flags)
    if flags.command == "tiny":
        return _tiny(flags.device)
    if flags.command == "report":
        print(_report(Path(flags.folder), Path(flags.out)))
        return 0
    if flags.command == "agree":
        return _agree(flags.device, Path(flags.json), flags.quick)
    failed = False
    plan = quick_plan(PLANS[flags.plan]) if flags.quick else PLANS[flags.plan]
    llmc = Path(flags.llmc) if flags.llmc else None
    for found in measure(plan, flags.seconds, device=flags.device, quick=flags.quick, llmc=llmc):
        _write_json(Path(flags.json), found)
        if flags.out:  # what is there if the time is over before all is done
            _report(Path(flags.json).parent, Path(flags.out))
        failed = not found["generation"] and not any(
            row["side"] == "pygpt" and "seconds" in row for row in found["steps"]
        )
    print(gpu_report.text(found))
    print("; ".join(gpu_report.comparison(found["steps"])) or "nothing to compare with")
    return 1 if failed else 0


def _side(flags: argparse.Namespace) -> int:
    batches = [int(B) for B in flags.batches.split(",") if B]
    if flags.side == "rates":
        sizes: dict[str, Any] = {"size": 64, "copied": 2**16, "seconds": 0.05} if flags.quick else {}
        rows: Iterator[Any] = iter([device_rates(torch_device(flags.device), **sizes)])
    elif flags.side == "kernels":
        rows = iter([kernels_of_step(flags.model, batches[0], flags.seq_len, flags.device)])
    elif flags.side == "generation":
        rows = measure_generation(flags.model, batches, flags.device, 0.05 if flags.quick else 0.5)
    else:
        seconds, compiled = (0.05, False) if flags.quick else (1.0, True)
        rows = measure_side(flags.side, flags.model, batches, flags.seq_len, flags.device, compiled, seconds)
    for row in rows:
        print(RESULT + json.dumps(row), flush=True)
    return 0


def _tiny(device: str) -> int:
    """Three steps of a tiny model in each dtype, and three tokens after a text: compute-sanitizer is slow."""
    # the simple kernels of attention, and those in tiles: two of these, the second full only with dropout
    dropout = replace(TINY_TILES, attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1)
    for config, T in ((TINY, 13), (TINY_TILES, 67), (dropout, 128)):
        tokens, targets = Step(2, T).random_batch(config.vocab_size)
        for dtype in DTYPES:
            model = GPT2(config, device=device, dtype=dtype)
            for _ in range(3):  # kernel by kernel, then as a captured graph
                model.zero_grad()
                loss = model.forward_backward(tokens, targets, dropout_step=0)
                model.clip_grad_norm(1.0)
                model.adamw_step(1e-3)
            if not np.isfinite(loss):
                raise UserError(f"the loss is {loss} in {dtype}")
            print(f"{dtype}, head size {config.n_embd // config.n_head}: loss {loss:.4f}")
        for weights in WEIGHTS:
            generator = model.generator(weights, batch_size=2)
            generator.feed(list(tokens[:, : T - 3]))
            for column in range(T - 3, T):  # likewise
                logits = generator.feed(list(tokens[:, column : column + 1]))
            if not np.isfinite(logits).all():
                raise UserError(f"logits with weights in {weights} are not finite")
    return 0


def _agree(device: str, path: Path, quick: bool) -> int:
    """GPT-2 124M beside torch's model, in each dtype; 1 if they do not agree."""
    config, (B, T) = (TINY_TILES, (2, 67)) if quick else (MODELS["gpt2"], (2, 1024))
    rows: list[dict[str, Any]] = []
    for row in beside_torch(config, B, T, device):
        rows.append(row)
        print(f"{row['dtype']}: {row['verdict']}", flush=True)
        _write_json(path, {"agreement": rows})
    return 1 if any(row["violations"] for row in rows) else 0


def _report(folder: Path, out: Path) -> str:
    """Join what the stages have left in a folder, into gpu_check.json and gpu_check.txt in `out`.  Returns the text."""
    found: dict[str, Any] = {}
    for path in (folder / "times.json", folder / "agree.json"):
        found |= json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stages = [line.split("\t") for line in (folder / "stages.tsv").read_text(encoding="utf-8").splitlines()]
    names = ("name", "result", "seconds", "sentence")
    found["stages"] = [dict(zip(names, stage, strict=True)) for stage in stages]
    _write_json(out / "gpu_check.json", found)
    written = gpu_report.text(found)
    with write_file(out / "gpu_check.txt") as file:
        file.write((written + "\n").encode())
    return written


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with write_file(path) as file:
        file.write(json.dumps(values, indent=1, allow_nan=False).encode())


def _parser() -> Parser:
    parser = Parser(prog="gpu.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    times = commands.add_parser("measure", help="time whole steps beside torch's and llm.c's")
    side = commands.add_parser("side", help="one alternative, as measure starts it")
    tiny = commands.add_parser("tiny", help="three steps of a tiny model and three tokens, for compute-sanitizer")
    agree = commands.add_parser("agree", help="the loss and the gradient of GPT-2 124M beside torch's")
    report = commands.add_parser("report", help="join what the stages of gpu_check.sh have left in a folder")
    for command in (times, side, tiny, agree):
        command.add_argument("--device", default="cuda", help="device; another than cuda only to try the program")
    for command in (times, agree):
        command.add_argument("--json", required=True, metavar="FILE", help="where the numbers go")
    for command in (times, side, agree):
        command.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    times.add_argument("--plan", choices=tuple(PLANS), default="tables", help="which models and batches")
    times.add_argument("--seconds", type=float, default=300.0, metavar="X", help="for everything together")
    times.add_argument("--out", metavar="FOLDER", help="report there, too, whenever there is more")
    times.add_argument("--llmc", metavar="FOLDER", help="llm.c, with train_gpt2cu built")
    side.add_argument("side", choices=SIDES)
    side.add_argument("--model", choices=tuple(MODELS), default="gpt2", help="size")
    side.add_argument("--batches", default="", metavar="B[,B...]", help="batch sizes")
    side.add_argument("--seq-len", type=int, default=1024, metavar="N", help="tokens in a sequence")
    report.add_argument("folder", metavar="FOLDER", help="of times.json and stages.tsv")
    report.add_argument("out", metavar="OUT", help="where the results go")
    return parser


if __name__ == "__main__":
    run_main(main)
