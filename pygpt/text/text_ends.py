"""With which tokens a model's texts begin and end, as its folder says: bos_token_id and eos_token_id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pygpt.files.json_file import read_json_object

GENERATION_FILE = "generation_config.json"
_FILES = (GENERATION_FILE, "config.json")  # the first that says something counts, as with transformers


@dataclass(frozen=True)
class TextEnds:
    begin: int | None  # None: the folder does not say it
    end: tuple[int, ...]  # each of them ends a text


def read_text_ends(folder: Path, vocab_size: int) -> TextEnds:
    """What a model's folder says, which may be nothing.  Raises UserError when a file is damaged.

    Tokens outside the vocabulary are passed over: 50256 stays behind in the files of models that have a smaller one.
    """
    files = [read_json_object(folder / name) for name in _FILES if (folder / name).is_file()]
    begin, end = (_tokens(files, name, vocab_size) for name in ("bos_token_id", "eos_token_id"))
    return TextEnds(begin[0] if begin else None, end)


def _tokens(files: list[dict[str, Any]], name: str, vocab_size: int) -> tuple[int, ...]:
    for values in files:
        value = values.get(name)
        tokens = value if isinstance(value, list) else [value]
        if found := tuple(token for token in tokens if type(token) is int and 0 <= token < vocab_size):
            return found
    return ()
