"""An argument parser whose errors are sentences, and which knows the nearest name."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from pygpt.errors import UserError


class Parser(argparse.ArgumentParser):
    """Flags are written out in full; parse() raises UserError for wrong ones.

    words_for: the flag that is suggested for a word which stands alone.
    """

    def __init__(self, words_for: str | None = None, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.register("type", int, partial(_converted, int, "an integer"))
        self.register("type", float, partial(_converted, float, "a number"))
        self._words_for = words_for

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The flags of a command line; --help prints and exits."""
        argv = sys.argv[1:] if argv is None else argv
        text = argv[argv.index("--") + 1 :] if "--" in argv else []
        if len(text) > 1:
            raise UserError(f"{text[1]!r} belongs to no flag: after -- is text, and flags stand before it")
        found, unknown = self.parse_known_args(argv)
        if unknown:
            flag = unknown[0].split("=")[0]
            if not flag.startswith("-"):
                hint = f"; did you mean {self._words_for} {shlex.quote(unknown[0])}?" if self._words_for else ""
                raise UserError(f"{unknown[0]!r} belongs to no flag{hint}")
            known = [name for name in self._option_string_actions if name.startswith("--")]
            hint = nearest(flag, known)
            if not hint and any(not action.option_strings for action in self._actions):
                hint = "; text that begins with - stands after the flags and --"
            raise UserError(f"{flag} is not a flag{hint}")
        return found

    def error(self, message: str) -> NoReturn:
        raise UserError(message.replace("argument -", "-", 1))


def number_list(flag: str, text: str, what: str, count: int) -> list[int]:
    """Numbers such as 0,3-5, ascending; what: what they count.  Raises UserError for others than 0 to count - 1."""
    numbers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < count:
            raise UserError(f"{flag} is {text!r}, expected {what} from 0 to {count - 1}, such as 0,3-5")
        numbers |= set(range(first, last + 1))
    return sorted(numbers)


def _converted(kind: type[Any], words: str, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {words}, got {text!r}") from None


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown name: the known one that it may stand for, or nothing."""
    initials = [other for other in known if _initials(other) == name.strip("-")]
    match = initials or difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]}?" if match else ""


def _initials(name: str) -> str:
    """lr of --learning-rate."""
    return "".join(word[0] for word in re.findall(r"[^-_]+", name))
