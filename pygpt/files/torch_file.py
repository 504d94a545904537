"""Tensors in PyTorch's files: pytorch_model.bin of Hugging Face, ckpt.pt of nanoGPT.

Such a file is a pickle, which may run code when it is read. torch.load(weights_only=True) runs none: it admits
tensors, numbers, texts and containers of them, and refuses everything else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pygpt.config import VARIATIONS, GPT2Config
from pygpt.errors import UserError, reading, show
from pygpt.files.atomic import write_file
from pygpt.files.checkpoint import match_parameters
from pygpt.files.optional import import_for
from pygpt.files.stored_model import StoredModel
from pygpt.files.tensor_file import StoredTensor

_HEAD = "lm_head.weight"
STARTS = (b"PK\x03\x04", b"\x80\x02")  # a zip archive, and the older format

_SAFE = (2, 6)  # of torch: before, a file could run code even so (CVE-2025-32434)
_DTYPES = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float64": "F64"}
_NANOGPT = {  # fields of the configuration by their names in model_args
    **{name: name for name in ("vocab_size", "n_embd", "n_layer", "n_head")},
    "n_positions": "block_size",
    **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), "dropout"),
}


def load(path: Path) -> Mapping[str, Any]:
    """The contents of a file, whose tensors are read from it when they are used, if it is not of the older format.

    Raises UserError when it cannot be read without running code, or is damaged.
    """
    torch = import_for(path, "torch")
    if tuple(map(int, torch.__version__.split(".")[:2])) < _SAFE:
        raise UserError(f"{path}: torch {torch.__version__} may run code from this file, expected torch 2.6 or later")
    with reading(path), path.open("rb") as file:
        mapped = file.read(4) == STARTS[0]
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # of pickle, struct, zip, torch: a damaged file raises anything
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path}: holds not only tensors but {refused[1][:80]}, and reading that could run code; save the "
                f"model's state_dict() alone where the file was made"
            ) from None
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UserError(f"{path}: is not a file of PyTorch, or a damaged one: {reason}") from None
    if not isinstance(contents, Mapping):
        raise UserError(f"{path}: holds {show(type(contents).__name__)}, expected tensors by their names")
    return contents


def tensors_in(path: Path, contents: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The tensors of a state_dict that load() found in a file.  Raises UserError when it holds anything else."""
    return {name: _stored(path, name, value) for name, value in contents.items()}


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file that holds nothing else.  Raises UserError when that cannot be done."""
    return tensors_in(path, load(path))


def nanogpt_model(path: Path, contents: Mapping[str, Any]) -> StoredModel:
    """The model in the contents of nanoGPT's ckpt.pt.  Raises UserError when it is not one."""
    arguments, tensors = contents["model_args"], contents.get("model")
    if not isinstance(arguments, Mapping) or not isinstance(tensors, Mapping):
        raise UserError(f"{path}: holds model_args but not what nanoGPT writes, expected a mapping there and in model")
    try:
        values = {ours: arguments[theirs] for ours, theirs in _NANOGPT.items() if theirs in arguments}
        config = GPT2Config.from_dict({**values, "activation_function": "gelu", "bias": arguments.get("bias", True)})
    except UserError as error:
        raise UserError(f"{path}: model_args: {error}") from None
    stored = tensors_in(path, tensors)
    return StoredModel(config, dict(match_parameters(path, stored, config, described_in="model_args")))


def is_nanogpt(path: Path) -> bool:
    """Whether a file begins as torch.save() writes it.  Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        start = file.read(256)
    return start.startswith(STARTS[0]) and b"/data.pkl" in start


def write_nanogpt(path: Path, model: StoredModel, dtype: str = "float32") -> None:
    """Write a checkpoint for nanoGPT's sample.py, whole or not at all: without an optimizer's state.

    Raises UserError for a model that nanoGPT does not have, and when the file cannot be written.
    """
    torch, config = import_for(path, "torch"), model.config
    expected = {name: known[0] for name, known in VARIATIONS.items() if name != "bias"}
    expected |= {"activation_function": "gelu", "inner": 4 * config.n_embd, "layer_norm_epsilon": 1e-5}
    for name, value in expected.items():
        if getattr(config, name) != value:
            found = getattr(config, name)
            raise UserError(f"{path}: nanoGPT's model has {name.replace('inner', 'n_inner')} {value}, found {found}")
    arguments = {theirs: getattr(config, ours) for ours, theirs in _NANOGPT.items()}
    tensors = {}
    for name, values in model.parameters.items():
        values = values.T if name.startswith("h.") else values  # (out, in)
        tensors[f"transformer.{name}"] = torch.from_numpy(np.array(values)).to(getattr(torch, dtype))
    tensors[_HEAD] = tensors["transformer.wte.weight"]
    with write_file(path) as file:
        torch.save({"model": tensors, "model_args": {**arguments, "bias": config.bias}}, file)


def _stored(path: Path, name: object, value: Any) -> StoredTensor:
    torch = import_for(path, "torch")
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise UserError(f"{path}: holds {show(name)}, which is {type(value).__name__}, expected a tensor and its name")
    if value.is_sparse or value.is_quantized or value.nbytes > value.untyped_storage().nbytes():
        raise UserError(f"{path}: tensor {name[:80]!r} is not stored number by number, expected a plain tensor")
    dtype = str(value.dtype)
    bits = value.detach().view(torch.int16) if dtype == "torch.bfloat16" else value.detach()
    return StoredTensor(path, name, _DTYPES.get(dtype, dtype), bits.numpy())
