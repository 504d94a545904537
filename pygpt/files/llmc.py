"""A model in one file, as llm.c writes it; pygpt-step reads it too (csrc/step/model_file.c).

    header    256 integers of 32 bits: 20240326, version 3 (float32) or 5 (bfloat16), n_positions, vocab_size, n_layer,
              n_head, n_embd, padded vocab_size; then fields of pygpt's own, which llm.c leaves zero, meaning GPT-2:
              n_inner; layer_norm_epsilon, embd_pdrop, attn_pdrop, resid_pdrop as float32; 1 + bos_token_id and
              1 + eos_token_id; the numbers of the variations (csrc/pygpt.h); the others are zero
    tensors   wte with rows of padding, wpe if positions are learned; ln_1.weight of every block, ln_1.bias of every
              block, ...; ln_f; the head, as wte, if it is not the same

The tensors of a block are in the order of parameter_shapes(). A linear layer's weight is (out, in), the transpose of
ours. All numbers are little-endian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pygpt.config import VARIATIONS, GPT2Config
from pygpt.errors import UserError, reading
from pygpt.files import lfs
from pygpt.files.atomic import write_file
from pygpt.files.tensor_file import DTYPES, StoredTensor, bytes_per_value, encode
from pygpt.parameters import parameter_shapes

VERSIONS = {"float32": 3, "bfloat16": 5}

_MAGIC = 20240326
_FIELDS = 256
_HEADER_BYTES = 4 * _FIELDS
_SIZES = ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")  # fields 2 to 6
_PADDED, _INNER = 7, 8
_FLOATS = ("layer_norm_epsilon", "embd_pdrop", "attn_pdrop", "resid_pdrop")  # fields 9 to 12
_TOKENS = ("bos_token_id", "eos_token_id")  # fields 13 and 14
_VARIATIONS = 15  # of each in VARIATIONS a field, with its number
_KNOWN = _VARIATIONS + len(VARIATIONS)  # the fields after these are zero
_PADDING = 128  # vocab_size is padded to a multiple of it


def is_model_file(path: str | Path) -> bool:
    """Whether a file begins like a model of llm.c.  Raises OSError when it cannot be read."""
    with Path(path).open("rb") as file:
        return file.read(4) == _MAGIC.to_bytes(4, "little")


def read_model(path: str | Path) -> tuple[GPT2Config, dict[str, NDArray[np.float32]]]:
    """The configuration, and the parameters by their names in the order of the table.

    The arrays are read-only views of the file where it holds what they are, and copies otherwise.
    Raises UserError, before memory is taken, when the file is not such a model or not as long as its header says.
    """
    path = Path(path)
    with reading(path):
        contents: NDArray[np.uint8] = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    header = contents[:_HEADER_BYTES]
    lfs.refuse_pointer(path, header.tobytes())
    if len(header) < _HEADER_BYTES:
        raise UserError(f"{path}: has {len(header)} bytes, fewer than the header of a model of llm.c ({_HEADER_BYTES})")
    try:
        config, padded, dtype = _from_header(header.view("<i4"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    itemsize = bytes_per_value(dtype)
    padding = (padded - config.vocab_size) * config.n_embd * len({"wte.weight", config.head})
    size = _HEADER_BYTES + itemsize * (config.num_parameters + padding)
    if len(contents) != size:
        raise UserError(f"{path}: has {len(contents)} bytes, but a model of the sizes in its header takes {size}")

    numbers = "<f4" if dtype == "float32" else "<u2"  # the bits of bfloat16, which numpy has not
    shapes, offset, stored = parameter_shapes(config), _HEADER_BYTES, {}
    for name, shape in _layout(config, padded).items():
        data: NDArray[Any] = np.ndarray(shape, numbers, contents.data, offset)
        offset += data.nbytes
        data = data.T if name.startswith("h.") else data[: shapes[name][0]]
        stored[name] = StoredTensor(path, name, DTYPES[dtype], data)
    return config, {name: stored[name].float32() for name in shapes}


def write_model(
    path: str | Path, config: GPT2Config, parameters: Mapping[str, NDArray[Any]], dtype: str = "float32"
) -> None:
    """Write a model, whole or not at all.

    parameters: name -> array, asked for one at a time. dtype: "float32" or "bfloat16", rounded to nearest, ties to
    even.  Raises UserError when the file cannot be written, and leaves what was there.
    """
    padded = -(-config.vocab_size // _PADDING) * _PADDING
    with write_file(path) as file:
        file.write(_header(config, padded, dtype).tobytes())
        for name, shape in _layout(config, padded).items():
            values = parameters[name].T if name.startswith("h.") else parameters[name]
            file.writelines(chunk.data for chunk in encode(np.ascontiguousarray(values).reshape(-1), dtype, name))
            file.write(bytes(bytes_per_value(dtype) * (math.prod(shape) - values.size)))


def _layout(config: GPT2Config, padded: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape in the file, in its order."""
    shapes = parameter_shapes(config)
    blocks = [name for name in shapes if name.startswith("h.")]
    first, kinds = list(shapes).index(blocks[0]), len(blocks) // config.n_layer
    others = [name for name in shapes if name not in blocks]
    order = others[:first] + [name for kind in range(kinds) for name in blocks[kind::kinds]] + others[first:]
    layout = {name: shapes[name][::-1] if name.startswith("h.") else shapes[name] for name in order}
    return layout | dict.fromkeys(("wte.weight", config.head), (padded, config.n_embd))


def _header(config: GPT2Config, padded: int, dtype: str) -> NDArray[np.int32]:
    header = np.zeros(_FIELDS, "<i4")
    header[0], header[1], header[_PADDED] = _MAGIC, VERSIONS[dtype], padded
    for field, name in enumerate(_SIZES, 2):
        header[field] = getattr(config, name)
    if config.inner != 4 * config.n_embd:
        header[_INNER] = config.inner
    for field, name in enumerate(_FLOATS, _INNER + 1):
        if getattr(config, name) != getattr(GPT2Config, name):
            header[field] = np.float32(getattr(config, name)).view(np.int32)
    for field, name in enumerate(_TOKENS, _INNER + 1 + len(_FLOATS)):
        token = getattr(config, name)
        header[field] = 0 if token is None else 1 + token
    for field, (name, known) in enumerate(VARIATIONS.items(), _VARIATIONS):
        header[field] = known.index(getattr(config, name))
    return header


def _from_header(header: NDArray[np.int32]) -> tuple[GPT2Config, int, str]:
    """The configuration, the rows of wte, and the dtype.  Raises UserError."""
    fields: list[int] = header.tolist()
    if fields[0] != _MAGIC:
        raise UserError(f"is not a model of llm.c: starts with {fields[0]}, expected {_MAGIC}")
    dtypes = {version: dtype for dtype, version in VERSIONS.items()}
    if fields[1] not in dtypes:
        raise UserError(f"has version {fields[1]} of llm.c's format, expected 3 (float32) or 5 (bfloat16)")
    for field in range(_KNOWN, _FIELDS):
        if fields[field]:
            raise UserError(f"has {fields[field]} in field {field} of its header, expected 0")
    values: dict[str, Any] = dict(zip(_SIZES, fields[2:], strict=False))
    if fields[_INNER]:
        values["n_inner"] = fields[_INNER]
    for field, name in enumerate(_FLOATS, _INNER + 1):
        if fields[field]:
            values[name] = float(str(header[field].view("<f4")))  # 0.1, not 0.10000000149011612
    for field, name in enumerate(_TOKENS, _INNER + 1 + len(_FLOATS)):
        if fields[field]:
            values[name] = fields[field] - 1
    for field, (name, known) in enumerate(VARIATIONS.items(), _VARIATIONS):
        if not 0 <= fields[field] < len(known):
            raise UserError(f"has {fields[field]} for {name} in its header, expected 0 to {len(known) - 1}")
        values[name] = known[fields[field]]
    if fields[_PADDED] < values["vocab_size"]:
        raise UserError(
            f"has a padded vocabulary of {fields[_PADDED]} tokens, expected at least vocab_size, which is "
            f"{values['vocab_size']}"
        )
    return GPT2Config(**values), fields[_PADDED], dtypes[fields[1]]
