"""Make a model folder of what another program wrote: a file of llama.cpp (GGUF) or llm.c, nanoGPT's ckpt.pt, a folder
with pytorch_model.bin or tf_model.h5.  See docs/models.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pygpt.command import programs
from pygpt.command.flags import Parser
from pygpt.errors import UserError
from pygpt.files.added_tokens import add_tokens
from pygpt.files.checkpoint import save_parameters
from pygpt.files.formats import read_model
from pygpt.files.tensor_file import DTYPES
from pygpt.text.tokenizer import load_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Write what a command line asks for."""
    flags = make_parser().parse(argv)
    folder = Path(flags.folder)
    if folder.exists():
        raise UserError(f"{folder}: exists, expected the name of a new folder")
    model = read_model(flags.source)
    if flags.tokenizer is not None:
        model = replace(model, read_tokenizer=partial(load_tokenizer, flags.tokenizer))
    if flags.add_token:
        model = add_tokens(model, flags.add_token)
    tokenizer = model.read_tokenizer()
    save = None if tokenizer is None else tokenizer.save
    save_parameters(folder, model.config, model.parameters, flags.dtype, save)
    beside = "no tokenizer" if tokenizer is None else f"a {tokenizer.name} tokenizer"
    print(f"{folder}: {model.config.num_parameters:,} parameters in {flags.dtype}, {beside}")


def make_parser() -> Parser:
    """The flags of the command."""
    parser = programs.parser("import", __doc__)
    parser.add_argument("source", help="file, model folder, or a name on huggingface.co")
    parser.add_argument("folder", help="the folder to make")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of what is written")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="whose tokenizer to take instead of the source's")
    parser.add_argument(
        "--add-token", metavar="TEXT", action="append", help="make a token of this text; the flag may be repeated"
    )
    return parser
