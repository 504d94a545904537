"""Exercises, graded against the project: python scripts/exercise.py --help, and docs/exercises/README.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever is installed

from pygpt.command.cli import run
from pygpt.command.exercise import main

if __name__ == "__main__":
    run(main)
