"""gdb follows the C code and the CUDA kernels, line by line, and shows the numbers that Python computes.

docs/debugging.md says how."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import pygpt
from pygpt.reference import embedding, layernorm
from pygpt.tokens import write_tokens

ROOT = Path(__file__).parents[1]
GDB, COMPILER = shutil.which("gdb"), shutil.which("gcc") or shutil.which("cc")
CONFIG = pygpt.GPT2Config(vocab_size=256, n_positions=64, n_embd=32, n_layer=2, n_head=2)
B, T = 4, 64

pytestmark = [
    pytest.mark.skipif(GDB is None, reason="gdb is not installed"),
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler"),
]

WHOLE = ("set print elements unlimited", "set print repeats unlimited", "set confirm off", "set width 0")


@pytest.fixture(scope="module")
def debug(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What docs/debugging.md has in build-debug: pygpt-step and a library, without optimisation and OpenMP."""
    folder = tmp_path_factory.mktemp("debug")
    flags = ["-std=gnu11", "-O0", "-g", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
    program, library = [], []
    for source in (ROOT / "csrc").rglob("*.c"):
        compiled = folder / f"{source.parent.name}-{source.stem}.o"
        subprocess.run([str(COMPILER), *flags, "-c", source, "-o", compiled], check=True)
        program.append(compiled)
        if source.name != "main.c" and source.parent.name != "step":
            library.append(compiled)
    subprocess.run([str(COMPILER), *program, "-o", folder / "pygpt-step", "-lm"], check=True)
    subprocess.run([str(COMPILER), "-shared", *library, "-o", folder / "libpygpt_cpu_baseline.so", "-lm"], check=True)
    return folder


@pytest.fixture(scope="module")
def debug_cuda(debug: Path) -> Path:
    """The same with the library of device cuda-emulated."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    flags = ["-std=c++17", "-O0", "-g", "-fPIC", "-DPYGPT_EMULATION", "-I", "cuda/emulation", "-I", "cuda"]
    sources = [
        *(ROOT / "cuda").glob("*.cu"),
        *(ROOT / "cuda").glob("layers/*.cu"),
        *(ROOT / "cuda").glob("emulation/*.cpp"),
    ]
    objects = [debug / f"csrc-{name}.o" for name in shared_sources()]
    for source in sources:
        if source.name == "matmul_cublaslt.cu":
            continue
        objects.append(debug / f"{source.name}.o")
        subprocess.run([compiler, *flags, "-x", "c++", "-c", source, "-o", objects[-1]], check=True, cwd=ROOT)
    subprocess.run([compiler, "-shared", *objects, "-o", debug / "libpygpt_cuda_emulated.so"], check=True)
    return debug


def shared_sources() -> list[str]:
    """The files of csrc/ that are in every library."""
    text = (ROOT / "cuda" / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(r"set\(PYGPT_SHARED_SOURCES ([\w ]+)\)", text)
    assert found
    return found[1].split()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model, with tokens.bin in it."""
    folder = tmp_path_factory.mktemp("model")
    pygpt.GPT2(CONFIG, device="numpy", dtype="float32", seed=0).save_pretrained(folder)
    write_tokens(folder / "tokens.bin", np.random.default_rng(0).integers(0, CONFIG.vocab_size, 2 * B * T + 1))
    return folder


def gdb(commands: list[str], program: list[str | Path], **environment: str) -> str:
    """What gdb prints; every command is echoed after `+`."""
    assert GDB is not None
    script = [part for command in (*WHOLE, "set trace-commands on", *commands) for part in ("-ex", command)]
    done = subprocess.run(
        [GDB, "-q", "-nx", "-batch", *script, "--args", *map(str, program)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "DEBUGINFOD_URLS": "", **environment},
    )
    if "ptrace" in done.stderr or "Cannot create process" in done.stderr:
        pytest.skip(f"gdb may not trace processes here: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout + done.stderr


def step(debug: Path, model: Path) -> list[str | Path]:
    return [debug / "pygpt-step", "--model", model, "--tokens", model / "tokens.bin", "--steps", "3"]


def row(output: str, number: int) -> NDArray[np.float32]:
    """The values that gdb printed as $number; nine digits are the float32 itself."""
    found = re.search(rf"^\${number} = \{{(.*)\}}$", output, re.MULTILINE)
    assert found, output
    return np.array([float(re.sub(r"nan\(\w+\)", "nan", value)) for value in found[1].split(",")], np.float32)


def test_a_breakpoint_shows_the_rows_that_numpy_computes(debug: Path, model: Path) -> None:
    commands = ["break layernorm_forward", "run", "backtrace", "print *x@C", "print x[C * (N - 1)]@C", "print N"]
    commands += ["finish", "print a.ln_1[0]@C", "print a.ln_1_rstd[0]@N", "delete", "continue"]
    output = gdb(commands, step(debug, model))
    callers = re.findall(r"^#\d+ +(?:0x\w+ in )?(\w+) ", output, re.MULTILINE)
    assert callers == ["layernorm_forward", "block_forward", "body_forward", "gpt2_forward", "step", "run", "main"]

    stored = pygpt.GPT2.from_pretrained(model, device="numpy", dtype="float32").parameters
    batch = np.fromfile(model / "tokens.bin", "<u2", B * T, offset=1024).astype(np.int64).reshape(B, T)
    x = embedding.forward(batch, stored["wte.weight"], stored["wpe.weight"])
    assert np.array_equal(row(output, 1), x[0, 0])
    assert np.array_equal(row(output, 2), x[-1, -1])
    assert f"$3 = {B * T}" in output
    weight, bias = stored["h.0.ln_1.weight"], stored["h.0.ln_1.bias"]
    y, _, rstd = layernorm.forward(x.astype(np.float64), weight, bias)
    np.testing.assert_allclose(row(output, 4), y[0, 0], rtol=1e-5, atol=1e-6 * np.abs(y[0, 0]).max())
    np.testing.assert_allclose(row(output, 5), rstd.reshape(-1), rtol=1e-6)
    assert len(re.findall(r"^step +\d+   loss ", output, re.MULTILINE)) == 3
    assert "exited normally" in output


def test_a_number_changed_in_gdb_changes_the_loss(debug: Path, model: Path) -> None:
    losses = [
        re.findall(r"loss (\S+)", gdb(["break gpt2_forward", "run", *change, "delete", "continue"], step(debug, model)))
        for change in ([], ["set var m->parameters[0] = 1"])
    ]
    assert len(losses[0]) == len(losses[1]) == 3
    assert losses[0][0] != losses[1][0]


def transcripts(heading: str) -> list[str]:
    """What docs/debugging.md types into gdb under a heading."""
    text = (ROOT / "docs" / "debugging.md").read_text(encoding="utf-8")
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    commands = re.findall(r"^\(gdb\) (.+)$", section, re.MULTILINE)
    assert commands
    return commands


def check(output: str, commands: list[str]) -> None:
    assert [line[1:] for line in output.splitlines() if line.startswith("+")] == commands, output
    for complaint in ("No symbol", "No breakpoint", "Undefined command", "is not being run", "cannot be used"):
        assert complaint not in output, output
    assert "exited normally" in output, output


def test_the_documented_session_on_pygpt_step(debug: Path, model: Path) -> None:
    commands = transcripts("gdb on pygpt-step")
    output = gdb(commands, step(debug, model))
    check(output, commands)
    assert "New value = " in output
    assert len(re.findall(r"^step +\d+   loss ", output, re.MULTILINE)) == 3


def test_the_documented_session_on_python(debug: Path, model: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "debugging.md").read_text(encoding="utf-8")
    program = text.split("```python\n")[1].split("```")[0].replace("out/small/last", str(model))
    (tmp_path / "look.py").write_text(program)
    commands = transcripts("gdb on Python")
    environment = {"PYGPT_LIB_DIR": str(debug), "PYGPT_ISA": "baseline", "PYTHONPATH": str(ROOT)}
    output = gdb(commands, [sys.executable, tmp_path / "look.py"], **environment)
    check(output, commands)
    assert str(debug / "libpygpt_cpu_baseline.so") in output
    stored = pygpt.GPT2.from_pretrained(model, device="numpy", dtype="float32").parameters
    first = (ROOT / "LICENSE").read_bytes()[0]
    assert np.array_equal(row(output, 1), stored["wte.weight"][first] + stored["wpe.weight"][0])


def test_the_documented_session_in_a_cuda_kernel(debug_cuda: Path, model: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "debugging.md").read_text(encoding="utf-8")
    heading = "gdb inside a CUDA kernel"
    program = text.split(f"## {heading}\n")[1].split("```python\n")[1].split("```")[0]
    (tmp_path / "look_cuda.py").write_text(program.replace("out/small/last", str(model)))
    commands = transcripts(heading)
    environment = {"PYGPT_LIB_DIR": str(debug_cuda), "PYTHONPATH": str(ROOT)}
    output = gdb(commands, [sys.executable, tmp_path / "look_cuda.py"], **environment)
    check(output, commands)
    assert "$1 = 5\n" in output and "$5 = {x = 35, y = 0, z = 0}" in output
    stored = pygpt.GPT2.from_pretrained(model, device="numpy", dtype="float32").parameters
    letter = (ROOT / "LICENSE").read_bytes()[5]
    x = stored["wte.weight"][letter] + stored["wpe.weight"][5]
    assert np.array_equal(row(output, 2), x)
    own, mean = (float(re.findall(rf"^\${number} = (\S+)$", output, re.MULTILINE)[0]) for number in (3, 4))
    np.testing.assert_allclose([own, mean], [x[12:16].sum(), x.mean()], rtol=1e-5)
    shares = row(output, 6)
    assert np.isfinite(shares[:8]).all() and np.isnan(shares[8:]).all()  # threads 32 to 39 have been there


def test_the_launch_file_names_its_tasks() -> None:
    folder = ROOT / ".vscode"
    tasks = {task["label"]: task for task in json.loads((folder / "tasks.json").read_text())["tasks"]}
    for configuration in json.loads((folder / "launch.json").read_text())["configurations"]:
        task = tasks[configuration["preLaunchTask"]]
        assert task["dependsOn"] in tasks
