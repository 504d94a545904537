"""Texts on which a small model learns one thing in a few minutes.

induction    random letters, each run of them twice: copying needs a head that finds what followed the last time
sorting      gbcea>abceg
addition     47+85=132
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pygpt.command.flags import nearest
from pygpt.errors import UserError
from pygpt.files.atomic import write_file

SIZE = 1_000_000

_LETTERS = np.array(list(string.ascii_lowercase))


def make(task: str, path: str | Path, size: int = SIZE, seed: int = 0) -> str:
    """Write a text of about `size` characters for a task; returns its beginning.

    Raises UserError for an unknown task, and where there is a file already or none can be written.
    """
    if task not in TASKS:
        raise UserError(f"{task!r} is no task, expected {', '.join(TASKS)}{nearest(task, list(TASKS))}")
    if Path(path).exists():
        raise UserError(f"{path}: is there already, expected a new file")
    rng, parts, length = np.random.default_rng(seed), [], 0
    while length < size:
        parts.append(TASKS[task](rng))
        length += len(parts[-1])
    text = "".join(parts)
    with write_file(path) as file:
        file.write(text.encode())
    return text[:60]


def _induction(rng: np.random.Generator) -> str:
    return "".join(rng.choice(_LETTERS, rng.integers(4, 13))) * 4


def _sorting(rng: np.random.Generator) -> str:
    letters = rng.choice(_LETTERS, rng.integers(2, 9))
    return f"{''.join(letters)}>{''.join(sorted(letters))}\n"


def _addition(rng: np.random.Generator) -> str:
    a, b = rng.integers(0, 100, 2)
    return f"{a}+{b}={a + b}\n"


TASKS: dict[str, Callable[[np.random.Generator], str]] = {
    "induction": _induction,
    "sorting": _sorting,
    "addition": _addition,
}
