"""The programs, and how one calls them: `pygpt train` where the package is installed, or scripts/train.py."""

from __future__ import annotations

import argparse
import importlib
import keyword
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pygpt.backends.sources import CHECKOUT
from pygpt.command.flags import Parser


@dataclass(frozen=True)
class Program:
    script: str  # in scripts/
    summary: str


PROGRAMS = {
    "train": Program("train.py", "train a model, fine-tune one, or go on with a run"),
    "generate": Program("generate.py", "write text with a model"),
    "prepare": Program("prepare_data.py", "turn text into token files to train on"),
    "tokenizer": Program("train_tokenizer.py", "train a vocabulary of byte pair encoding on text"),
    "export": Program("export_weights.py", "turn a model into a file of llama.cpp or llm.c"),
    "import": Program("import_weights.py", "turn a model of another program into a folder"),
    "evaluate": Program("evaluate.py", "measure a model: perplexity, LAMBADA, HellaSwag"),
    "experiment": Program("experiment.py", "train variants with several seeds, and compare them"),
    "study": Program("study.py", "look inside a model with instruments"),
    "compare": Program("compare.py", "compare a device with numpy, layer by layer"),
    "exercise": Program("exercise.py", "write parts of the project again, graded against it"),
}
"""By their names, of which module() gives the modules."""


def module(name: str) -> Any:
    """The module of a program, in this package: of its name, and an underscore where that is a word of Python."""
    return importlib.import_module(f"pygpt.command.{name}{'_' * keyword.iskeyword(name)}")


def call(name: str) -> list[str]:
    """The words that call a program, in the way in which this process was called."""
    script = Path("scripts", PROGRAMS[name].script)
    if Path(sys.argv[0]).stem == "pygpt" or not (CHECKOUT / script).is_file():
        return ["pygpt", name]
    return ["python", script.as_posix()]


def parser(name: str, description: str | None) -> Parser:
    """The parser of a program whose help says the defaults of its flags."""
    defaults = argparse.ArgumentDefaultsHelpFormatter
    return Parser(prog=" ".join(call(name)), description=description, formatter_class=defaults)
