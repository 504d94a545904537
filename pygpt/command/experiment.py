"""Train variants with several seeds, and compare their losses.  See docs/experiments.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pygpt.command import programs
from pygpt.command.flags import Parser
from pygpt.experiment import plot, report
from pygpt.experiment.plan import read_plan
from pygpt.experiment.run import run_all
from pygpt.parallel.ranks import check_alone


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs that a file asks for, and their report.  Returns the exit status, as train() does."""
    flags = make_parser().parse(argv)
    check_alone("experiment")
    plan = read_plan(Path(flags.file), flags.out_dir and Path(flags.out_dir))
    status, results = run_all(plan)
    if status:
        print(f"the runs that are done stay; go on with: {' '.join(programs.call('experiment'))} {flags.file}")
        return status
    tasks = report.summaries(plan, results)
    report.save(plan.out_dir, tasks)
    for task in tasks:
        plot.loss_curves(plan.out_dir / f"{task.name}.png", task.name, [r for r in results if r.run.task == task.name])
    print(report.table(tasks))
    print(f"tables and loss curves: {plan.out_dir}")
    return 0


def make_parser() -> Parser:
    """The flags of the command."""
    parser = programs.parser("experiment", __doc__)
    parser.add_argument("file", metavar="FILE", help="TOML: settings of all runs, variants, seeds")
    parser.add_argument(
        "--out-dir", metavar="FOLDER", help="folder of all runs; else that of FILE, or out/ and its name"
    )
    return parser
