"""Write a model as a file of llama.cpp, llm.c or nanoGPT.  See docs/models.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pygpt.command import programs
from pygpt.command.flags import Parser
from pygpt.command.programs import call
from pygpt.errors import UserError, alternatives
from pygpt.files import gguf_file, llmc, torch_file
from pygpt.files.formats import read_model
from pygpt.files.stored_model import StoredModel
from pygpt.files.tensor_file import DTYPES


@dataclass(frozen=True)
class _Format:
    program: str  # which reads the files
    dtypes: tuple[str, ...]
    holds: Callable[[Path], bool]  # whether a file is one
    write: Callable[[Path, StoredModel, str], None]


def _write_llmc(path: Path, model: StoredModel, dtype: str) -> None:
    llmc.write_model(path, model.config, model.parameters, dtype)


_FORMATS = {  # by the ends of the files' names
    ".gguf": _Format("llama.cpp", tuple(gguf_file.DTYPES), gguf_file.is_gguf, gguf_file.write_gguf),
    ".bin": _Format("llm.c", tuple(llmc.VERSIONS), llmc.is_model_file, _write_llmc),
    ".pt": _Format("nanoGPT", tuple(DTYPES), torch_file.is_nanogpt, torch_file.write_nanogpt),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Write what a command line asks for."""
    flags = make_parser().parse(argv)
    target = Path(flags.target)
    form = _FORMATS.get(target.suffix)
    if form is None:
        names = alternatives([f"{suffix} ({form.program})" for suffix, form in _FORMATS.items()])
        raise UserError(f"{target}: expected a name that ends in {names}; {' '.join(call('import'))} makes a folder")
    if flags.dtype not in form.dtypes:
        raise UserError(f"--dtype is {flags.dtype}, expected {' or '.join(form.dtypes)} for a file of {form.program}")
    if target.exists() and not (target.is_file() and form.holds(target)):
        raise UserError(f"{target}: exists and is no model of {form.program}, expected the name of a new file")
    model = read_model(flags.source)
    form.write(target, model, flags.dtype)
    print(f"{target}: {model.config.num_parameters:,} parameters in {flags.dtype}")


def make_parser() -> Parser:
    """The flags of the command."""
    parser = programs.parser("export", __doc__)
    parser.add_argument("source", help="model folder, a name on huggingface.co, or a file that pygpt import reads")
    parser.add_argument("target", help="the file to write: NAME.gguf for llama.cpp, .bin for llm.c, .pt for nanoGPT")
    dtypes = dict.fromkeys(dtype for form in _FORMATS.values() for dtype in form.dtypes)
    parser.add_argument("--dtype", choices=list(dtypes), default="float32", help="of what is written")
    return parser
