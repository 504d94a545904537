"""scikit-build-core, with cuBLAS for the builds that need it.

pip builds in an environment of its own, where only what is asked for here can be found. CMake (cuda/device) takes
cuBLAS from the toolkit; where that is no more than nvcc and its headers, NVIDIA's Python package stands in.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import scikit_build_core.build as backend
from scikit_build_core.build import *  # noqa: F403  # what is not replaced below

Settings = Mapping[str, Any] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return [*backend.get_requires_for_build_wheel(config_settings), *cublas(config_settings)]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return [*backend.get_requires_for_build_editable(config_settings), *cublas(config_settings)]


def cublas(config_settings: Settings) -> list[str]:
    """NVIDIA's package with cuBLAS if libpygpt_cuda will be built and the toolkit has none; otherwise nothing."""
    asked = cmake_define("PYGPT_CUDA", config_settings).upper() or "AUTO"
    if asked in ("0", "OFF", "NO", "FALSE") or (asked == "AUTO" and "GPU 0" not in output_of("nvidia-smi", "-L")):
        return []
    nvcc = os.environ.get("CUDACXX") or "nvcc"
    release = re.search(r"release (\d+)", output_of(nvcc, "--version"))
    if not release or cmake_define("PYGPT_CUBLAS_ROOT", config_settings) or finds_cublas(nvcc):
        return []
    major = int(release[1])
    return [f"nvidia-cublas=={major}.*" if major >= 13 else f"nvidia-cublas-cu{major}"]


def cmake_define(name: str, config_settings: Settings) -> str:
    """A variable that CMake is given: by `-C cmake.define.NAME=VALUE`, or in the environment; empty if by neither."""
    words = [os.environ.get("CMAKE_ARGS", ""), os.environ.get("SKBUILD_CMAKE_DEFINE", "")]
    words += [f"{key}={value}" for key, value in (config_settings or {}).items()]
    found = re.findall(rf"(?:-D|\b){name}(?::\w+)?=([^\s;'\"\]]*)", "\n".join(words))
    return found[-1] if found else ""


def finds_cublas(nvcc: str) -> bool:
    """Whether the toolkit has cuBLAS's header, and so its library."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "cublas.cu")
        source.write_text("#include <cublasLt.h>\n")
        return "cublasLt.h" in output_of(nvcc, "-M", str(source))


def output_of(program: str, *arguments: str) -> str:
    """What a program prints; empty if it is absent or fails."""
    path = shutil.which(program)
    if path is None:
        return ""
    done = subprocess.run([path, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout if done.returncode == 0 else ""
