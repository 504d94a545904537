"""An argument parser whose errors are sentences, and which knows the nearest name."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from pygpt.errors import UserError


class Parser(argparse.ArgumentParser):
    """Flags are written out in full; parse() raises UserError for wrong ones."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The flags of a command line; --help prints and exits."""
        found, unknown = self.parse_known_args(argv)
        if unknown:
            flag = unknown[0].split("=")[0]
            if not flag.startswith("-"):
                raise UserError(f"{flag!r} belongs to no flag")
            known = [name for name in self._option_string_actions if name.startswith("--")]
            raise UserError(f"{flag} is not a flag{nearest(flag, known)}")
        return found

    def error(self, message: str) -> NoReturn:
        raise UserError(message.replace("argument -", "-", 1))


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown name: the known one that it may stand for, or nothing."""
    match = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]}?" if match else ""
