"""Train a GPT-2.  See docs/training.md."""

from __future__ import annotations

from collections.abc import Sequence

from pygpt.command.cli import report
from pygpt.parallel.ranks import open_ranks
from pygpt.training.settings import make_parser, parse
from pygpt.training.train import train

__all__ = ["main", "make_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Train as a command line asks for, with the other processes where a launcher has started several.

    Returns the exit status, as train() does.
    """
    with open_ranks(report) as ranks:
        return train(parse(argv), ranks=ranks)
