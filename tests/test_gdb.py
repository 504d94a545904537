"""gdb follows the C code and the CUDA kernels, line by line, and shows the numbers that Python computes.

docs/debugging.md says how; what it types and shows is typed here, and compared."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compiling import digest_source
from documents import ROOT, Block, blocks
from numpy.typing import NDArray

import pygpt
from pygpt.files.llmc import write_model
from pygpt.reference import embedding, layernorm
from pygpt.text.token_file import write_tokens

GDB, COMPILER = shutil.which("gdb"), shutil.which("gcc") or shutil.which("cc")
CONFIG = pygpt.GPT2Config(vocab_size=256, n_positions=64, n_embd=32, n_layer=2, n_head=2)
B, T = 4, 64

pytestmark = [
    pytest.mark.skipif(GDB is None, reason="gdb is not installed"),
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler"),
]

PLAIN = ("set confirm off", "set width 0")
WHOLE = ("set print elements unlimited", "set print repeats unlimited", *PLAIN)


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
    library.append(digest_source(folder))
    shutil.copy(ROOT / "csrc" / "pygpt.h", folder)
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
    objects.append(debug / "digest.o")
    subprocess.run([str(COMPILER), "-fPIC", "-c", debug / "digest.c", "-o", objects[-1]], check=True)
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
    """The folder of a small model, with model.bin and tokens.bin in it."""
    folder = tmp_path_factory.mktemp("model")
    small = pygpt.GPT2(CONFIG, device="numpy", dtype="float32", seed=0)
    small.save_pretrained(folder)
    write_model(folder / "model.bin", CONFIG, small.parameters)
    write_tokens(folder / "tokens.bin", np.random.default_rng(0).integers(0, CONFIG.vocab_size, 2 * B * T + 1))
    return folder


def gdb(
    commands: list[str],
    program: list[str | Path],
    settings: tuple[str, ...] = WHOLE,
    cwd: Path = ROOT,
    **environment: str,
) -> str:
    """What gdb prints; every command is echoed after `+`."""
    assert GDB is not None
    script = [part for command in (*settings, "set trace-commands on", *commands) for part in ("-ex", command)]
    done = subprocess.run(
        [GDB, "-q", "-nx", "-batch", *script, "--args", *map(str, program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "DEBUGINFOD_URLS": "", **environment},
    )
    if "ptrace" in done.stdout or "Cannot create process" in done.stdout:
        pytest.skip(f"gdb may not trace processes here: {done.stdout.strip().splitlines()[-1]}")
    return done.stdout


def step(debug: Path, model: Path) -> list[str | Path]:
    return [debug / "pygpt-step", "--model", model / "model.bin", "--tokens", model / "tokens.bin", "--steps", "3"]


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


# ---- docs/debugging.md ----

GUIDE = blocks(ROOT / "docs" / "debugging.md")
NUMBER = r"-?\d+\.\d+(?:e[-+]\d+)?"


def under(heading: str, language: str) -> list[Block]:
    return [block for block in GUIDE if (block.heading, block.language) == (heading, language)]


def shows(line: str, documented: str) -> bool:
    """Whether a line is what the guide has in its place: `...` is anything, and numbers agree to four digits."""
    pieces = re.split(rf"(\.\.\.|{NUMBER}|\s+)", documented)
    patterns = (
        ".*" if piece == "..." else r"\s+" if piece.isspace() else f"({NUMBER})" if number else re.escape(piece)
        for piece in pieces
        for number in [re.fullmatch(NUMBER, piece)]
    )
    found = re.fullmatch("".join(patterns), line)
    if not found:
        return False
    expected = [float(piece) for piece in pieces if re.fullmatch(NUMBER, piece)]
    tolerance = 1e-4 * max(map(abs, expected), default=0.0)
    return all(abs(float(value) - right) <= tolerance for value, right in zip(found.groups(), expected, strict=True))


def assert_shown(output: str, documented: list[str]) -> None:
    """The documented lines are among those of the output, in this order."""
    lines = iter(output.splitlines())
    for line in documented:
        if line != "...":
            assert any(shows(actual, line) for actual in lines), f"the guide shows {line!r}, but gdb:\n{output}"


def test_what_counts_as_shown() -> None:
    assert shows("20\t        double sum = 0.0;", "...\t        double sum = 0.0;")
    assert shows("$1 = {0.50001, -2, 0.25}", "$1 = {0.5, -2, ...}")
    assert not shows("$1 = {0.501, -2, 0.25}", "$1 = {0.5, -2, ...}")
    assert not shows("$1 = 5", "$1 = 6")
    assert not shows("#1 0x1 in g () at a.c:1", "#1 ... in f () at a.c:...")
    with pytest.raises(AssertionError, match="the guide shows 'b'"):
        assert_shown("b\na\n", ["a", "b"])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, debug: Path) -> Path:
    """A checkout's root with build-debug, the guide's small model and its tokens."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("scripts", "LICENSE"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "build-debug").symlink_to(debug)
    (commands,) = under("A small model and some tokens", "sh")
    shell(commands.text, folder)
    return folder


def python() -> Path:
    return Path(sys.executable).with_name("python")


def shell(commands: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{python().parent}:{os.environ['PATH']}"}
    words = ["bash", "-euc", commands]
    return subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


def test_the_guide_shows_what_pygpt_step_prints(checkout: Path) -> None:
    (command,), (text,) = under("pygpt-step", "sh"), under("pygpt-step", "text")
    assert_shown(shell(command.text, checkout), text.text.splitlines())


def session(heading: str, checkout: Path) -> str:
    """Types what stands under a heading into gdb, and compares what it prints.  Returns that."""
    words = shlex.split(under(heading, "sh")[0].text)
    start = words.index("gdb")
    assert words[start : start + 2] == ["gdb", "--args"]
    environment = dict(word.split("=", 1) for word in words[:start])
    program: list[str | Path] = [*words[start + 2 :]]
    if program[0] == "python":
        (checkout / program[1]).write_text(under(heading, "python")[0].text)
        program[0], environment["PYTHONPATH"] = python(), str(ROOT)

    typed: list[tuple[str, list[str]]] = []
    for block in under(heading, "text"):
        for line in block.text.splitlines():
            if line.startswith("(gdb) "):
                typed.append((line.removeprefix("(gdb) "), []))
            else:
                typed[-1][1].append(line)
    commands = [command for command, _ in typed]
    output = gdb(commands, program, PLAIN, checkout, **environment)
    parts = re.split(r"^\+(.*)\n", output, flags=re.MULTILINE)
    assert parts[1::2] == commands, output
    for complaint in ("No symbol", "No breakpoint", "Undefined command", "is not being run", "cannot be used"):
        assert complaint not in output, output
    for printed, (_, documented) in zip(parts[2::2], typed, strict=True):
        assert_shown(printed, documented)
    return output


def test_the_session_on_pygpt_step(checkout: Path) -> None:
    session("gdb on pygpt-step", checkout)


def test_the_session_in_attention(checkout: Path) -> None:
    output = session("One row of attention", checkout)
    value = {int(n): float(x) for n, x in re.findall(r"^\$(\d+) = (\S+)$", output, re.MULTILINE)}
    model = saved_model(checkout)
    tokens = np.fromfile(checkout / "data" / "license" / "LICENSE_train_000000.bin", "<u2", B * T, offset=1024)
    model.forward(tokens.reshape(B, T))
    np.testing.assert_allclose(value[3] + np.log(value[5]), model.activations["h.0.attn.lse"][0, 1, 3], rtol=1e-5)
    np.testing.assert_allclose(value[6], model.attention_probabilities(0)[0, 1, 3, 0], rtol=1e-5)
    np.testing.assert_allclose(value[8], model.attention_probabilities(1)[0, 1, 3, 0], rtol=1e-5)
    assert abs(sum(value[n] for n in (10, 11, 12, 13))) < 1e-6 * abs(value[9])  # D, which each is a difference from


def saved_model(checkout: Path) -> pygpt.GPT2:
    return pygpt.GPT2.from_pretrained(checkout / "out" / "small" / "last", device="numpy", dtype="float32")


def test_the_session_on_python(checkout: Path) -> None:
    output = session("gdb on Python", checkout)
    stored, first = saved_model(checkout).parameters, (ROOT / "LICENSE").read_bytes()[0]
    assert np.array_equal(row(output, 1), stored["wte.weight"][first] + stored["wpe.weight"][0])
    assert "exited normally" in output


def test_the_session_in_a_cuda_kernel(debug_cuda: Path, checkout: Path) -> None:
    output = session("gdb inside a CUDA kernel", checkout)
    stored, letter = saved_model(checkout).parameters, (ROOT / "LICENSE").read_bytes()[5]
    x = stored["wte.weight"][letter] + stored["wpe.weight"][5]
    assert np.array_equal(row(output, 2), x)
    own, mean = (float(re.findall(rf"^\${number} = (\S+)$", output, re.MULTILINE)[0]) for number in (3, 4))
    np.testing.assert_allclose([own, mean], [x[12:16].sum(), x.mean()], rtol=1e-5)
    assert "exited normally" in output


def test_the_launch_file_names_its_tasks() -> None:
    folder = ROOT / ".vscode"
    tasks = {task["label"]: task for task in json.loads((folder / "tasks.json").read_text())["tasks"]}
    for configuration in json.loads((folder / "launch.json").read_text())["configurations"]:
        task = tasks[configuration["preLaunchTask"]]
        assert task["dependsOn"] in tasks
