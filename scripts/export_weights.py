"""Models into files of llama.cpp and llm.c: python scripts/export_weights.py --help, and docs/models.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever is installed

from pygpt.command.cli import run
from pygpt.command.export import main

if __name__ == "__main__":
    run(main)
