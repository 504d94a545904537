"""The devices by name: how each is opened, and what it can.  A new backend is a file of its own and an entry here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pygpt.backends.interface import Device
from pygpt.backends.library import (
    compute_capability,
    cpu_library,
    cpu_library_path,
    cuda_library,
    cuda_library_path,
    device_memory,
    library_name,
)
from pygpt.backends.native_generator import native_generator_memory
from pygpt.backends.native_layers import NativeLayers
from pygpt.backends.native_model import NativeGPT2, native_memory
from pygpt.backends.native_parts import use_device
from pygpt.backends.nccl import installed, open_nccl
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.backends.numpy_model import ReferenceGPT2
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.reference.arrays import exact
from pygpt.reference.bfloat16 import round_bfloat16

# numpy's dtypes by our names; bfloat16 is float32 with rounded operands, as on the CPU
_NUMPY_DTYPES: dict[str, DTypeLike] = {
    "float32": np.float32,
    "bfloat16": np.float32,
    "float64": np.float64,
    "complex128": np.complex128,
}


def resolve_device(name: str) -> str:
    """The device that a name stands for: "auto" is cuda where it can be used, otherwise cpu.

    Raises UserError for an unknown device, and for one that is absent or whose library is.
    """
    if name == "auto":
        for preferred in (other for other, device in DEVICES.items() if device.preferred):
            with suppress(UserError):
                return resolve_device(preferred)
        return "cpu"
    if name not in DEVICES:
        raise UserError(f"device is {name!r}, expected auto, {', '.join(DEVICES)}")
    DEVICES[name].check()
    return name


def resolve_dtype(dtype: str, device: str) -> str:
    """The dtype that a name stands for on a device: "auto" is bfloat16 where it multiplies that, otherwise float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if DEVICES[device].multiplies_bfloat16() else "float32"


def native(library: Callable[[], Any], path: Callable[[], Path]) -> Device:
    """The device of a library with the functions of pygpt.h: how it is opened, and where it is."""
    return Device(
        layers=lambda dtype, kernels: NativeLayers(library(), kernels, dtype),
        model=lambda config, *settings: NativeGPT2(config, library(), *settings),
        memory_needed=lambda config, *settings: native_memory(config, library(), *settings),
        generator_memory=lambda config, *settings: native_generator_memory(config, library(), *settings),
        check=library,
        library_path=path,
    )


def _cuda(name: str, how: str, nccl: Callable[[Path], list[str]]) -> Device:
    """how: the end of a sentence, how one comes by the library.  nccl: where NCCL may be, from the library's path."""
    library = partial(cuda_library, name, how)
    path = partial(cuda_library_path, name, how)
    return replace(
        native(library, path),
        memory=lambda: device_memory(library()),
        stores_bfloat16=True,
        ranks=True,
        choose=lambda number: use_device(library(), number),
        nccl=lambda: open_nccl(library(), nccl(path())),
    )


def _cpu_model(config: GPT2Config, dtype: str, kernels: str, recompute: str) -> NativeGPT2:
    if dtype == "bfloat16":
        _warn_if_converted()
    return NativeGPT2(config, cpu_library(), dtype, kernels, recompute)


def _cpu_multiplies_bfloat16() -> bool:
    return library_name(cpu_library()).endswith("bf16")


@cache
def _warn_if_converted() -> None:
    """Says, once, that bfloat16 saves no time where the processor, or PYGPT_ISA, has no products of bfloat16."""
    if not _cpu_multiplies_bfloat16():
        level = library_name(cpu_library())
        sentence = f"{level} has no bfloat16 products: operands are rounded to bfloat16 and multiplied in float32"
        warnings.warn(sentence, stacklevel=4)


def _numpy_layers(dtype: str, kernels: str) -> ReferenceLayers:
    _numpy_dtype(dtype)
    return ReferenceLayers(round_bfloat16 if dtype == "bfloat16" else exact)


def _numpy_model(config: GPT2Config, dtype: str, kernels: str, recompute: str) -> ReferenceGPT2:
    return ReferenceGPT2(config, _numpy_dtype(dtype), round_bfloat16 if dtype == "bfloat16" else exact)


def _numpy_memory(config: GPT2Config, batch_size: int, seq_len: int, training: bool, dtype: str, *others: str) -> int:
    """C's figure, as numpy has no such function, with the logits, their gradient and each layer's attention whole."""
    in_c = native_memory(config, cpu_library(), batch_size, seq_len, training, "float32", "plain", "none", others[-1])
    whole = batch_size * seq_len * (2 * config.vocab_size + 3 * config.n_layer * config.n_head * seq_len) * 4
    return (in_c + whole) * np.dtype(_numpy_dtype(dtype)).itemsize // 4


def _numpy_generator_memory(config: GPT2Config, weights: str, cache: str, *sizes: int) -> int:
    """C's figure without the formats, which numpy only rounds to, in float64, which it may compute in."""
    return 2 * native_generator_memory(config, cpu_library(), "float32", "float32", *sizes)


def _numpy_dtype(dtype: str) -> DTypeLike:
    if dtype not in _NUMPY_DTYPES:
        raise UserError(f"dtype is {dtype!r}, expected {', '.join(_NUMPY_DTYPES)}")
    return _NUMPY_DTYPES[dtype]


DEVICES: dict[str, Device] = {
    "cpu": replace(
        native(cpu_library, cpu_library_path),
        model=_cpu_model,
        has_threads=True,
        multiplies_bfloat16=_cpu_multiplies_bfloat16,
        ranks=True,
    ),
    "cuda": replace(
        _cuda(
            "cuda",
            "with nvcc installed, `pip install '.[cuda]' -C cmake.define.PYGPT_CUDA=ON` builds it",
            lambda _: installed(),
        ),
        in_host_memory=False,
        multiplies_bfloat16=lambda: compute_capability(DEVICES["cuda"].check()) >= 8,
        preferred=True,
    ),
    "cuda-emulated": _cuda(
        "cuda-emulated",
        "with a C++ compiler installed, `pip install .` builds it",
        lambda library: [str(library.with_name("libpygpt_nccl_emulated.so"))],
    ),
    "numpy": Device(
        layers=_numpy_layers,
        model=_numpy_model,
        memory_needed=_numpy_memory,
        generator_memory=_numpy_generator_memory,
        kernels=("plain",),
        recomputes=False,
    ),
}
