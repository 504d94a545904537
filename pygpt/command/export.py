"""Turn a model folder into a file that llm.c and pygpt-step read, or such a file into a folder.  See docs/models.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pygpt.command.flags import Parser
from pygpt.command.programs import call
from pygpt.errors import UserError
from pygpt.files.checkpoint import load_parameters, read_config, save_parameters
from pygpt.files.hub import resolve_folder
from pygpt.files.llmc import VERSIONS, is_model_file, read_model, write_model
from pygpt.text.tokenizer import load_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Write what a command line asks for."""
    flags = make_parser().parse(argv)
    target = Path(flags.target)
    if Path(flags.source).is_file():
        config, parameters = read_model(flags.source)
        if target.exists():
            raise UserError(f"{target}: exists, expected the name of a new folder")
        extra = None if flags.tokenizer is None else load_tokenizer(flags.tokenizer).save
        save_parameters(target, config, parameters, flags.dtype, extra)
    else:
        folder = resolve_folder(flags.source)
        if flags.tokenizer is not None:
            raise UserError("--tokenizer is given, but a model file of llm.c holds no tokenizer; leave it out")
        if target.exists() and not (target.is_file() and is_model_file(target)):
            raise UserError(f"{target}: exists and is no model file of llm.c, expected the name of a new file")
        config = read_config(folder)
        parameters = dict(load_parameters(folder, config))
        write_model(target, config, parameters, flags.dtype)
    print(f"{target}: {config.num_parameters:,} parameters in {flags.dtype}")


def make_parser() -> Parser:
    """The flags of the command."""
    parser = Parser(
        prog=" ".join(call("export")),
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("source", help="model folder, a name on huggingface.co, or a model file of llm.c")
    parser.add_argument("target", help="the file to write, or the folder if the source is a file")
    parser.add_argument("--dtype", choices=list(VERSIONS), default="float32", help="of what is written")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="whose tokenizer is written too, into a folder")
    return parser
