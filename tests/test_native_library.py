"""The native libraries in their process: its threads, its forks, its environment, its end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from backends import PRESENT, Backend

import pygpt
from pygpt.backends import control_group, library

ROOT = Path(__file__).parents[1]
EMULATED = pytest.param(
    "cuda-emulated",
    marks=pytest.mark.skipif(
        not any(backend.device == "cuda-emulated" for backend in PRESENT), reason="needs the emulated library"
    ),
)
CONFIG = pygpt.GPT2Config(vocab_size=37, n_positions=19, n_embd=24, n_layer=2, n_head=3)
MODEL = "GPT2(GPT2Config(vocab_size=37, n_positions=19, n_embd=24, n_layer=2, n_head=3)"
START = """
import os, signal, sys, numpy as np, pygpt
from pygpt import GPT2, GPT2Config
signal.alarm(60)  # a hang ends in a status
pygpt.set_threads(2, beyond_cores=True)
x = np.arange(38).reshape(2, 19) % 37
"""


def run(program: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Runs START and a program after it; a variable that is None is left out of its environment."""
    variables = {**os.environ, **environment}
    given = {name: value for name, value in variables.items() if value is not None}
    return subprocess.run([sys.executable, "-c", START + program], env=given, capture_output=True, text=True, cwd=ROOT)


# ---- the end of the process ----


@pytest.mark.parametrize("device", ["cpu", EMULATED])
def test_exception_that_nobody_catches_ends_the_process_in_order(device: str) -> None:
    """A cycle with a view of the model's memory lives until the interpreter has closed the library."""
    ended = run(f"""
class Loop:
    def __init__(self):
        self.hook = self.step
        self.model = {MODEL}, device="{device}")
    def step(self):
        self.model.parameters["wte.weight"]
        raise ValueError("a reason")
def main():
    loop = Loop()
    loop.step()
main()
""")
    assert ended.returncode == 1
    assert "ValueError: a reason" in ended.stderr


# ---- forks ----

FORK = """
parent = model.forward(x, x)
child = os.fork()
if not child:
    signal.alarm(20)  # of this process: the parent's is not inherited
    try:
        result = model.forward(x, x)
        model.backward()
        other = {MODEL}, device={device!r}).forward(x, x)
        os._exit(0 if result == parent == other else 3)
    except pygpt.UserError as error:
        print(error, flush=True)
        os._exit(2)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert model.forward(x, x) == parent
"""


@pytest.mark.parametrize("device", ["cpu", EMULATED])
@pytest.mark.parametrize("threaded", [False, True])
def test_child_of_a_fork_computes(device: str, threaded: bool) -> None:
    fork = FORK.format(MODEL=MODEL, device=device)
    if threaded:  # by a thread that is not the first, with a team of its own
        lines = fork.replace("\n", "\n    ")
        fork = f"import threading\ndef work():{lines}\nt = threading.Thread(target=work); t.start(); t.join()"
    ended = run(f"model = {MODEL}, device={device!r})\n{fork}")
    assert (ended.returncode, ended.stdout) == (0, "child 0\n"), ended.stderr


def test_child_that_a_device_does_not_follow_says_so() -> None:
    """CUDA itself answers with an initialization error, 3, which the emulation is told to do here."""
    child = """
if not os.fork():
    signal.alarm(20)
    os.environ["PYGPT_EMULATION_ERROR"] = "3"
    try:
        model.forward(x, x)
    except pygpt.UserError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""
    ended = run(f"model = {MODEL}, device='cuda-emulated')\nmodel.forward(x, x)\n{child}")
    assert "cannot be used after a fork" in ended.stdout and '"spawn"' in ended.stdout, ended.stderr


# ---- threads ----


def threads_of(kind: str) -> int:
    """As a thread of the program finds them that has not called the library before."""
    found: list[int] = []

    def ask() -> None:
        if kind == "model":
            pygpt.GPT2(pygpt.GPT2Config(vocab_size=2, n_positions=1, n_embd=8, n_layer=1, n_head=1)).zero_grad()
        elif kind == "layer":
            pygpt.layers("cpu").gelu_forward(np.zeros(4, np.float32))
        found.append(ctypes.CDLL("libgomp.so.1").omp_get_max_threads())  # pygpt's own function would set it right

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
@pytest.mark.parametrize("kind", ["model", "layer"])
def test_number_of_threads_is_that_of_the_process(kind: str) -> None:
    library.cpu_library()
    if "libgomp" not in Path("/proc/self/maps").read_text():
        pytest.skip("needs GNU OpenMP")
    try:
        for count in (3, 2):
            pygpt.set_threads(count, beyond_cores=True)
            assert threads_of(kind) == count
    finally:
        pygpt.set_threads(None)


def test_libraries_that_open_later_have_as_many_threads() -> None:
    program = "from pygpt.backends.library import cpu_library\nprint(cpu_library().pygpt_threads())"
    assert run(program).stdout == "2\n"


@pytest.mark.parametrize(
    "given, expected",
    [("1", 1), ("3", 3), (" 2,4 ", 2), (None, 5), ("", 5), ("0", 5), ("many", 5), ("-1", 5)],
)
def test_default_is_what_openmp_is_told(monkeypatch: pytest.MonkeyPatch, given: str | None, expected: int) -> None:
    monkeypatch.setattr(library, "available_cores", lambda: 5)
    monkeypatch.setattr(library, "cpu_quota", lambda: float("inf"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert library.default_threads() == expected


# membership, files of the groups, quota in cores, threads on five cores
GROUPS: list[tuple[str, dict[str, str], float, int]] = [
    ("0::/\n", {}, np.inf, 5),
    ("0::/\n", {"cpu.max": "max 100000\n"}, np.inf, 5),
    ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5, 2),
    ("0::/\n", {"cpu.max": "1000 100000\n"}, 0.01, 1),
    ("0::/a/b\n", {"cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n", "a/b/cpu.max": "900000 100000\n"}, 2, 2),
    ("0::/a/b\n", {"a/cpu.max": "max 100000\n", "a/b/cpu.max": "300000 100000\n"}, 3, 3),
    ("0::/../../b\n", {"cpu.max": "400000 100000\n"}, 4, 4),
    (
        "5:memory:/a\n4:cpu,cpuacct:/a\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
        | {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        2.5,
        3,
    ),
    # in a container of version 1, whose root is the group itself
    ("4:cpu:/docker/1\n", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 1, 1),
    ("0::/\n", {"cpu.max": "nonsense\n"}, np.inf, 5),
]


def make_groups(monkeypatch: pytest.MonkeyPatch, root: Path, membership: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "membership").write_text(membership)
    monkeypatch.setattr(control_group, "_ROOT", root)
    monkeypatch.setattr(control_group, "_MEMBERSHIP", root / "membership")


@pytest.mark.parametrize("membership, files, quota, threads", GROUPS)
def test_quota_of_the_control_groups_bounds_the_default(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    membership: str,
    files: dict[str, str],
    quota: float,
    threads: int,
) -> None:
    make_groups(monkeypatch, tmp_path, membership, files)
    monkeypatch.setattr(library, "available_cores", lambda: 5)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert control_group.cpu_quota() == quota
    assert library.default_threads() == threads


def test_no_control_groups_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(control_group, "_MEMBERSHIP", tmp_path / "absent")
    assert control_group.cpu_quota() == np.inf


# ---- the processor ----


def test_every_instruction_that_a_library_may_use_is_asked_for() -> None:
    """A level of CMakeLists.txt runs only where pygpt_processor() has found all that its flags allow."""
    flags = re.findall(r"^\s*set\((V3|V4|V4_BF16) (.*)\)$", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    levels: dict[str, set[str]] = {}
    for name, text in flags:
        levels.setdefault(name, {flag[2:] for flag in text.split() if flag.startswith("-m") and "=" not in flag})
    source = (ROOT / "csrc" / "library.c").read_text()
    asked = {name.lower() for pair in re.findall(r'cpu_supports\("(\w+)"\)|of_\w+ & (\w+)', source) for name in pair}
    # prfchw is passed over by processors that do not know it
    assert set().union(*levels.values()) - {"prfchw"} == asked - {""}


# ---- the environment ----


@pytest.mark.parametrize("given", [None, "77"])
def test_spin_count_is_read_and_does_not_stay_in_the_environment(given: str | None) -> None:
    """GNU OpenMP prints what it read."""
    ended = run(f"{MODEL})\nprint(os.environ.get('GOMP_SPINCOUNT'))", OMP_DISPLAY_ENV="verbose", GOMP_SPINCOUNT=given)
    assert ended.stdout == f"{given}\n"
    if "GOMP_SPINCOUNT" not in ended.stderr:
        pytest.skip("needs GNU OpenMP")
    assert f"GOMP_SPINCOUNT = '{given or library.SPIN_COUNT}'" in ended.stderr


# ---- one thread at a time ----


@pytest.mark.parametrize("backend", [backend for backend in PRESENT if backend.device != "numpy"], ids=str)
def test_second_thread_that_uses_a_model_is_told_so(backend: Backend) -> None:
    """The pass under way is undisturbed, and the model works as before."""
    model, tokens = backend.model(CONFIG), np.arange(38).reshape(2, 19) % 37
    expected = model.forward(tokens, tokens)
    losses, refused = [], threading.Event()

    def passes() -> None:
        while not refused.is_set():
            with contextlib.suppress(pygpt.UserError):  # the other thread may have been first
                losses.append(model.forward(tokens, tokens))

    worker = threading.Thread(target=passes)
    worker.start()
    until = time.monotonic() + 30
    try:
        with pytest.raises(pygpt.UserError, match="another thread is using this model"):
            while time.monotonic() < until:
                model.zero_grad()
    finally:
        refused.set()
        worker.join()
    assert set(losses) <= {expected}
    assert model.forward(tokens, tokens) == expected


def test_files_with_products_of_bfloat16_or_bytes_are_compiled_for_them() -> None:
    """CMakeLists.txt takes the other objects of x86-64-v4-bf16 from x86-64-v4."""
    (listed,) = re.findall(r"set\(with_bf16 ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    sources = {path: path.read_text() for path in (ROOT / "csrc").rglob("*.[ch]")}
    marks = {"HAVE_BF16_PAIRS", "BF16_PAIR", "__AVX512BF16__", "dot_bytes"}
    headers = "".join(text for path, text in sources.items() if path.suffix == ".h")
    inline = re.findall(r"^(?:INLINE|static inline) .*?(\w+)\((.*?)^}", headers, re.MULTILINE | re.DOTALL)

    def uses_them(text: str) -> bool:
        return not marks.isdisjoint(re.findall(r"\w+", text))

    while found := {name for name, body in inline if uses_them(body)} - marks:
        marks |= found
    using = {str(path.relative_to(ROOT)) for path, text in sources.items() if path.suffix == ".c" and uses_them(text)}
    assert using == set(listed.split())


def test_threads_that_come_first_together_get_the_same_declarations() -> None:
    # in a fresh process, since this one has them already
    program = """
import sys, threading
sys.setswitchinterval(1e-6)
from pygpt.backends.library import ffi
together, made = threading.Barrier(8), []
def first():
    together.wait()
    made.append(ffi())
threads = [threading.Thread(target=first) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(len({id(each) for each in [*made, ffi()]}) != 1)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
