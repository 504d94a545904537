"""The command `pygpt`: the programs of scripts/ under one name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from pygpt.command.cli import run
from pygpt.command.flags import Parser, nearest
from pygpt.command.programs import PROGRAMS, module
from pygpt.errors import UserError

SHELLS = ("bash", "zsh", "fish")


def main() -> NoReturn:
    """Run the program that the command line names, and exit with its status."""
    run(lambda: dispatch(sys.argv[1:]))


def dispatch(argv: Sequence[str]) -> int | None:
    """Run the program argv[0] with the flags that follow.  Raises UserError when there is none of this name."""
    names = ", ".join(PROGRAMS)
    if not argv:
        raise UserError(f"pygpt stands alone, expected one of {names} after it; pygpt --help says what they do")
    name, *flags = argv
    if name.startswith("-") and (shell := _parser().parse(argv).print_completion):
        from pygpt.command.completion import completion

        print(completion(_parser(), shell))
        return None
    if name not in PROGRAMS:
        raise UserError(f"{name!r} is not a command of pygpt, expected one of {names}{nearest(name, list(PROGRAMS))}")
    status: int | None = module(name).main(flags)
    return status


def _parser() -> Parser:
    """Without the programs: the flags after a program's name are for the program's own parser."""
    programs = "\n".join(f"  {name:12}{program.summary}" for name, program in PROGRAMS.items())
    parser = Parser(
        prog="pygpt",
        usage="pygpt COMMAND [FLAG...]",
        description=f"GPT-2: to study, to step through, and to train with.\n\ncommands:\n{programs}",
        epilog="pygpt COMMAND --help lists the flags of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--print-completion", choices=SHELLS, help="print what makes TAB complete in this shell")
    return parser
