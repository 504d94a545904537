"""Find a native library, open it with the declarations of pygpt.h, and turn its error codes into exceptions."""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from cffi import FFI

from pygpt.backends.control_group import cpu_quota
from pygpt.backends.sources import CHECKOUT, OutdatedLibrary, is_current
from pygpt.errors import DeviceError, UserError

# From the most to the least demanding; a processor that has one has those after it.
INSTRUCTION_SETS = ("x86-64-v4-bf16", "x86-64-v4", "x86-64-v3", "baseline")

OK, MEMORY, DEVICE = 0, 2, 3  # as in pygpt.h

HEADER = "pygpt.h"

# How often a thread that waits at a barrier looks before it sleeps. On two cores a step of the character model took, in
# milliseconds, alone and beside a program that wants one core: with 1,000 28 and 67, with 10,000 27 and 112, with
# 30,000 27 and 390, with 300,000 29 and over 1,200. GNU OpenMP's own number is larger still.
SPIN_COUNT = 1000
_PACKAGE = Path(__file__).parents[1]


@cache
def ffi() -> FFI:
    """cffi with the declarations of the pygpt.h that the libraries were built with."""
    text = re.sub(r"^\s*#.*$", "", header_path().read_text(encoding="utf-8"), flags=re.MULTILINE)
    made = FFI()
    made.cdef(text)
    return _declared.setdefault("", made)


# Of one FFI only: what is made with another, by threads that both came first, is of other types.
_declared: dict[str, FFI] = {}


def header_path() -> Path:
    """The pygpt.h that the libraries were built with.  Raises UserError if there is no library."""
    return _folder() / HEADER


@cache
def cpu_library() -> Any:
    """The library for this processor's instruction set, or for the one that PYGPT_ISA names.

    Raises UserError if there is no library, if PYGPT_ISA names none, or if this processor cannot run it.  Warns of an
    OutdatedLibrary.
    """
    return _open_current(cpu_library_path())


def cpu_library_path() -> Path:
    """The file of what cpu_library opens.  Raises UserError as that does."""
    baseline = _path("pygpt_cpu_baseline")
    best = ffi().string(_open(baseline).pygpt_processor()).decode()
    if best not in INSTRUCTION_SETS:
        return baseline  # a processor for which one library is built
    runnable = INSTRUCTION_SETS[INSTRUCTION_SETS.index(best) :]
    asked = os.environ.get("PYGPT_ISA")
    if asked and asked not in INSTRUCTION_SETS:
        raise UserError(f"PYGPT_ISA is {asked!r}, expected one of {', '.join(INSTRUCTION_SETS)}")
    if asked and asked not in runnable:
        raise UserError(f"PYGPT_ISA is {asked!r}, but this processor runs only {', '.join(runnable)}")
    # A compiler that does not know a level leaves its library out.
    built = [level for level in runnable if _path(f"pygpt_cpu_{level}").is_file()]
    if asked and asked not in built:
        raise UserError(f"PYGPT_ISA is {asked!r}, but only {', '.join(built)} were built")
    return _path(f"pygpt_cpu_{asked or built[0]}")


def cuda_library_path(device: str, how: str) -> Path:
    """The file of what cuda_library opens.  Raises UserError, saying how one comes by it, where there is none."""
    path = _path(f"pygpt_{device.replace('-', '_')}")
    if not path.is_file():
        raise UserError(f"device {device!r} needs {path.name}, which is not in {path.parent}: {how}")
    return path


def cuda_library(device: str, how: str) -> Any:
    """The library for "cuda" or "cuda-emulated".  Raises UserError where there is none, or it finds no usable device.

    Warns of an OutdatedLibrary.
    """
    library = _open_current(cuda_library_path(device, how))
    if not ffi().string(library.pygpt_processor()):
        raise UserError(f"device {device!r} cannot be used: {last_error(library)}")
    return library


def device_memory(library: Any) -> tuple[int, int]:
    """Bytes of a CUDA device's memory: those that are free, and all."""
    free, total = ffi().new("int64_t *"), ffi().new("int64_t *")
    check(library, library.pygpt_device_memory(free, total))
    return int(free[0]), int(total[0])


def compute_capability(library: Any) -> float:
    """Of a CUDA device that can be used, such as 8.0."""
    found = re.search(r"compute capability ([\d.]+)$", ffi().string(library.pygpt_processor()).decode())
    return float(found[1]) if found else 0.0


def library_name(library: Any) -> str:
    """The instruction set or device that a library was built for."""
    name: bytes = ffi().string(library.pygpt_library())
    return name.decode()


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads(processes: int = 1) -> int:
    """OMP_NUM_THREADS where it is a number, otherwise as many threads as cores, and as control groups allow to run.

    processes: how many share these, each of which gets a part.
    """
    named = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if named.isdecimal() and int(named) > 0:
        return int(named)
    return max(1, math.ceil(min(available_cores(), cpu_quota())) // processes)


def use_threads(threads: int) -> None:
    """Of every library that is open, or will be."""
    global _threads
    _threads = threads
    for library in _open_libraries:
        library.pygpt_set_threads(threads)


def check(library: Any, status: int) -> None:
    """Raise what an error code of the library stands for: MemoryError, DeviceError, or another UserError."""
    if status == OK:
        return
    sentence = last_error(library)
    if status == MEMORY:
        raise MemoryError(sentence)
    raise (DeviceError if status == DEVICE else UserError)(sentence)


def last_error(library: Any) -> str:
    """The library's sentence about its latest failure; empty if there was none since the last call."""
    text: bytes = ffi().string(library.pygpt_last_error())
    return text.decode()


@cache
def _open_current(path: Path) -> Any:
    if not is_current(path):
        how = f"cmake --build {path.parent}" if (path.parent / "CMakeCache.txt").is_file() else "pip install ."
        sentence = f"{path} was not built from the C and CUDA sources in {CHECKOUT}: `{how}` builds it again"
        warnings.warn(sentence, OutdatedLibrary, stacklevel=3)
    return _open(path)


_open_libraries: list[Any] = []
_threads: int | None = None


@cache
def _open(path: Path) -> Any:
    library = _load(path)
    _open_libraries.append(library)
    if _threads is not None:
        library.pygpt_set_threads(_threads)
    return library


def _load(path: Path) -> Any:
    try:
        try:
            return _dlopen(path)
        except OSError as error:
            _load_cublas(path, str(error))
            return _dlopen(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened: {error}") from None


def _dlopen(path: Path) -> Any:
    with _spin_count():
        # Its code stays in memory when Python closes it at exit: finalizers of its pointers run after that.
        return ffi().dlopen(str(path), ffi().RTLD_NOW | ffi().RTLD_NODELETE)


@contextmanager
def _spin_count() -> Iterator[None]:
    """SPIN_COUNT in the environment unless the user has chosen: GNU OpenMP reads it once, as it is loaded.

    What is loaded or started later, such as PyTorch with an OpenMP of its own, must not find it there.
    """
    if "GOMP_SPINCOUNT" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def _load_cublas(path: Path, complaint: str) -> None:
    """Where a library at `path` complains that it lacks cuBLAS: load NVIDIA's Python package, wherever that is.

    The library itself looks only beside the place where pip installed it.  Raises UserError if there is no package.
    """
    missing = re.search(r"(libcublas\w*\.so\.(\d+)): cannot open", complaint)
    if not missing:
        return
    name, major = missing[1], int(missing[2])
    for folder in sys.path:
        for found in sorted(Path(folder, "nvidia").glob(f"*/lib/{name}")):
            ctypes.CDLL(str(found))  # stays open, and a library that needs one of this name takes it
            return
    package = "nvidia-cublas" if major >= 13 else f"nvidia-cublas-cu{major}"
    raise UserError(f"{path.name} needs {name}, cuBLAS of CUDA {major}, which was not found: `pip install {package}`")


def _path(name: str) -> Path:
    return _folder() / _file_name(name)


def _file_name(name: str) -> str:
    return f"lib{name}.dylib" if sysconfig.get_platform().startswith("macosx") else f"lib{name}.so"


@cache
def _folder() -> Path:
    """Where the libraries are: in the folder that PYGPT_LIB_DIR names, or else among those installed and built.

    There the newest is taken, and before it one of this checkout's sources.  A checkout's pygpt/ shadows the installed
    one where Python finds it first, so both are looked at.
    """
    named = os.environ.get("PYGPT_LIB_DIR")
    if named:
        folders = [Path(named)]
    else:
        installed = [Path(sysconfig.get_path(key)) / "pygpt" / "lib" for key in ("platlib", "purelib")]
        build = CHECKOUT / "build"
        folders = [_PACKAGE / "lib", *installed, build, *sorted(build.glob("*/"))]
    name = _file_name("pygpt_cpu_baseline")
    found = [folder for folder in folders if (folder / name).is_file() and (folder / HEADER).is_file()]
    if not found:
        places = ", ".join(map(str, folders))
        raise UserError(f"{name} and {HEADER}: not found in {places}; `pip install .` builds them")
    return max(found, key=lambda folder: (is_current(folder / name), (folder / name).stat().st_mtime))
