"""Train a vocabulary of byte pair encoding on a text, for prepare --tokenizer.  See docs/bpe.md."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pygpt.command.cli import positive_int
from pygpt.command.flags import Parser
from pygpt.command.programs import call
from pygpt.text.train_vocabulary import SMALLEST_VOCAB, train_vocabulary


def main(argv: Sequence[str] | None = None) -> None:
    """Train the vocabulary that a command line asks for."""
    flags = make_parser().parse(argv)
    folder = train_vocabulary(flags.corpus, flags.vocab_size, flags.out)
    print(f"{folder}: a vocabulary of {flags.vocab_size:,} tokens")
    command = [*call("prepare"), "--data", flags.corpus, "--tokenizer", str(folder)]
    print(f"tokens of it: {shlex.join(command)}")


def make_parser() -> Parser:
    """The flags of the command."""
    parser = Parser(prog=" ".join(call("tokenizer")), description=__doc__)
    parser.add_argument("corpus", metavar="CORPUS", help="stdlib, shakespeare, or a file or folder of text")
    parser.add_argument(
        "--vocab-size",
        type=positive_int,
        required=True,
        metavar="N",
        help=f"tokens: the bytes, N - {SMALLEST_VOCAB} merged ones, and <|endoftext|>",
    )
    parser.add_argument("--out", metavar="FOLDER", help="a new folder (default: data/bpe-NAME-N)")
    return parser
