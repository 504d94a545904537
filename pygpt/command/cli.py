"""What the command lines share: how they end, and types for their flags."""

from __future__ import annotations

import argparse
import codecs
import io
import os
import sys
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
    except (UserError, Warning) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except MemoryError as error:
        print(f"error: it does not fit into memory: {error or 'an array cannot be allocated'}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # Python flushes standard output once more at exit, and would complain then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(status)


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
