"""Train a GPT-2.  See docs/training.md."""

from __future__ import annotations

from collections.abc import Sequence

from pygpt.training.settings import parse
from pygpt.training.train import train


def main(argv: Sequence[str] | None = None) -> int:
    """Train as a command line asks for.  Returns the exit status, as train() does."""
    return train(parse(argv))
