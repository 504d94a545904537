"""numpy arrays as the native libraries take them: checked, contiguous, and their pointers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pygpt.backends.interface import DTYPES, KERNELS
from pygpt.backends.library import ffi, last_error
from pygpt.config import VARIATIONS, GPT2Config
from pygpt.errors import UserError
from pygpt.reference.dropout import Dropout

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


def as_floats(array: ArrayLike) -> Floats:
    """Contiguous float32, the array itself where it is that already."""
    return np.ascontiguousarray(array, dtype=np.float32)


def as_integers(array: ArrayLike) -> Integers:
    """Contiguous int32, the array itself where it is that already."""
    return np.ascontiguousarray(array, dtype=np.int32)


def floats(array: Floats | None) -> Any:
    """A pointer to the data, NULL for None; the caller keeps the array alive and has made it contiguous."""
    return ffi().NULL if array is None else ffi().cast("float *", array.ctypes.data)


def integers(array: Integers | None) -> Any:
    """A pointer to the data, as floats() gives it."""
    return ffi().NULL if array is None else ffi().cast("int32_t *", array.ctypes.data)


def gradient(given: Floats | None, shape: tuple[int, ...], name: str) -> Floats:
    """The buffer to add to: the given one, or zeros.  Raises UserError for another shape, dtype or layout."""
    if given is None:
        return np.zeros(shape, np.float32)
    if given.shape != shape or given.dtype != np.float32 or not given.flags.c_contiguous:
        raise UserError(f"{name} has shape {given.shape} and dtype {given.dtype}, expected contiguous float32 {shape}")
    return given


def expect_shape(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raises UserError for another shape."""
    if array.shape != shape:
        raise UserError(f"{name} has shape {array.shape}, expected {shape}")


def c_config(config: GPT2Config) -> Any:
    """The struct of pygpt.h."""
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    numbers = ("layer_norm_epsilon", "initializer_range", "embd_pdrop", "attn_pdrop", "resid_pdrop")
    values = {name: getattr(config, name) for name in sizes + numbers}
    variations = {name: number(name, getattr(config, name), known) for name, known in VARIATIONS.items()}
    return ffi().new("GPT2Config *", {**values, **variations, "n_inner": config.inner})


def c_dropout(dropout: Dropout | None) -> Any:
    """The struct of pygpt.h, NULL for None."""
    if dropout is None:
        return ffi().NULL
    values = {"p": dropout.p, "site": dropout.site, "step": dropout.step, "seed": dropout.seed}
    return ffi().new("Dropout *", values)


def number(name: str, value: Any, known: tuple[Any, ...]) -> int:
    """What pygpt.h calls one of the known values.  Raises UserError for another."""
    if value not in known:
        raise UserError(f"{name} is {value!r}, expected {' or '.join(map(repr, known))}")
    return known.index(value)


def kernel_table(library: Any, kernels: str, dtype: str) -> Any:
    """The library's function table.  Raises UserError for names that are unknown, and sets that it does not have."""
    table = library.pygpt_kernels(number("kernels", kernels, KERNELS), number("dtype", dtype, DTYPES))
    if table == ffi().NULL:
        raise UserError(last_error(library) or f"the library has no kernels {kernels!r} with dtype {dtype!r}")
    return table
