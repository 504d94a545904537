"""Turn text into a folder of token files to train on with --data.  See docs/data.md."""

from __future__ import annotations

from collections.abc import Sequence

from pygpt.command.cli import positive_int
from pygpt.command.flags import Parser
from pygpt.command.programs import call
from pygpt.text.meta import read_meta
from pygpt.text.prepare import CHOICES, DEFAULT, SHARD_SIZE, VAL_FRACTION, VOCAB_SIZE, prepare


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare the text that a command line names."""
    flags = make_parser().parse(argv)
    folder = prepare(
        flags.data,
        flags.tokenizer,
        flags.out_dir,
        vocab=flags.vocab,
        from_file=flags.from_file,
        eot_in_text=flags.eot_in_text,
        val_fraction=flags.val_fraction,
        shard_size=flags.shard_size,
        workers=flags.workers,
    )
    meta = read_meta(folder)
    print(f"{folder}: {meta.train.tokens:,} tokens for training and {meta.val.tokens:,} for validation")
    print(f"tokenizer  {meta.tokenizer.name}, {meta.tokenizer.vocab_size:,} tokens")
    print(f"source     {meta.source}")
    print(f"licence    {meta.licence}")


def make_parser() -> Parser:
    """The flags of the command."""
    parser = Parser(prog=" ".join(call("prepare")), description=__doc__)
    parser.add_argument(
        "--data", default="stdlib", metavar="NAME|PATH", help="stdlib, shakespeare, or a file or folder of text"
    )
    parser.add_argument(
        "--tokenizer",
        default=DEFAULT,
        metavar="|".join(CHOICES),
        help=f"or a folder that holds one (default: {DEFAULT}, {VOCAB_SIZE} tokens trained on the text)",
    )
    parser.add_argument("--vocab", metavar="FOLDER", help="with GPT-2's vocabulary, so that no download is needed")
    parser.add_argument("--from", dest="from_file", metavar="FILE", help="a copy of what would be downloaded")
    parser.add_argument(
        "--eot-in-text", action="store_true", help="<|endoftext|> in the text becomes the end-of-text token of gpt2"
    )
    parser.add_argument("--out-dir", metavar="FOLDER", help="(default: data/NAME-TOKENIZER)")
    parser.add_argument(
        "--val-fraction", type=float, metavar="X", help=f"of the text, for validation (default: {VAL_FRACTION})"
    )
    parser.add_argument(
        "--shard-size",
        type=positive_int,
        default=SHARD_SIZE,
        metavar="N",
        help="most tokens in a file (default: %(default)s)",
    )
    parser.add_argument("--workers", type=positive_int, metavar="N", help="threads (default: one a processor)")
    return parser
