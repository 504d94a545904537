"""Named tensors in a safetensors file, read through a memory map and written one after the other.

A safetensors file is 8 bytes with the length of its header, a JSON header with the name, dtype, shape and place of each
tensor, and the tensors' bytes without gaps (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pygpt.errors import UserError, reading
from pygpt.files import lfs
from pygpt.reference.bfloat16 import round_bfloat16

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # what is written, by its names here and there
READABLE = (*DTYPES.values(), "F64")  # what float32() converts

# numpy has no bfloat16: its bits travel as uint16. The mask buffers of old files are bytes.
_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "U8": "u1", "BOOL": "u1"}
_LARGEST_HEADER = 2**24
_CHUNK = 2**20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a memory-mapped file."""

    path: Path
    name: str
    dtype: str
    data: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def float32(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """The values, or some rows of them: a read-only view of the file where it holds float32, a copy otherwise.

        Raises UserError for a finite float64 that would become infinite.
        """
        data = self.data[rows] if self.data.ndim else self.data
        if self.dtype == "BF16":
            bits = data.astype(np.uint32, order="C")
            bits <<= 16
            return bits.view(np.float32)
        # The format does not promise that tensors are aligned, and C code expects it.
        with np.errstate(over="ignore"):
            values = np.require(data, np.float32, ["C", "A"])
        if self.dtype == "F64" and (np.isinf(values) & np.isfinite(data)).any():
            raise UserError(f"{self.path}: tensor {self.name[:80]!r} holds numbers beyond the range of float32")
        return values


def read_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name; their bytes are read when they are used.

    Raises UserError when the file cannot be read or is not what the format asks for.
    """
    path = Path(path)
    try:
        with reading(path):
            size = path.stat().st_size
            with path.open("rb") as file:
                start = file.read(64)
            lfs.refuse_pointer(path, start)
            header = int.from_bytes(start[:8], "little")
            if size < 8 or header > size - 8:
                raise UserError(
                    f"{path}: is truncated: {size} bytes, expected a header of {header} bytes after the first 8"
                )
            if header > _LARGEST_HEADER:
                raise UserError(f"{path}: has a header of {header} bytes, expected at most {_LARGEST_HEADER}")
            # The library checks that the tensors follow one another without gaps up to the end of the file.
            with safe_open(path, framework="np") as tensors:
                entries = [(name, tensors.get_slice(name)) for name in tensors.offset_keys()]
                found = [(name, entry.get_dtype(), tuple(entry.get_shape())) for name, entry in entries]
            bytes_of_file = np.memmap(path, np.uint8, "r")
    except SafetensorError as error:
        raise UserError(f"{path}: is not a safetensors file, or a damaged one: {error}") from None

    result = {}
    offset = 8 + header
    for name, dtype, shape in found:
        if dtype not in _NUMPY:
            raise UserError(f"{path}: tensor {name[:80]!r} has dtype {dtype}, expected {', '.join(READABLE)}")
        numpy_dtype = np.dtype(_NUMPY[dtype])
        try:
            data: NDArray[Any] = np.ndarray(shape, numpy_dtype, bytes_of_file.data, offset)
        except (ValueError, OverflowError):  # too many axes, or an empty tensor with an enormous one
            raise UserError(f"{path}: tensor {name[:80]!r} has an impossible shape {str(shape)[:80]}") from None
        result[name] = StoredTensor(path, name, dtype, data)
        offset += math.prod(shape) * numpy_dtype.itemsize
    return result


def write_tensors(
    path: str | Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, NDArray[Any]],
    dtype: str = "float32",
    names: Mapping[str, str] | None = None,
) -> None:
    """Write tensors[name], of shape shapes[name], for every name of `shapes` and in its order.

    dtype: "float32", "float16" or "bfloat16", rounded to nearest, ties to even. names: those in the file that differ.
    Raises UserError for another dtype and for finite values beyond float16, OSError as open() and write() do.

    The safetensors library would need all tensors in memory in the dtype that is written, and does not write bfloat16
    from numpy; this takes one tensor at a time.
    """
    itemsize = bytes_per_value(dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    offset = 0
    for name, shape in shapes.items():
        end = offset + itemsize * math.prod(shape)
        header[names.get(name, name) if names else name] = {
            "dtype": DTYPES[dtype],
            "shape": shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, shape in shapes.items():
            tensor = np.ascontiguousarray(tensors[name])
            if tensor.shape != tuple(shape):
                raise ValueError(f"tensor {name} has shape {tensor.shape}, expected {tuple(shape)}")
            file.writelines(chunk.data for chunk in encode(tensor.reshape(-1), dtype, name))


def bytes_per_value(dtype: str) -> int:
    """The size of one value in a file of this dtype.  Raises UserError for a dtype that is not written."""
    if dtype not in DTYPES:
        raise UserError(f"dtype of the saved model is {dtype!r}, expected {' or '.join(map(repr, DTYPES))}")
    return np.dtype(_NUMPY[DTYPES[dtype]]).itemsize


def encode(values: NDArray[Any], dtype: str, name: str) -> Iterator[NDArray[Any]]:
    """The values, (n), of the tensor `name` in pieces of the file's dtype: "float32", "float16" or "bfloat16".

    Raises UserError for finite values beyond float16.
    """
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK].astype("<f4", copy=False)
        if dtype == "bfloat16":
            yield _bfloat16_bits(chunk)
        elif dtype == "float16":
            with np.errstate(over="ignore"):
                half = chunk.astype("<f2")
            if np.any(np.isinf(half) & np.isfinite(chunk)):
                raise UserError(f"tensor {name} has values beyond float16's 65504: save it as float32 or bfloat16")
            yield half
        else:
            yield chunk


def _bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits: NDArray[np.uint16] = (round_bfloat16(values).view(np.uint32) >> np.uint32(16)).astype("<u2")
    bits[np.isnan(values)] = 0x7FC0  # the upper half of a NaN may be infinity
    return bits
