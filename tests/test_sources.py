"""A library that an edit has outdated is refused where it would be judged, and named wherever else it is opened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pygpt.backends import sources
from pygpt.backends.library import library_path
from pygpt.errors import UserError

ROOT = Path(__file__).parents[1]


def run_python(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("device", ["cpu", "cuda-emulated"])
def test_an_outdated_library_is_not_judged(device: str, tmp_path: Path) -> None:
    try:
        current = library_path(device)
    except UserError as error:
        pytest.skip(str(error))
    digest = sources.digest()
    assert digest
    for path in [current.parent / "pygpt.h", *current.parent.glob("libpygpt_*")]:
        shutil.copy(path, tmp_path)
    library = tmp_path / current.name
    library.write_bytes(library.read_bytes().replace(digest.encode(), digest[::-1].encode()))

    sentence = f"{library} was not built from the C and CUDA sources in {ROOT}: `pip install .` builds it again"
    compare = ROOT / "scripts" / "compare.py"
    found = run_python(compare, "--device", device, PYGPT_LIB_DIR=str(tmp_path))
    assert (found.returncode, found.stdout, found.stderr) == (2, "", f"error: {sentence}\n")
    (tmp_path / "CMakeCache.txt").touch()  # a build folder
    found = run_python(compare, "--device", device, PYGPT_LIB_DIR=str(tmp_path))
    assert f"`cmake --build {tmp_path}` builds it again" in found.stderr

    elsewhere = f"import pygpt; pygpt.layers({device!r}); print('opened')"
    found = run_python("-c", elsewhere, PYGPT_LIB_DIR=str(tmp_path))
    assert (found.returncode, found.stdout) == (0, "opened\n")
    assert "OutdatedLibrary" in found.stderr and str(library) in found.stderr


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the sources, of which digest() is asked."""
    for folder in ("csrc", "cuda"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    monkeypatch.setattr(sources, "CHECKOUT", tmp_path)
    sources.digest.cache_clear()
    yield tmp_path
    sources.digest.cache_clear()


@pytest.mark.parametrize(
    "name",
    [
        "CMakeLists.txt",
        "csrc/pygpt.h",
        "csrc/layers/gelu.c",
        "csrc/fast/gelu.c",
        "cuda/gpt2.cu",
        "cuda/layers/gelu.cuh",
        "cuda/emulation/runtime.cpp",
        "cuda/emulation/launch.h",
        "cuda/emulated/CMakeLists.txt",
    ],
)
def test_every_edit_outdates_a_library(name: str, checkout: Path) -> None:
    library = library_path("cpu")
    assert sources.is_current(library)
    text = (checkout / name).read_text(encoding="utf-8")
    (checkout / name).write_text(text + "\n", encoding="utf-8")
    sources.digest.cache_clear()
    assert not sources.is_current(library)
    (checkout / name).write_text(text, encoding="utf-8")  # newer than the library, and the same
    sources.digest.cache_clear()
    assert sources.is_current(library)


def test_new_and_lost_sources_outdate_a_library(checkout: Path) -> None:
    library = library_path("cpu")
    (checkout / "csrc" / "gpt2.c~").touch()  # an editor's, which no compiler sees
    assert sources.is_current(library)
    (checkout / "cuda" / "layers" / "residual.cu").rename(checkout / "cuda" / "layers" / "sum.cu")
    sources.digest.cache_clear()
    assert not sources.is_current(library)


def test_an_installed_package_has_nothing_to_compare_with(checkout: Path) -> None:
    shutil.rmtree(checkout / "csrc")
    assert sources.digest() is None
    assert sources.is_current(Path("whatever"))
