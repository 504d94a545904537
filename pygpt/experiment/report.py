"""What the runs of an experiment show: a table for people, and the numbers for programs.

Every variant is compared with the first one of its task, seed by seed:

    d_i = loss of the variant − loss of the first, both with seed i      ⟨d⟩ ± t s / √n

s is the standard deviation of d, and t Student's quantile for 95 % and n − 1 degrees of freedom.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pygpt.evaluation.result import ratio
from pygpt.experiment.plan import Plan
from pygpt.experiment.run import Result
from pygpt.files.atomic import write_file
from pygpt.files.json_file import save_json

_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)  # for 1, 2, ... degrees of freedom


@dataclass(frozen=True)
class Row:
    """One variant of a task, over its seeds."""

    variant: str
    losses: tuple[float | None, ...]  # the last validation loss by seed; None after a divergence
    difference: float | None  # mean of that to the first variant; None of the first itself, and after a divergence
    interval: float | None  # half the width of its 95 % interval; None with one seed
    milliseconds: float  # a step, median over seeds
    parameters: int
    steps_to_target: tuple[int | None, ...]  # the first validation at or below it by seed; None: never

    @property
    def within_noise(self) -> bool:
        """Whether the interval of the difference contains 0."""
        return self.difference is not None and self.interval is not None and abs(self.difference) <= self.interval


@dataclass(frozen=True)
class Summary:
    """A task with its variants."""

    name: str
    target: float | None
    rows: tuple[Row, ...]


def summaries(plan: Plan, results: Sequence[Result]) -> list[Summary]:
    """The tasks in the order of the plan."""
    found = []
    for task in dict.fromkeys(result.run.task for result in results):
        by_variant: dict[str, list[Result]] = {}
        for result in results:
            if result.run.task == task:
                by_variant.setdefault(result.run.variant, []).append(result)
        first = next(iter(by_variant.values()))
        target = plan.targets.get(task)
        rows = tuple(_row(of_variant, first, target) for of_variant in by_variant.values())
        found.append(Summary(task, target, rows))
    return found


def table(tasks: Sequence[Summary]) -> str:
    """In Markdown."""
    return "\n\n".join(_table(task) for task in tasks)


def save(folder: Path, tasks: Sequence[Summary]) -> None:
    """Write results.md and results.json.  Raises UserError when they cannot be written."""
    with write_file(folder / "results.md") as file:
        file.write((table(tasks) + "\n").encode())
    save_json(folder / "results.json", {"tasks": [asdict(task) for task in tasks]})


def _row(of_variant: Sequence[Result], first: Sequence[Result], target: float | None) -> Row:
    losses = tuple(result.loss for result in of_variant)
    pairs = zip(losses, (result.loss for result in first), strict=True)
    differences = [loss - other for loss, other in pairs if loss is not None and other is not None]
    compared = of_variant is not first and len(differences) == len(losses)
    difference, interval = _mean(differences) if compared else (None, None)
    milliseconds = 1000 * statistics.median(result.seconds_per_step for result in of_variant)
    steps = () if target is None else tuple(_first_below(result, target) for result in of_variant)
    name, parameters = of_variant[0].run.variant, of_variant[0].parameters
    return Row(name, losses, difference, interval, milliseconds, parameters, steps)


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % interval."""
    mean = ratio(values)
    if mean.error is None:
        return mean.value, None
    return mean.value, _T95[min(len(values) - 1, len(_T95)) - 1] * mean.error


def _first_below(result: Result, target: float) -> int | None:
    return next((step for step, loss in result.val_losses if loss <= target), None)


def _table(task: Summary) -> str:
    head = ["variant", "validation loss", "difference", "ms per step", "parameters"]
    if task.target is not None:
        head += [f"steps to {task.target:g}", f"seconds to {task.target:g}"]
    lines = [f"**{task.name}**", "", f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    for row in task.rows:
        cells = [row.variant, _losses(row), _difference(row), f"{row.milliseconds:.1f}", f"{row.parameters:,}"]
        if task.target is not None:
            steps = [step for step in row.steps_to_target if step is not None]
            reached = len(steps) == len(row.losses)
            mean = statistics.mean(steps) if reached else 0
            cells += [f"{mean:,.0f}", f"{mean * row.milliseconds / 1000:.0f}"] if reached else ["–", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _losses(row: Row) -> str:
    """Mean and standard deviation over the seeds."""
    losses = [loss for loss in row.losses if loss is not None]
    if len(losses) < len(row.losses):
        return f"diverged ({len(row.losses) - len(losses)} of {len(row.losses)})"
    spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
    return f"{statistics.mean(losses):.4f}{spread}"


def _difference(row: Row) -> str:
    if row.difference is None:
        return ""
    interval = "" if row.interval is None else f" ± {row.interval:.4f}"
    return f"{row.difference:+.4f}{interval}{', within the noise' if row.within_noise else ''}"
