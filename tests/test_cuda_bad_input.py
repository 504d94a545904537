"""What a CUDA device cannot do: one sentence, exit status 2, nothing half-written.  On the emulated device."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from backends import ABSENT, Backend
from test_cuda import EMULATED
from test_train import flags, here, models, outcome

from pygpt import GPT2Config, memory_needed
from pygpt.backends import library
from pygpt.backends.native_tensors import NativeTensors
from pygpt.command import train
from pygpt.errors import UserError
from pygpt.training import train as training

__all__ = ["here"]  # a fixture

ROOT = Path(__file__).parents[1]
LOST = "999"  # cudaErrorUnknown

pytestmark = pytest.mark.skipif(
    Backend(EMULATED, "float32", "fast") in ABSENT, reason=str(ABSENT.get(Backend(EMULATED, "float32", "fast")))
)


def command(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    words = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)


def sentence_of(done: subprocess.CompletedProcess[str]) -> str:
    """What a command says that ends as it should where something is wrong."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("error: ").rstrip()


def folder_with_cuda(folder: Path) -> Path:
    """Libraries among which the emulated device stands in the place of a GPU, as device "cuda"."""
    for path in [library._folder() / library.HEADER, *library._folder().glob("libpygpt_cpu_*")]:
        (folder / path.name).symlink_to(path)
    (path,) = library._folder().glob("libpygpt_cuda_emulated.*")
    (folder / f"libpygpt_cuda{path.suffix}").symlink_to(path)
    return folder


# ---- devices that cannot be used ----


@pytest.mark.parametrize(
    "environment, sentence",
    [
        ({"DRIVER": "0"}, "device 'cuda-emulated' cannot be used: no NVIDIA driver is installed"),
        (
            {"DRIVER": "12.4"},
            "device 'cuda-emulated' cannot be used: the NVIDIA driver is made for CUDA 12.4, "
            "and this library needs one for CUDA 13.0 or later",
        ),
        (
            {"ERROR": "100"},
            "device 'cuda-emulated' cannot be used: there is no CUDA device, or CUDA_VISIBLE_DEVICES hides it",
        ),
        (
            {"ERROR": "46"},
            "the device, CUDA emulated on the CPU, compute capability 8.6, "
            "is in use by another process that does not share it",
        ),
        (
            {"COMPUTE_CAPABILITY": "7.0"},
            "device 'cuda-emulated' cannot be used: CUDA emulated on the CPU, compute capability 7.0, "
            "expected compute capability 7.5 or more",
        ),
        (
            {"COMPUTE_CAPABILITY": "7.5"},
            'dtype "bfloat16" needs compute capability 8.0 or more, '
            'and the device is CUDA emulated on the CPU, compute capability 7.5: "float32" works on it',
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_training_is_refused(environment: dict[str, str], sentence: str) -> None:
    named = {f"PYGPT_EMULATION_{name}": value for name, value in environment.items()}
    done = command("train.py", *flags(device=EMULATED, dtype="bfloat16", threads=None, out_dir="a"), **named)
    assert sentence_of(done) == sentence
    assert not Path("a").exists()


@pytest.mark.parametrize("script", ["generate.py", "compare.py"])
def test_other_scripts_refuse_too(script: str) -> None:
    arguments = ["x", "--model", "a/last"] if script == "generate.py" else []
    if arguments:
        train.main(flags(max_iters=1, out_dir="a"))
    done = command(script, *arguments, "--device", EMULATED, PYGPT_EMULATION_DRIVER="0")
    assert sentence_of(done) == "device 'cuda-emulated' cannot be used: no NVIDIA driver is installed"


def test_auto_takes_cuda_where_it_can_be_used(tmp_path: Path) -> None:
    folder = str(folder_with_cuda(tmp_path))
    arguments = flags(device="auto", max_iters=1, threads=None)
    done = command("train.py", *arguments, "--out-dir", "a", PYGPT_LIB_DIR=folder)
    assert done.returncode == 0, done.stderr
    assert re.search("^device +cuda, float32", done.stdout, re.MULTILINE)
    environment = {"PYGPT_LIB_DIR": folder, "PYGPT_EMULATION_DRIVER": "0"}
    done = command("train.py", *arguments, "--out-dir", "b", **environment)
    assert done.returncode == 0, done.stderr
    assert re.search("^device +cpu, float32", done.stdout, re.MULTILINE)
    done = command("train.py", *flags(device="cuda", threads=None, out_dir="c"), **environment)
    assert sentence_of(done) == "device 'cuda' cannot be used: no NVIDIA driver is installed"


# ---- libraries that are absent ----


@pytest.mark.parametrize(
    "device, how",
    [
        ("cuda", "with nvcc installed, `pip install '.[cuda]' -C cmake.define.PYGPT_CUDA=ON` builds it"),
        ("cuda-emulated", "with a C++ compiler installed, `pip install .` builds it"),
    ],
)
def test_library_that_was_not_built(device: str, how: str, tmp_path: Path) -> None:
    path = next(library._folder().glob("libpygpt_cpu_baseline.*"))
    for name in (path.name, library.HEADER):
        (tmp_path / name).symlink_to(path.parent / name)
    file = f"libpygpt_{device.replace('-', '_')}{path.suffix}"
    done = command("train.py", *flags(device=device, threads=None), PYGPT_LIB_DIR=str(tmp_path))
    assert sentence_of(done) == f"device {device!r} needs {file}, which is not in {tmp_path}: {how}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NVIDIA's packages are for Linux")
def test_cublas_that_is_not_beside_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")

    def build(path: Path, source: str, *more: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".c").write_text(source)
        compiled = [compiler, "-shared", "-fPIC", str(path.with_suffix(".c")), "-o", str(path), *more]
        subprocess.run(compiled, check=True)

    cublas = tmp_path / "site" / "nvidia" / "cu77" / "lib" / "libcublasLt.so.77"
    build(cublas, "int version(void) { return 77; }", "-Wl,-soname,libcublasLt.so.77")
    needing = tmp_path / "libpygpt_needing.so"
    build(needing, "int version(void); int call(void) { return version(); }", str(cublas))
    with pytest.raises(UserError) as caught:
        library._load(needing)
    assert str(caught.value) == (
        "libpygpt_needing.so needs libcublasLt.so.77, cuBLAS of CUDA 77, which was not found: "
        "`pip install nvidia-cublas`"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    library._load(needing)
    assert ctypes.CDLL(str(needing)).call() == 77


# ---- memory ----

CONFIG = GPT2Config(vocab_size=256, n_positions=16, n_embd=16, n_layer=1, n_head=2)


def needed(batch_size: int) -> int:
    settings = {"dtype": "bfloat16", "recompute": "cheap", "device": EMULATED}
    return memory_needed(CONFIG, batch_size=batch_size, seq_len=16, training=True, **settings)


@pytest.mark.parametrize("others", [False, True])
def test_batch_that_does_not_fit_is_refused_with_one_that_does(others: bool) -> None:
    used = needed(200) if others else 0
    memory = {"PYGPT_EMULATION_MEMORY": str(used + needed(37)), "PYGPT_EMULATION_MEMORY_USED": str(used)}

    def run(batch_size: int, out_dir: str) -> subprocess.CompletedProcess[str]:
        sizes = {"batch_size": batch_size, "max_iters": 2, "dtype": "bfloat16", "recompute": "cheap"}
        options = flags(device=EMULATED, threads=None, tokenizer="byte", out_dir=out_dir, **sizes)
        return command("train.py", *options, **memory)

    sentence = sentence_of(run(200, "a"))
    assert not Path("a").exists()
    because = ", because other processes use it" if others else ""
    pattern = rf"[\d.]+ GB of memory are needed, and [\d.]+ GB of the device's [\d.]+ GB are free{because}: "
    found = re.fullmatch(rf"{pattern}--batch-size (\d+) would fit, and --recompute block needs less", sentence)
    assert found, sentence
    assert int(found[1]) == 37
    done = run(37, "b")
    assert done.returncode == 0, done.stderr


def test_other_scripts_say_it_before_they_begin() -> None:
    train.main(flags(max_iters=1, out_dir="a"))
    memory = {"PYGPT_EMULATION_MEMORY": str(10 << 20)}
    for script, arguments in (("generate.py", ["x", "--model", "a/last"]), ("compare.py", [])):
        sentence = sentence_of(command(script, *arguments, "--device", EMULATED, **memory))
        assert re.match(
            r"[\d.]+ GB of memory are needed, and 0.01 GB of the device's 0.01 GB are free: take ", sentence
        )


def test_memory_that_others_have_taken_meanwhile_is_a_sentence_too() -> None:
    code = "def main(): pygpt.GPT2(pygpt.GPT2Config(2, 1, 8, 1, 1), device='cuda-emulated')"
    program = f"import pygpt, pygpt.command.cli\n{code}\npygpt.command.cli.run(main)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYGPT_EMULATION_MEMORY": "1000"},
    )
    assert sentence_of(done).startswith("it does not fit into memory: a model with n_layer = 1 and n_embd = 8 needs ")


# ---- a device that is lost ----


def lose_device(patch: pytest.MonkeyPatch, method: str, step: int) -> None:
    """Make the device of the next run fail in the middle of this method of the loop, after so many steps."""
    original, read, reads = getattr(training._Loop, method), NativeTensors.__getitem__, count()

    def fail() -> None:
        patch.setenv("PYGPT_EMULATION_ERROR", LOST)

    def failing_read(tensors: NativeTensors, name: str) -> object:
        if next(reads) == 7:
            fail()
        return read(tensors, name)

    def failing(loop: training._Loop) -> None:
        if loop.state.step == step and method == "_save":
            patch.setattr(NativeTensors, "__getitem__", failing_read)
        elif loop.state.step == step:
            fail()
        original(loop)

    patch.setattr(training._Loop, method, failing)


@pytest.mark.parametrize("method, step, saved", [("_step", 7, 4), ("_validate", 10, 8), ("_save", 8, 4)])
def test_lost_device_leaves_a_checkpoint_to_go_on_from(
    method: str, step: int, saved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = flags(device=EMULATED, dtype="bfloat16", threads=None, dropout=0.1)
    assert train.main([*argv, "--out-dir", "whole"]) == 0
    with monkeypatch.context() as patch:
        lose_device(patch, method, step)
        with pytest.raises(UserError) as caught:
            train.main([*argv, "--out-dir", "a"])
    failure, advice = str(caught.value).split("; ")
    assert re.fullmatch(rf"CUDA failed in .+: unknown error, after step {step}", failure)
    go_on = "go on from it, python scripts/train.py --resume a"
    assert advice == f"the last good checkpoint is a/last (step {saved}): {go_on}"
    assert sorted(path.split("/")[1] for path in models("a")) == sorted(path.split("/")[1] for path in models("whole"))
    assert train.main(["--resume", "a"]) == 0
    assert outcome("a") == outcome("whole")


def test_device_lost_before_the_first_checkpoint() -> None:
    argv = flags(device=EMULATED, threads=None, out_dir="a")
    sentence = sentence_of(command("train.py", *argv, PYGPT_EMULATION_ERROR=f"{LOST}@30"))
    assert sentence.startswith("CUDA failed in ")
    assert sentence.endswith(": unknown error, after step 0; there is no checkpoint yet: begin again")
    assert train.main(["--resume", "a"]) == 0


def test_device_lost_while_text_is_written() -> None:
    train.main(flags(device=EMULATED, max_iters=1, threads=None, out_dir="a"))
    arguments = ["x", "--model", "a/last", "--device", EMULATED, "--max-new-tokens", "20"]
    sentence = sentence_of(command("generate.py", *arguments, PYGPT_EMULATION_ERROR=f"{LOST}@60"))
    assert re.fullmatch(r"CUDA failed in .+: unknown error", sentence)
