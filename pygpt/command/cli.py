"""What the command lines share: how they end, and types for their flags."""

from __future__ import annotations

import argparse
import codecs
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

from pygpt.errors import UserError


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main() and exit with its status (None is 0).

    A UserError or MemoryError prints `error: sentence` and exits with 2; Ctrl-C exits with 130, and a reader that went
    away (`script | head`) with 141, the statuses that a shell gives for these signals; none of them shows a traceback.
    A warning is a sentence as well, and an error where a filter makes it one.  Characters that standard output cannot
    show become question marks.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("pygpt.show", _show)
        sys.stdout.reconfigure(errors="pygpt.show")
    warnings.showwarning = lambda message, *place: print(f"warning: {message}", file=sys.stderr)
    try:
        status = main() or 0
        sys.stdout.flush()
    except (UserError, Warning, MemoryError, KeyboardInterrupt, BrokenPipeError) as error:
        status = report(error)
    sys.exit(status)


def report(error: BaseException, place: str = "") -> int:
    """Print an error as run() says, or the traceback of what it does not name, and return the exit status.

    place: what the sentence begins with.
    """
    if isinstance(error, (UserError, Warning)):
        print(f"error: {place}{error}", file=sys.stderr)
        return 2
    if isinstance(error, MemoryError):
        words = str(error) or "an array cannot be allocated"
        print(f"error: {place}it does not fit into memory: {words}", file=sys.stderr)
        return 2
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):
        # Python flushes standard output once more at exit, and would complain then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    traceback.print_exception(error)
    return 1


def _show(error: UnicodeError) -> tuple[bytes, int]:
    """Python's handler of what an encoding lacks: what surrogateescape decoded is the byte that it was."""
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    return bytes(ord(c) - 0xDC00 if "\udc80" <= c <= "\udcff" else ord("?") for c in characters), error.end


def positive_int(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return value
