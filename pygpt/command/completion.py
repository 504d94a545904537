"""What makes TAB complete: a script for a shell, from the parsers that the help is from.

The script holds all names of commands, flags and values, so that a shell completes without calling Python.
"""

from __future__ import annotations

import shtab

from pygpt.command.flags import Parser
from pygpt.command.programs import PROGRAMS, module

_NO_PATHS = {"N", "X", "TEXT", "prompt"}  # numbers, and text


def completion(parser: Parser, shell: str) -> str:
    """The script for a shell.  parser: with the flags of pygpt itself; it is given those of the commands."""
    commands = parser.add_subparsers()
    for name, program in PROGRAMS.items():
        flags: Parser = module(name).make_parser()
        _say_what_values_are(flags)
        commands.add_parser(name, parents=[flags], add_help=False, help=program.summary)
    script: str = shtab.complete(parser, shell)
    return script


def _say_what_values_are(parser: Parser) -> None:
    """A value is one of some words, where the help shows these (float32|bfloat16), or a number, or else a path."""
    for action in parser._actions:
        value = action.metavar or action.dest
        if action.nargs == 0 or action.choices is not None or value in _NO_PATHS:
            continue
        if isinstance(value, str) and "|" in value and value.islower():
            action.choices = value.split("|")
        else:
            action.complete = shtab.DIRECTORY if value == "FOLDER" else shtab.FILE  # type: ignore[attr-defined]
