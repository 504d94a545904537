"""What is raised when the user, not the program, can mend it."""

from __future__ import annotations

from typing import Any


class UserError(Exception):
    """One sentence: the file, flag or tensor; what was expected; what was found. Scripts print it and exit with 2."""


class DeviceError(UserError):
    """A device failed, or was lost, while it worked: nothing that it holds can be read any more."""


def show(value: Any) -> str:
    """A value as it stands in an error: short, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        text = f"an enormous {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
