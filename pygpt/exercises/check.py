"""Grading: every call of an exercise on the user's file, in a process of its own, against the exact results."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pygpt.errors import UserError
from pygpt.exercises.catalogue import EXERCISES
from pygpt.exercises.exercise import Exercise, WrongResultError
from pygpt.exercises.functions import compiled, open_functions
from pygpt.exercises.judging import verdicts

_GOOD, _BAD = 73, 74  # statuses that a file does not end with by itself


def check(exercise: Exercise, file: Path, seconds: float) -> bool:
    """Whether the file solves the exercise; everything that is found is printed.

    seconds: how long its functions may take.  Raises UserError as compiled() does.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = compiled(file, Path(folder))
        if path is None:
            print(f"{file} does not compile: the compiler's messages are above")
            return False
        sys.stdout.flush()
        process = multiprocessing.get_context("spawn").Process(
            target=_grade_and_exit, args=(exercise.name, file, path), daemon=True
        )
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            print(f"{file}: stopped after {seconds:g} seconds, in the last call above; is there an endless loop?")
            return False
    status = process.exitcode or 0
    if status < 0:
        print(f"{file}: stopped by {signal.Signals(-status).name}, in the last call above")
    elif status not in (_GOOD, _BAD):
        print(f"{file}: ended with status {status}, in the last call above; is a function missing?")
    return status == _GOOD


def grade(exercise: Exercise, file: Path, path: Path) -> bool:
    """In this process; file: as it is named; path: from compiled()."""
    functions = _guarded(partial(open_functions, path, exercise), file)
    if functions is None:
        return False
    count, faults = 0, []
    calls = list(exercise.calls())
    order = list(dict.fromkeys(call.function for call in calls))  # what is written first is graded first
    for call in sorted(calls, key=lambda call: order.index(call.function)):
        print(call, flush=True)
        expected = call.run(exercise.reference, np.float64)
        found = _guarded(partial(call.run, functions, exercise.dtype), file)
        if found is None:
            return False
        for name, value in expected.items():
            for verdict in verdicts(name, found[name], value, exercise.bound):
                print(f"    {verdict.text}", flush=True)
                count += 1
                if not verdict.good:
                    faults.append(f"{call.function}, {verdict.text}")
    if faults:
        print(f"{len(faults)} of {count} results are off, the first: {faults[0]}")
        return False
    own = f"; the project's own: {exercise.solution}" if exercise.solution else ""
    print(f"solved: all {count} results are right{own}")
    return True


def _grade_and_exit(name: str, file: Path, path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says that it was interrupted
    sys.exit(_GOOD if grade(EXERCISES[name], file, path) else _BAD)


def _guarded(work: Callable[[], Any], file: Path) -> Any:
    """None where the user's code raises anything, even the end of the program; what and where is printed."""
    try:
        return work()
    except NotImplementedError as error:
        print(f"{_place(error, file)}: this is still to be written")
    except (WrongResultError, UserError) as error:
        print(f"{file}: {error}")
    except SyntaxError as error:
        print(f"{file}, line {error.lineno}: SyntaxError: {error.msg}")
    except (Exception, SystemExit) as error:
        print(f"{_place(error, file)}: {type(error).__name__}: {error}")
    return None


def _place(error: BaseException, file: Path) -> str:
    """The file, and the line in it from which the error came."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file.resolve()
    ]
    return f"{file}, line {lines[-1]}" if lines else str(file)
