"""A model in one file as llama.cpp reads it (GGUF), written and read by the package gguf.

    metadata   general.architecture "gpt2"; the sizes under gpt2.*; the tokenizer under tokenizer.*
               (pygpt/files/gguf_tokenizer.py)
    tensors    token_embd, position_embd, blk.0.attn_norm, ...; a linear layer's weight is (out, in), the transpose of
               ours; a head of its own is output, one that is token_embd is not there a second time; biases are
               there, and 0 where the model has none

Vectors and position_embd are float32 whatever the others are, which llama.cpp expects. Dropout is not stored.
"""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pygpt.config import VARIATIONS, GPT2Config
from pygpt.errors import UserError, reading, show
from pygpt.files.atomic import write_file
from pygpt.files.checkpoint import match_parameters, same_numbers
from pygpt.files.gguf_tokenizer import add_tokenizer, read_tokenizer, token_ids
from pygpt.files.optional import import_for
from pygpt.files.stored_model import StoredModel
from pygpt.files.tensor_file import StoredTensor, encode
from pygpt.parameters import parameter_shapes

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}  # by their names here and in ggml

_MAGIC = b"GGUF"
_FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}  # general.file_type
_Q8_BLOCK = 32  # values that share a scale, in the direction of a row
_SIZES = {  # fields of the configuration
    "n_positions": "gpt2.context_length",
    "n_embd": "gpt2.embedding_length",
    "n_layer": "gpt2.block_count",
    "n_head": "gpt2.attention.head_count",
    "n_inner": "gpt2.feed_forward_length",
}
_EPSILON = "gpt2.attention.layer_norm_epsilon"
_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "ln_f": "output_norm",
    "lm_head": "output",
}
_OUR_NAMES = {theirs: ours for ours, theirs in _NAMES.items()}


def is_gguf(path: str | Path) -> bool:
    """Whether a file begins like GGUF.  Raises OSError when it cannot be read."""
    with Path(path).open("rb") as file:
        return file.read(4) == _MAGIC


def write_gguf(path: str | Path, model: StoredModel, dtype: str = "float32") -> None:
    """Write a model with its tokenizer, whole or not at all.

    dtype: "float32", "float16", "bfloat16" (rounded to nearest, ties to even) or "q8_0" (8 bits and a scale for 32
    values; matrices whose rows are no multiple of 32 are float16).
    Raises UserError when the file cannot be written, and leaves what was there.
    """
    path = Path(path)
    gguf = import_for(path, "gguf")
    model = model.with_biases()
    for name, value in model.config.variations.items():
        if name != "tie_word_embeddings":
            first = VARIATIONS[name][0]
            raise UserError(f"{path}: llama.cpp's GPT-2 knows no other {name} than {first}, found {value}")
    tokenizer = model.read_tokenizer()
    shapes = parameter_shapes(model.config)
    with write_file(path) as file:
        writer = gguf.GGUFWriter(file.name, "gpt2")  # which opens the file again
        try:
            _add_metadata(writer, path.stem, model.config, dtype)
            add_tokenizer(writer, tokenizer, model.config)
            types = {
                name: getattr(gguf.GGMLQuantizationType, _type(name, shape, dtype)) for name, shape in shapes.items()
            }
            for name, shape in shapes.items():
                block, size = gguf.GGML_QUANT_SIZES[types[name]]
                there = shape[::-1] if _is_linear(name) else shape
                nbytes = math.prod(shape) // block * size
                writer.add_tensor_info(_their_name(name), there, np.dtype(np.float32), nbytes, types[name])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name in shapes:
                values = model.parameters[name].T if _is_linear(name) else model.parameters[name]
                writer.write_tensor_data(_encode(gguf, np.ascontiguousarray(values), types[name], name))
        finally:
            writer.close()


def read_gguf(path: str | Path) -> StoredModel:
    """The model in a file.  The tokenizer is read when it is asked for.

    Raises UserError when the file is damaged, or holds no GPT-2.
    """
    path = Path(path)
    gguf = import_for(path, "gguf")
    fields, tensors = _open(path, gguf)
    if fields.get("split.count", 1) != 1:
        raise UserError(
            f"{path}: is one of {fields['split.count']} parts; llama-gguf-split --merge makes one file of them"
        )
    if fields.get("general.architecture") != "gpt2":
        raise UserError(f"{path}: has architecture {show(fields.get('general.architecture'))}, expected 'gpt2'")
    stored = {}
    for tensor in tensors:
        name = _our_name(tensor.name)
        stored[name] = _stored(path, name, tensor, gguf)
    config = _read_config(path, fields, stored)
    parameters = dict(match_parameters(path, stored, config, described_in="its metadata"))
    return StoredModel(config, parameters, partial(read_tokenizer, path, fields))


def _type(name: str, shape: tuple[int, ...], dtype: str) -> str:
    """ggml's name of the type in which a parameter is written."""
    if len(shape) == 1 or name == "wpe.weight":
        return "F32"
    row = shape[0] if _is_linear(name) else shape[1]
    return "F16" if dtype == "q8_0" and row % _Q8_BLOCK else DTYPES[dtype]


def _encode(gguf: Any, values: NDArray[np.float32], kind: Any, name: str) -> NDArray[Any]:
    """The values in a type of ggml."""
    if kind.name == DTYPES["q8_0"]:
        return gguf.quants.quantize(values, kind)
    dtype = next(ours for ours, theirs in DTYPES.items() if theirs == kind.name)
    return np.concatenate(list(encode(values.reshape(-1), dtype, name)))


def _add_metadata(writer: Any, name: str, config: GPT2Config, dtype: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_quantization_version(2)
    writer.add_vocab_size(config.vocab_size)
    for field, key in _SIZES.items():
        writer.add_uint32(key, config.inner if field == "n_inner" else getattr(config, field))
    writer.add_float32(_EPSILON, config.layer_norm_epsilon)


def _read_config(path: Path, fields: dict[str, Any], stored: dict[str, StoredTensor]) -> GPT2Config:
    embedding = stored.get("wte.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"{path}: holds no matrix token_embd.weight")
    vocab_size = embedding.shape[0]
    head = stored.get("lm_head.weight")
    tied = head is None or same_numbers(head, embedding)
    values: dict[str, Any] = {"vocab_size": vocab_size, **token_ids(fields, vocab_size), "tie_word_embeddings": tied}
    for field, key in _SIZES.items():
        if key not in fields:
            raise UserError(f"{path}: holds no {key}")
        values[field] = fields[key]
    try:
        if values["n_inner"] == 4 * values["n_embd"]:
            values["n_inner"] = None
        epsilon = np.float32(fields.get(_EPSILON, GPT2Config.layer_norm_epsilon))
        values["layer_norm_epsilon"] = float(str(epsilon))  # 1e-05, not 9.99999974e-06
        return GPT2Config(**values)
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def _open(path: Path, gguf: Any) -> tuple[dict[str, Any], list[Any]]:
    """The metadata, and the tensors as the package gives them.  Raises UserError when the file is damaged."""

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        """Ends at the end of the file: the package's own reader goes on with what it takes for empty arrays."""

        data: NDArray[np.uint8]

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            self.data = self.data.view(np.ndarray)  # of which slices take a tenth of the time of a memmap's
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise EOFError(f"has {len(self.data)} bytes, expected at least {end}")
            return super()._get(offset, dtype, count, override_order)

    try:
        with reading(path):
            reader = Reader(path)
        return {name: field.contents() for name, field in reader.fields.items()}, reader.tensors
    except EOFError as error:
        raise UserError(f"{path}: is truncated, or damaged: {error}") from None
    except (ValueError, KeyError, IndexError, ArithmeticError) as error:
        raise UserError(f"{path}: is not a GGUF file, or a damaged one: {error}") from None


def _stored(path: Path, name: str, tensor: Any, gguf: Any) -> StoredTensor:
    kind, data = tensor.tensor_type.name, tensor.data
    if kind == "BF16":
        data = data.view("<u2")
    elif kind not in ("F64", "F32", "F16"):
        try:
            data, kind = gguf.quants.dequantize(data, tensor.tensor_type), "F32"
        except NotImplementedError:
            raise UserError(f"{path}: tensor {tensor.name[:80]} has type {kind}, which gguf does not convert") from None
    return StoredTensor(path, name, kind, data.T if _is_linear(name) else data)


def _is_linear(name: str) -> bool:
    return re.fullmatch(r"h\.\d+\.(attn|mlp)\.\w+\.weight", name) is not None


def _their_name(name: str) -> str:
    """blk.3.attn_qkv.weight of h.3.attn.c_attn.weight."""
    layer, stem, kind = _parts(r"(?:h\.(\d+)\.)?([\w.]+)\.(\w+)", name)
    return f"{layer and f'blk.{layer}.'}{_NAMES[stem]}.{kind}"


def _our_name(name: str) -> str:
    """h.3.attn.c_attn.weight of blk.3.attn_qkv.weight; a name that is not one of a GPT-2 stays as it is."""
    layer, stem, kind = _parts(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    return f"{layer and f'h.{layer}.'}{_OUR_NAMES[stem]}.{kind}" if stem in _OUR_NAMES else name


def _parts(pattern: str, name: str) -> tuple[str, ...]:
    match = re.fullmatch(pattern, name)
    return match.groups(default="") if match else ("", "", "")
