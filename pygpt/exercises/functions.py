"""The functions of a file, callable from Python: a module, or layers that are compiled from C or CUDA."""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pygpt.backends.library import ffi, header_path
from pygpt.backends.native_layers import NativeLayers
from pygpt.backends.sources import CHECKOUT
from pygpt.errors import UserError
from pygpt.exercises.exercise import Exercise, WrongResultError
from pygpt.exercises.guarded import GuardedLayers


def compiled(source: Path, folder: Path) -> Path | None:
    """What open_functions() takes: the file itself if it is Python, otherwise a library of it in the folder.

    None where the compiler refuses the file, which it says on standard error.  Raises UserError where there is no
    compiler, and for CUDA without a checkout.
    """
    if source.suffix == ".py":
        return source
    library = folder / "exercise.so"
    if source.suffix == ".c":
        flags = ["-std=c11", "-Wno-unknown-pragmas", "-I", str(header_path().parent)]
        good = _compile("CC", "cc", [*flags, "-shared", str(source), "-lm", "-o", str(library)])
    else:
        good = _compile_cuda(source, library)
    return library if good else None


def open_functions(path: Path, exercise: Exercise) -> Any:
    """path: from compiled(), of a file like the exercise's stub.

    Raises WrongResultError where a function is missing, and whatever a file of Python raises.
    """
    if exercise.stub.suffix == ".cu":
        # A layer that is not there is found missing when it is called: the others of the table are absent, too.
        return NativeLayers(ffi().dlopen(str(path), ffi().RTLD_LAZY), "plain")
    names = dict.fromkeys(call.function for call in exercise.calls())
    if exercise.stub.suffix == ".c":
        return _layers(path, names)
    sys.path.insert(0, str(path.parent.resolve()))  # an exercise may use those that are solved
    spec = importlib.util.spec_from_file_location("exercise", path.resolve())
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look for it there
    spec.loader.exec_module(module)
    for name in names:
        if not callable(getattr(module, name, None)):
            raise WrongResultError(f"there is no function {name}, which the stub has")
    return module


def _layers(path: Path, names: Iterable[str]) -> GuardedLayers:
    """A library of single functions of pygpt.h behind the interface of all layers."""
    library, table = ctypes.CDLL(str(path)), ffi().new("Kernels *")
    types = {name: field.type for name, field in ffi().typeof("Kernels").fields}
    for name in names:
        function = getattr(library, name, None)
        if function is None:
            raise WrongResultError(f"there is no function {name}, which the stub has")
        setattr(table, name, ffi().cast(types[name], ctypes.cast(function, ctypes.c_void_p).value))
    no_error = ffi().new("char[]", b"")
    return GuardedLayers(SimpleNamespace(pygpt_kernels=lambda *_: table, pygpt_last_error=lambda: no_error))


def _compile_cuda(source: Path, library: Path) -> bool:
    """The library of device cuda-emulated with this layer alone.  The others are looked for only when called."""
    if not (CHECKOUT / "cuda" / "emulation").is_dir():
        raise UserError(f"{source}: exercises in CUDA need cuda/ of a checkout, which is not in {CHECKOUT}")
    own = library.with_suffix(".o")
    if not _compile_object(source, own):
        return False
    linking = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-Wl,-z,lazy"]
    return _compile("CXX", "c++", ["-shared", *linking, str(own), *map(str, _emulation()), "-o", str(library)])


@cache
def _emulation() -> list[Path]:
    """The objects that every layer in CUDA is linked with: compiled once in a process, and deleted at its end."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    cuda = CHECKOUT / "cuda"
    sources = [cuda / "kernels.cu", cuda / "library.cu", cuda / "layers" / "queue.cu", *cuda.glob("emulation/*.cpp")]
    sources += [CHECKOUT / "csrc" / f"{name}.c" for name in ("arguments", "error", "threads")]
    objects = [folder / f"{source.name}.o" for source in sources]
    for source, made in zip(sources, objects, strict=True):
        if not _compile_object(source, made):
            raise UserError(f"{source} does not compile: the compiler's messages are above")
    return objects


def _compile_object(source: Path, made: Path) -> bool:
    files = ["-c", str(source), "-o", str(made)]
    if source.suffix == ".c":
        return _compile("CC", "cc", files)
    flags = ["-std=c++17", "-ffp-contract=off", "-Wno-unknown-pragmas", "-DPYGPT_EMULATION", "-x", "c++"]
    includes = [word for folder in ("emulation", "layers", ".") for word in ("-I", str(CHECKOUT / "cuda" / folder))]
    return _compile("CXX", "c++", [*flags, *includes, *files])


def _compile(variable: str, usual: str, arguments: list[str]) -> bool:
    """variable: of the environment, which may name the compiler."""
    compiler = os.environ.get(variable) or usual
    if not shutil.which(compiler):
        raise UserError(f"compiler {compiler!r} was not found: install it, or name another one in {variable}")
    return subprocess.run([compiler, "-g", "-Wall", "-fPIC", *arguments], check=False).returncode == 0
