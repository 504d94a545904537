"""Train a GPT-2: python scripts/train.py --help, and docs/training.md."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

from pygpt.cli import run
from pygpt.train import main

if __name__ == "__main__":
    run(main)
