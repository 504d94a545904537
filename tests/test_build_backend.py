"""What pip is told to bring for a build: cuBLAS exactly where libpygpt_cuda will be built and the toolkit has none; and
which GPUs CMake then builds it for."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import required

BACKEND = Path(__file__).parents[1] / "build_backend" / "pygpt_build.py"
ON = {"cmake.define.PYGPT_CUDA": "ON"}


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The build backend, beside a scikit-build-core that asks for ninja, and with no program on the PATH."""
    stub = ModuleType("scikit_build_core.build")
    stub.get_requires_for_build_wheel = stub.get_requires_for_build_editable = lambda _: ["ninja"]  # type: ignore[attr-defined]
    package = ModuleType("scikit_build_core")
    package.build = stub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scikit_build_core", package)
    monkeypatch.setitem(sys.modules, "scikit_build_core.build", stub)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDACXX", "CMAKE_ARGS", "SKBUILD_CMAKE_DEFINE"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("pygpt_build", BACKEND)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def nvcc(folder: Path, release: str = "13.0", cublas: bool = False, name: str = "nvcc") -> Path:
    search = "echo x.o: /usr/local/cuda/include/cublasLt.h" if cublas else "exit 1"
    return program(folder, name, f'test "$1" = --version || {search}\necho Cuda compilation tools, release {release}')


def gpu(folder: Path) -> None:
    program(folder, "nvidia-smi", "echo GPU 0: NVIDIA H200")


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
def test_cublas_for_a_toolkit_without(hook: str, backend: Any, tmp_path: Path) -> None:
    requires = getattr(backend, hook)
    assert requires() == requires(ON) == ["ninja"]  # no nvcc
    nvcc(tmp_path)
    assert requires() == ["ninja"]  # no GPU
    assert requires(ON) == ["ninja", "nvidia-cublas==13.*"]
    gpu(tmp_path)
    assert requires() == ["ninja", "nvidia-cublas==13.*"]
    for off in ("OFF", "off", "0"):
        assert requires({"cmake.define.PYGPT_CUDA": off}) == ["ninja"]
    assert requires({**ON, "cmake.define.PYGPT_CUBLAS_ROOT": "/opt/cublas"}) == ["ninja"]
    nvcc(tmp_path, "12.8")
    assert requires() == ["ninja", "nvidia-cublas-cu12"]
    nvcc(tmp_path, cublas=True)
    assert requires() == ["ninja"]


def test_variables_of_the_environment(backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = nvcc(tmp_path, name="another-nvcc")
    monkeypatch.setenv("CUDACXX", str(compiler))
    monkeypatch.setenv("CMAKE_ARGS", "-G Ninja -DPYGPT_CUDA:STRING=ON -DPYGPT_CUDA_ARCHITECTURES=90")
    assert backend.cublas(None) == ["nvidia-cublas==13.*"]
    assert backend.cublas({"cmake.define.PYGPT_CUDA": "OFF"}) == []
    monkeypatch.delenv("CMAKE_ARGS")
    assert backend.cublas({"cmake.args": ["-DPYGPT_CUDA=ON"]}) == ["nvidia-cublas==13.*"]
    assert backend.cublas(None) == []


@pytest.mark.parametrize(
    "capabilities, flags",
    [
        ("9.0", {"-gencode=arch=compute_90a,code=sm_90a"}),  # with Hopper's own instructions
        ("8.6\\n8.6", {"-gencode=arch=compute_86,code=sm_86"}),
        ("3.5", {"-arch=native"}),  # a GPU that no nvcc knows any more must not end the build of everything else
    ],
)
def test_code_for_the_gpu_that_is_here(
    capabilities: str, flags: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    required.nvcc()
    cmake = shutil.which("cmake") or pytest.skip("needs cmake")
    program(tmp_path, "nvidia-smi", f'test "$1" = --list-gpus && echo GPU 0: one || printf "{capabilities}\\n"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for file in ("include/cublasLt.h", "lib/libcublasLt.so"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    options = ["-DPYGPT_EMULATION=OFF", f"-DPYGPT_CUBLAS_ROOT={tmp_path}", "-G", "Unix Makefiles"]
    command = [cmake, "-S", str(BACKEND.parents[1]), "-B", str(tmp_path / "build"), *options]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    written = (tmp_path / "build/cuda/device/CMakeFiles/pygpt_cuda.dir/flags.make").read_text(encoding="utf-8")
    assert set(re.findall(r"-gencode=\S+|-arch=\S+", written)) == flags
    assert ("PYGPT_WGMMA" in written) == ("90a" in str(flags))
