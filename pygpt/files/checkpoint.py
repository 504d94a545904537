"""The model folder: config.json and model.safetensors, as Hugging Face's GPT-2 has them.

A folder may come from anybody, so every check is made before the first number is read, and what is allocated is bounded
by the size of the files.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pygpt.command.programs import call
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.files import atomic
from pygpt.files.json_file import read_json_object
from pygpt.files.tensor_file import READABLE, StoredTensor, bytes_per_value, read_tensors, write_tensors
from pygpt.parameters import parameter_shapes

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_FILE = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
KERAS_FILE = "tf_model.h5"
FOREIGN_FILES = (TORCH_FILE, TORCH_INDEX, KERAS_FILE)  # from which a folder is imported

_EMBEDDING = "wte.weight"
_HEAD = "lm_head.weight"
_LINEAR = re.compile(r"h\.\d+\.(attn|mlp)\.c_\w+\.weight")
_MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # constants, which old files hold
_ROWS = 1024


def read_config(folder: str | Path) -> GPT2Config:
    """The configuration of a model folder.  Raises UserError when there is none, or not one of a GPT-2."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder, expected one with {CONFIG_FILE} and {WEIGHTS_FILE}")
    atomic.finish(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder}: holds no {CONFIG_FILE}, {_contents(folder)}")
    return GPT2Config.from_json(folder / CONFIG_FILE)


def load_parameters(folder: str | Path, config: GPT2Config) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The parameters of a model folder, one after the other: name and float32 array, in the order of the table.

    The arrays are read-only views of the file where it holds float32, and copies of one tensor where it holds
    float16, bfloat16 or float64. All names may have a common prefix, such as `transformer.`; a stored head must equal
    wte.weight where it is tied to it. Weights of linear layers stored as (out, in), as torch.nn.Linear has them, are
    transposed, with a warning.

    Raises UserError on the call, before anything is yielded, when the folder does not hold exactly the parameters
    that the configuration asks for. So call it before the model is created: a small file with a configuration of
    a large model is refused without allocating one.
    """
    folder = Path(folder)
    atomic.finish(folder)
    return match_parameters(*stored_tensors(folder), config)


def match_parameters(
    weights: Path,
    stored: Mapping[str, StoredTensor],
    config: GPT2Config,
    described_in: str = CONFIG_FILE,
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The parameters among the tensors that were found in `weights`, as load_parameters() gives them, and its errors.

    described_in: where the configuration is from.
    """
    tensors = _without_prefix(weights, stored)
    if config.n_layer > len(tensors):
        raise UserError(
            f"{weights}: holds {len(tensors)} parameters, too few for the {config.n_layer} layers of {described_in}"
        )
    shapes = parameter_shapes(config)
    head = tensors.pop(_HEAD, None) if config.tie_word_embeddings else None
    _check_names(weights, tensors, shapes, described_in)
    if _is_transposed(tensors, shapes):
        warnings.warn(f"{weights}: holds the weights of linear layers as (out, in); they are transposed", stacklevel=2)
        for name in filter(_LINEAR.fullmatch, shapes):
            tensors[name] = replace(tensors[name], data=tensors[name].data.T)
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise UserError(f"{tensor.path}: tensor {name} has shape {tensor.shape}, expected {shape}")
        if tensor.dtype not in READABLE:
            raise UserError(f"{tensor.path}: tensor {name} has dtype {tensor.dtype}, expected {', '.join(READABLE)}")
    if head is not None and not same_numbers(head, tensors[_EMBEDDING]):
        raise UserError(
            f"{head.path}: tensor {_HEAD} differs from wte.weight, but {described_in} does not say "
            f"tie_word_embeddings: false"
        )
    return ((name, tensors[name].float32()) for name in shapes)


def save_parameters(
    folder: str | Path,
    config: GPT2Config,
    parameters: Mapping[str, NDArray[Any]],
    dtype: str = "float32",
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Save a model so that transformers.GPT2LMHeadModel.from_pretrained(folder) opens it.

    parameters: name -> array, asked for one at a time. dtype: "float32", "float16" or "bfloat16".
    extra: writes further files, such as the tokenizer's, into the folder that it is given.

    A folder that exists keeps its other files; config.json, model.safetensors and the extra files are replaced together
    (pygpt/files/atomic.py). Raises UserError when they cannot be written, and then leaves the folder as it was.
    """
    size = config.num_parameters * bytes_per_value(dtype) + 2**20  # with space for headers and tokenizer files
    with atomic.write_files(folder, size) as saving:
        write_model(saving, config, parameters, dtype)
        if extra is not None:
            extra(saving)


def write_model(
    folder: Path, config: GPT2Config, parameters: Mapping[str, NDArray[Any]], dtype: str = "float32"
) -> None:
    """Write config.json and model.safetensors into a folder that atomic.write_files() gave."""
    config.to_json(folder / CONFIG_FILE, dtype)
    shapes = parameter_shapes(config)
    names: dict[str, str] = {}
    if not config.tie_word_embeddings:  # beside the head, transformers expects its prefix
        names = {name: f"transformer.{name}" for name in shapes if name != _HEAD}
    write_tensors(folder / WEIGHTS_FILE, shapes, parameters, dtype, names)


def stored_tensors(folder: Path) -> tuple[Path, dict[str, StoredTensor]]:
    """The file that holds or lists the tensors of a folder, and the tensors by name."""
    if (folder / WEIGHTS_FILE).is_file():
        weights = folder / WEIGHTS_FILE
        stored = read_tensors(weights)
    elif (folder / INDEX_FILE).is_file():
        weights = folder / INDEX_FILE
        stored = read_shards(weights, "safetensors", read_tensors)
    else:
        others = [name for name in FOREIGN_FILES if (folder / name).is_file()]
        hint = f"; {' '.join(call('import'))} {folder} NEW_FOLDER converts {others[0]}" if others else ""
        raise UserError(f"{folder}: holds no {WEIGHTS_FILE}, {_contents(folder)}{hint}")
    return weights, stored


def _without_prefix(weights: Path, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors by their names without prefix, and without mask buffers."""
    prefix = _common_prefix(weights, stored)
    tensors: dict[str, StoredTensor] = {}
    for full_name, tensor in stored.items():
        name = full_name.removeprefix(prefix)
        if name.endswith("." + _HEAD) and prefix.startswith(name.removesuffix(_HEAD)):
            name = _HEAD  # beside the transformer: module.lm_head.weight, module.transformer.wte.weight
        if name in tensors:
            raise UserError(f"{tensor.path}: tensor {name[:80]!r} is there twice, with a prefix and without")
        if not _MASK_BUFFER.fullmatch(name):
            tensors[name] = tensor
    return tensors


def _common_prefix(weights: Path, names: Iterable[str]) -> str:
    """What stands before the names, such as `transformer.` or `_orig_mod.module.`: before the name of the embedding."""
    found = [name.removesuffix(_EMBEDDING) for name in names if ("." + name).endswith("." + _EMBEDDING)]
    if len(found) > 1:
        both = " and ".join(repr((prefix + _EMBEDDING)[:80]) for prefix in found[:2])
        raise UserError(f"{weights}: holds several models: {both}")
    return found[0] if found else ""


def _check_names(
    weights: Path, tensors: Mapping[str, StoredTensor], shapes: Mapping[str, Any], described_in: str
) -> None:
    """Raises UserError, which says what is there instead, unless the tensors have the parameters' names."""
    unknown = [name for name in tensors if name not in shapes]
    missing = [name for name in shapes if name not in tensors]
    if missing and missing == [name for name in shapes if name.endswith(".bias")]:
        raise UserError(f"{weights}: holds no biases, but {described_in} does not say bias: false")
    if missing == [_HEAD]:
        raise UserError(f"{weights}: holds no {_HEAD}, but {described_in} has tie_word_embeddings: false")
    if missing:
        found = f"{len(shapes) - len(missing)} of {len(shapes)} parameters"
        instead = f", but {_list(unknown)} are there" if unknown else f"; found {found}"
        raise UserError(f"{weights}: tensor {missing[0]} is missing{instead}")
    biases = [name for name in unknown if name.endswith(".bias")]
    if biases and f"{biases[0].removesuffix('.bias')}.weight" in shapes:
        raise UserError(f"{weights}: holds biases, such as {biases[0][:80]!r}, but {described_in} has bias: false")
    if unknown:
        path = tensors[unknown[0]].path
        raise UserError(f"{path}: tensor {unknown[0][:80]!r} is not a parameter of the GPT-2 in {described_in}")


def _contents(folder: Path) -> str:
    """What is in a folder instead of what should be."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return f"found {_list(names)}" if names else "it is empty"


def _list(names: Sequence[str]) -> str:
    """Some names as they stand in an error."""
    shown = ", ".join(repr(name[:40]) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _is_transposed(tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether linear layers hold (out, in).  A square matrix does not tell, but c_attn is never square."""
    return all(tensors[name].shape == shapes[name][::-1] for name in shapes if _LINEAR.fullmatch(name))


def read_weight_map(index: Path, suffix: str = "safetensors") -> dict[str, str]:
    """Tensor -> file beside the index, from a model.safetensors.index.json.  Raises UserError when it is not that."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: holds no weight_map from tensors to files")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(rf"[\w.-]+\.{suffix}", file):
            raise UserError(
                f"{index}: names {str(file)[:80]!r} for tensor {name[:80]!r}, expected a .{suffix} file beside it"
            )
    return weight_map


def read_shards(
    index: Path, suffix: str, read: Callable[[Path], Mapping[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    """The tensors of the files that an index names, each of which `read` reads.  Raises UserError where they differ."""
    weight_map = read_weight_map(index, suffix)
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        for name, tensor in read(index.with_name(file)).items():
            if name in tensors:
                raise UserError(f"{tensor.path}: tensor {name[:80]!r} is in {tensors[name].path.name} too")
            tensors[name] = tensor
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].path.name != file:
            raise UserError(f"{index}: names {file} for tensor {name[:80]!r}, which is not there")
    return tensors


def same_numbers(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors hold the same numbers, bit by bit, so that NaN equals itself."""
    if a.dtype not in READABLE or a.shape != b.shape:
        return False
    pieces = (slice(row, row + _ROWS) for row in range(0, a.shape[0], _ROWS))
    return all(np.array_equal(a.float32(rows).view(np.int32), b.float32(rows).view(np.int32)) for rows in pieces)
