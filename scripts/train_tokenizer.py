"""Train a vocabulary: python scripts/train_tokenizer.py --help, and docs/bpe.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever is installed

from pygpt.command.cli import run
from pygpt.command.tokenizer import main

if __name__ == "__main__":
    run(main)
