"""The runs of an experiment, one after the other.

Beside the folder of a run, seed-0/, stand seed-0.txt, what train printed, and seed-0.json, the settings that were asked
for and, when the run has ended, what it gave.  So a run that has ended is not repeated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pygpt.errors import DivergedError, UserError, explained
from pygpt.experiment.plan import Plan, Run
from pygpt.files.checkpoint import read_config
from pygpt.files.json_file import read_json_object, save_json
from pygpt.training.run_folder import LAST, RunFolder
from pygpt.training.settings import SETTINGS_FILE, make_request
from pygpt.training.train import train

_NOT_COMPARED = ("out_dir", "device", "threads")  # which change no result, or hardly


@dataclass(frozen=True)
class Result:
    """What a run gave."""

    run: Run
    val_losses: tuple[tuple[int, float], ...]  # step and loss, nats per token
    seconds_per_step: float
    parameters: int
    diverged: bool = False  # the loss became infinite or NaN

    @property
    def loss(self) -> float | None:
        """The last validation loss; None after a divergence."""
        return None if self.diverged else self.val_losses[-1][1]


def run_all(plan: Plan) -> tuple[int, list[Result]]:
    """Make the runs that have not ended.  Returns the exit status, as train() does, and the results.

    Raises UserError when a run cannot be made, and when one in the folder is of other settings.
    """
    for run in plan.runs:
        _check_same(run)
    results = []
    with _Bar(plan) as bar:
        for run in plan.runs:
            result = _ended(run)
            if result is None:
                bar.begin(run)
                if status := _train(run, bar):
                    return status, []
                result = _ended(run)
                assert result is not None
                ended = "diverged" if result.loss is None else f"validation loss {result.loss:.4f}"
                bar.say(f"{run}: {ended}, {1000 * result.seconds_per_step:.0f} ms a step")
            bar.end(run)
            results.append(result)
    return 0, results


def _train(run: Run, bar: _Bar) -> int:
    """Begin the run, or go on with it.  Returns the exit status."""
    with explained(f"{run.folder}: cannot be the run's folder"):
        run.folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"settings": dataclasses.asdict(run.settings)}
    save_json(_record(run), record)
    resume = str(run.folder) if (run.folder / SETTINGS_FILE).exists() else None
    diverged = False
    with _output(run):
        try:
            status = train(make_request(run.asked, resume=resume), bar.at)
        except DivergedError as error:
            print(error)
            diverged, status = True, 0
        except UserError as error:
            raise UserError(f"{run}: {error}") from None
    if status == 0:
        with RunFolder(run.folder, resume=True) as folder:
            log = folder.read_log()
        tokens = run.settings.grad_accum * run.settings.batch_size * run.settings.seq_len
        speeds = [entry["tokens_per_second"] for entry in log if "tokens_per_second" in entry]
        record["val_losses"] = [[entry["step"], entry["val_loss"]] for entry in log if "val_loss" in entry]
        record["seconds_per_step"] = tokens / statistics.median(speeds) if speeds else 0.0
        record["parameters"] = read_config(run.folder / LAST).num_parameters
        record["diverged"] = diverged
        save_json(_record(run), record)
    return status


@contextlib.contextmanager
def _output(run: Run) -> Iterator[None]:
    """A block of which what is printed goes to a file."""
    path = run.folder.with_name(f"{run.folder.name}.txt")
    with explained(f"{path}: cannot be written"):
        file = path.open("a", encoding="utf-8")
    with file, contextlib.redirect_stdout(file):
        yield


def _record(run: Run) -> Path:
    return run.folder.with_name(f"{run.folder.name}.json")


def _check_same(run: Run) -> None:
    """Raises UserError where the run has begun with other settings."""
    if not _record(run).exists():
        return
    before = read_json_object(_record(run)).get("settings")
    asked = dataclasses.asdict(run.settings)
    if type(before) is not dict:
        raise UserError(f"{_record(run)}: is not the record of a run")
    for name, value in asked.items():
        if name not in _NOT_COMPARED and before.get(name, value) != value:
            raise UserError(
                f"{run.folder}: began with {name} = {before[name]}, and now {value} is asked for: "
                "name another folder (--out-dir), or remove this one"
            )


def _ended(run: Run) -> Result | None:
    """What the run gave; None where it has not ended."""
    if not _record(run).exists():
        return None
    record = read_json_object(_record(run))
    if "val_losses" not in record:
        return None
    try:
        losses = tuple((int(step), float(loss)) for step, loss in record["val_losses"])
        return Result(run, losses, record["seconds_per_step"], record["parameters"], record["diverged"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{_record(run)}: is not the record of a run") from None


class _Bar:
    """One bar for the steps of all runs on a terminal; otherwise only lines."""

    def __init__(self, plan: Plan) -> None:
        self._done = 0  # steps of the runs before
        self._bar = tqdm(
            total=sum(run.settings.max_iters for run in plan.runs),
            file=sys.stdout,
            disable=not sys.stdout.isatty(),
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} steps, {remaining} left, {desc}",
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def begin(self, run: Run) -> None:
        self._bar.set_description_str(str(run))

    def at(self, step: int) -> None:
        """So many steps of the run are done."""
        self._bar.update(self._done + step - self._bar.n)

    def end(self, run: Run) -> None:
        self._done += run.settings.max_iters
        self.at(0)

    def say(self, line: str) -> None:
        self._bar.write(line, file=sys.stdout)
