"""What pip is told to bring for a build: cuBLAS exactly where libpygpt_cuda will be built and the toolkit has none."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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
