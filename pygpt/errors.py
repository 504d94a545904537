"""What is raised when the user, not the program, can mend it."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Iterator, Sequence
from typing import Any


class UserError(Exception):
    """One sentence: the file, flag or tensor; what was expected; what was found. Scripts print it and exit with 2."""


class DeviceError(UserError):
    """A device failed, or was lost, while it worked: nothing that it holds can be read any more."""


class DivergedError(UserError):
    """The loss or the gradient of a training run is not finite any more."""


@contextlib.contextmanager
def explained(beginning: str) -> Iterator[None]:
    """Turn the system's errors within the block into a UserError: the beginning of a sentence and what they say."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{beginning}: {error.strerror or error}") from error


def reading(path: object) -> contextlib.AbstractContextManager[None]:
    """A block in which the system's errors mean that this file or folder cannot be read."""
    return explained(f"{path}: cannot be read")


def writing(path: object) -> contextlib.AbstractContextManager[None]:
    """A block in which the system's errors mean that this file cannot be written."""
    return explained(f"{path}: cannot be written")


def show(value: Any) -> str:
    """A value as it stands in an error: short, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        text = f"an enormous {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def alternatives(words: Sequence[str]) -> str:
    """As an error says what was expected: "a, b or c"."""
    return f"{', '.join(words[:-1])} or {words[-1]}"


def check_integer(name: str, value: object, least: int, largest: int | None = None) -> None:
    """Raises UserError when a setting is not an integer or out of its range."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < least or (largest is not None and value > largest):  # type: ignore[operator]
        expected = f"of at least {least}" if largest is None else f"from {least} to {largest}"
        raise UserError(f"{name} is {show(value)}, expected an integer {expected}")
