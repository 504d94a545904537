"""A library that an edit has outdated is refused where it would be judged, and named wherever else it is opened."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pygpt.backends import library, sources
from pygpt.backends.devices import DEVICES
from pygpt.backends.library import cpu_library_path
from pygpt.errors import UserError

ROOT = Path(__file__).parents[1]


def run_python(*words: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=cwd)


def copy_libraries(folder: Path, changed: Path) -> Path:
    """Copies of all libraries; that of `changed`, which is returned, says that it was built from other sources."""
    for path in [changed.parent / "pygpt.h", *changed.parent.glob("libpygpt_*")]:
        shutil.copy(path, folder)
    digest, copy = sources.digest(), folder / changed.name
    assert digest
    copy.write_bytes(copy.read_bytes().replace(digest.encode(), digest[::-1].encode()))
    return copy


@pytest.mark.parametrize("device", ["cpu", "cuda-emulated"])
def test_an_outdated_library_is_not_judged(device: str, tmp_path: Path) -> None:
    try:
        current = DEVICES[device].library_path()
    except UserError as error:
        pytest.skip(str(error))
    copy = copy_libraries(tmp_path, current)
    sentence = f"{copy} was not built from the C and CUDA sources in {ROOT}: `pip install .` builds it again"
    compare = ROOT / "scripts" / "compare.py"
    found = run_python(compare, "--device", device, PYGPT_LIB_DIR=str(tmp_path))
    assert (found.returncode, found.stdout, found.stderr) == (2, "", f"error: {sentence}\n")
    (tmp_path / "CMakeCache.txt").touch()  # a build folder
    found = run_python(compare, "--device", device, PYGPT_LIB_DIR=str(tmp_path))
    assert f"`cmake --build {tmp_path}` builds it again" in found.stderr

    elsewhere = f"import pygpt; pygpt.layers({device!r}); print('opened')"
    found = run_python("-c", elsewhere, PYGPT_LIB_DIR=str(tmp_path))
    assert (found.returncode, found.stdout) == (0, "opened\n")
    assert "OutdatedLibrary" in found.stderr and str(copy) in found.stderr


def test_of_several_libraries_one_of_these_sources_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (baseline,) = cpu_library_path().parent.glob("libpygpt_cpu_baseline.*")
    for name in ("build", "lib"):
        (tmp_path / name).mkdir()
        newest = copy_libraries(tmp_path / name, baseline)
    shutil.copy(baseline, tmp_path / "build")
    os.utime(tmp_path / "build" / baseline.name, (2e9, 2e9))
    os.utime(newest, (3e9, 3e9))
    monkeypatch.delenv("PYGPT_LIB_DIR", raising=False)
    monkeypatch.setattr(library, "CHECKOUT", tmp_path)
    monkeypatch.setattr(library, "_PACKAGE", tmp_path)
    assert library._folder.__wrapped__() == tmp_path / "build"


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
    built = cpu_library_path()
    assert sources.is_current(built)
    text = (checkout / name).read_text(encoding="utf-8")
    (checkout / name).write_text(text + "\n", encoding="utf-8")
    sources.digest.cache_clear()
    assert not sources.is_current(built)
    (checkout / name).write_text(text, encoding="utf-8")  # newer than the library, and the same
    sources.digest.cache_clear()
    assert sources.is_current(built)


def test_new_and_lost_sources_outdate_a_library(checkout: Path) -> None:
    built = cpu_library_path()
    (checkout / "csrc" / "gpt2.c~").touch()  # an editor's, which no compiler sees
    assert sources.is_current(built)
    (checkout / "cuda" / "layers" / "residual.cu").rename(checkout / "cuda" / "layers" / "sum.cu")
    sources.digest.cache_clear()
    assert not sources.is_current(built)


def test_an_installed_package_opens_a_build_folder_and_asks_no_questions(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pygpt", tmp_path / "site" / "pygpt")
    (tmp_path / "build").mkdir()
    outdated = copy_libraries(tmp_path / "build", cpu_library_path())
    program = "import pygpt; from pygpt.backends.library import *; pygpt.layers(); print(cpu_library_path())"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PYGPT_LIB_DIR": str(tmp_path / "build")}
    found = run_python("-c", program, cwd=tmp_path, **environment)
    assert (found.returncode, found.stdout, found.stderr) == (0, f"{outdated}\n", "")


def test_a_breakpoint_by_name_is_in_one_place() -> None:
    """No two files of csrc/ define a function of the same name, static or not."""
    files: dict[str, set[str]] = {}
    for path in (ROOT / "csrc").rglob("*.[ch]"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"^(?!typedef)\w[\w *]*?\b(\w+)\([^;{}]*\) \{$", text, re.MULTILINE):
            files.setdefault(name, set()).add(
                path.name if path.parent.name == "csrc" else f"{path.parent.name}/{path.name}"
            )
    assert files["multiply_tile"] == {"layers/matmul.c"}
    assert {name: places for name, places in files.items() if len(places) > 1} == {}
