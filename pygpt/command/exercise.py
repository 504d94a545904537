"""Write parts of the project again: exercises that are graded against it.  See docs/exercises/README.md.

list: all exercises; start NAME: writes the file to fill in, with the task at its beginning; check NAME: grades it;
hint NAME: prints a hint.

Exit status of check: 0 solved, 1 not yet, 2 for bad input."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from pygpt.command import programs
from pygpt.command.cli import positive_int
from pygpt.command.flags import Parser, nearest
from pygpt.command.programs import call
from pygpt.errors import UserError, writing
from pygpt.exercises.catalogue import EXERCISES
from pygpt.exercises.check import check
from pygpt.exercises.exercise import Exercise

ACTIONS = ("list", "start", "check", "hint")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what a command line asks for.  Returns the exit status."""
    flags = make_parser().parse(argv)
    if flags.file is not None and flags.action != "check":
        raise UserError(f"--file is for check, and {flags.action} is asked for")
    if flags.action == "list":
        if flags.name is not None:
            raise UserError(f"list is of all exercises, and {flags.name} was named: expected start, check or hint")
        for exercise in EXERCISES.values():
            print(f"{exercise.name:20}{exercise.title}")
        return 0
    if flags.name is None:
        raise UserError(f"{flags.action} needs the name of an exercise: `{_command('list')}` shows them")
    exercise = EXERCISES[flags.name]
    file = Path(flags.folder, exercise.stub.name) if flags.file is None else Path(flags.file)
    if flags.action == "start":
        _start(exercise, file)
    elif flags.action == "hint":
        print(exercise.hint)
    else:
        _expect_file(exercise, file)
        return 0 if check(exercise, file, flags.time_limit) else 1
    return 0


def make_parser() -> Parser:
    """The flags of the command."""
    parser = programs.parser("exercise", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    parser.add_argument("name", nargs="?", type=_name, choices=list(EXERCISES), metavar="NAME", help="of the exercise")
    parser.add_argument("--folder", default="exercises", metavar="FOLDER", help="of your files (default: exercises)")
    parser.add_argument("--file", metavar="FILE", help="check this file instead of the one in the folder")
    parser.add_argument(
        "--time-limit", type=positive_int, default=60, metavar="N", help="seconds that a check may take (default: 60)"
    )
    return parser


def _name(text: str) -> str:
    if text not in EXERCISES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no exercise of those that `{_command('list')}` shows{nearest(text, list(EXERCISES))}"
        )
    return text


def _start(exercise: Exercise, file: Path) -> None:
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("x", encoding="utf-8") as stub:
                stub.write(exercise.stub.read_text(encoding="utf-8"))
        except FileExistsError:
            raise UserError(f"{file} exists already, and is left as it is: delete it to start again") from None
    print(f"{file}: {exercise.title}")
    folder = [] if file.parent == Path("exercises") else ["--folder", str(file.parent)]
    print(f"to grade it: {_command('check', exercise.name, *folder)}")


def _expect_file(exercise: Exercise, file: Path) -> None:
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; `{_command('start', exercise.name)}` begins one")
    if file.suffix != exercise.stub.suffix:
        raise UserError(f"{file}: exercise {exercise.name} is a {exercise.stub.suffix} file")


def _command(*words: str) -> str:
    return shlex.join([*call("exercise"), *words])
