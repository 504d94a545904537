"""Texts on which a small model learns one thing in a few minutes.

induction    the letters a to h stand in a ring, in an order of its own for every 64 letters, and the text walks round
             it: after each letter comes the next one, but for one time in four, when it goes on anywhere
sorting      gbcea>abceg
addition     47+85=132

What follows a letter in a ring is known from where the letter stood before, at distances that vary: copying needs a
head that finds what came after it then. Of the questions of the other tasks one in ten, by its CRC, is held out for
answers.py.
"""

from __future__ import annotations

import string
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pygpt.command.flags import nearest
from pygpt.errors import UserError
from pygpt.files.atomic import write_file

SIZE = 1_000_000

RING = 8
WALK = 64
JUMPS = 0.25

_LETTERS = np.array(list(string.ascii_lowercase))


def make(task: str, path: str | Path, size: int = SIZE, seed: int = 0) -> str:
    """Write a text of about `size` characters for a task; returns its beginning.

    Raises UserError for an unknown task, and where there is a file already or none can be written.
    """
    check_task(task, TASKS)
    if Path(path).exists():
        raise UserError(f"{path}: is there already, expected a new file")
    rng, parts, length = np.random.default_rng(seed), [], 0
    while length < size:
        parts.append("".join(question(task, rng)) + "\n" if task in QUESTIONS else walk(rng))
        length += len(parts[-1])
    text = "".join(parts)
    with write_file(path) as file:
        file.write(text.encode())
    return text[:60]


def check_task(task: str, known: tuple[str, ...]) -> None:
    """Raises UserError for a task that is not among the known ones."""
    if task not in known:
        raise UserError(f"{task!r} is no task, expected {', '.join(known)}{nearest(task, list(known))}")


def walk(rng: np.random.Generator, length: int = WALK) -> str:
    """Round a ring of its own."""
    ring = rng.permutation(_LETTERS[:RING])
    jumps = np.where(rng.random(length) < JUMPS, rng.integers(0, RING, length), 1)
    return "".join(ring[np.cumsum(jumps) % RING])


def question(task: str, rng: np.random.Generator, held_out: bool = False) -> tuple[str, str]:
    """A random question with its answer, one of those that are held out, or one that is in the text."""
    while True:
        asked, answer = QUESTIONS[task](rng)
        if (zlib.crc32(asked.encode()) % 10 == 0) == held_out:
            return asked, answer


def _sorting(rng: np.random.Generator) -> tuple[str, str]:
    letters = rng.choice(_LETTERS, rng.integers(2, 9))
    return f"{''.join(letters)}>", "".join(sorted(letters))


def _addition(rng: np.random.Generator) -> tuple[str, str]:
    a, b = rng.integers(0, 100, 2)
    return f"{a}+{b}=", f"{a + b}"


QUESTIONS: dict[str, Callable[[np.random.Generator], tuple[str, str]]] = {"sorting": _sorting, "addition": _addition}
"""The tasks that consist of questions, each with its answer."""

TASKS = ("induction", *QUESTIONS)
