"""Models in the formats of several programs: which one a path holds, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from pygpt.errors import UserError, reading
from pygpt.files import gguf_file, keras_file, lfs, llmc, torch_file
from pygpt.files.checkpoint import (
    INDEX_FILE,
    KERAS_FILE,
    TORCH_FILE,
    TORCH_INDEX,
    WEIGHTS_FILE,
    match_parameters,
    read_config,
    read_shards,
    stored_tensors,
)
from pygpt.files.hub import resolve_folder
from pygpt.files.stored_model import StoredModel
from pygpt.files.tensor_file import StoredTensor
from pygpt.text.tokenizer import Tokenizer, holds_tokenizer, load_tokenizer

_SUFFIXES = {".bin", ".gguf", ".h5", ".pt", ".pth"}


def read_model(source: str | Path) -> StoredModel:
    """The model in a folder, under a name on huggingface.co, or in a file of GGUF, llm.c, PyTorch or Keras.

    Raises UserError when there is none, its tensors are not those of its configuration, or a number is not finite.
    """
    path = Path(source)
    if path.suffix in _SUFFIXES and not path.exists():  # nobody means a name on the hub
        raise UserError(f"{source}: no such file")
    model = _read_file(path) if path.is_file() else _read_folder(resolve_folder(source))
    for name, values in model.parameters.items():
        finite = np.isfinite(values)
        if not finite.all():
            at = np.argwhere(~finite)[0].tolist()
            raise UserError(f"{source}: tensor {name} holds {values[tuple(at)]} at {at}, expected finite numbers")
    return model


def export_gguf(folder: str | Path, path: str | Path, dtype: str = "float32") -> None:
    """Write a model for llama.cpp.  folder: or whatever read_model() takes; path, dtype, errors: as write_gguf()."""
    gguf_file.write_gguf(path, read_model(folder), dtype)


def _read_file(path: Path) -> StoredModel:
    with reading(path), path.open("rb") as file:
        start = file.read(64)
    lfs.refuse_pointer(path, start)
    if gguf_file.is_gguf(path):
        return gguf_file.read_gguf(path)
    if llmc.is_model_file(path):
        return StoredModel(*llmc.read_model(path))
    if start.startswith(keras_file.START):
        return _described_beside(path, partial(keras_file.read_tensors, path))
    if start.startswith(torch_file.STARTS):
        contents = torch_file.load(path)
        if "model_args" in contents:
            return torch_file.nanogpt_model(path, contents)
        return _described_beside(path, partial(torch_file.tensors_in, path, contents))
    raise UserError(
        f"{path}: is not a model that can be read, expected a folder, or a file of llama.cpp (GGUF), llm.c, PyTorch, "
        f"nanoGPT or Keras"
    )


def _read_folder(folder: Path) -> StoredModel:
    files: dict[str, Callable[[Path], Mapping[str, StoredTensor]]] = {
        TORCH_FILE: torch_file.read_tensors,
        TORCH_INDEX: partial(read_shards, suffix="bin", read=torch_file.read_tensors),
        KERAS_FILE: keras_file.read_tensors,
    }
    weights = next((folder / name for name in (WEIGHTS_FILE, INDEX_FILE, *files) if (folder / name).is_file()), None)
    if weights is not None and weights.name in files:
        return _described_beside(weights, partial(files[weights.name], weights))
    return _described_beside(folder / WEIGHTS_FILE, lambda: stored_tensors(folder)[1])


def _described_beside(weights: Path, read: Callable[[], Mapping[str, StoredTensor]]) -> StoredModel:
    """The model whose tensors a file holds and the folder around it describes.  read: gives the tensors."""
    folder = weights.parent
    config = read_config(folder)
    return StoredModel(config, dict(match_parameters(weights, read(), config)), partial(_tokenizer_in, folder))


def _tokenizer_in(folder: Path) -> Tokenizer | None:
    return load_tokenizer(folder) if holds_tokenizer(folder) else None
