"""CUDA kernels on the CPU: the emulation runs correct ones and catches the faults of tests/emulation/faults.cu."""

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import required

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "tests" / "emulation"
EMULATION = sorted((ROOT / "cuda" / "emulation").glob("*.cpp"))
INCLUDES = ["-I", str(ROOT / "cuda" / "emulation"), "-I", str(ROOT / "cuda")]
COMPILERS = [c for c in ("g++", "clang++") if shutil.which(c)]
ORDERS = ["forward", "reverse", "random:1"]

# flags of a build for the kernels, for the emulation, and which of its files need them
BUILDS = {
    "plain": ([], [], [f.name for f in EMULATION]),
    "ucontext": ([], ["-DEMULATION_UCONTEXT"], ["fiber.cpp"]),
    "openmp": (["-fopenmp"], ["-fopenmp"], ["grid.cpp"]),
    "address": (["-fsanitize=address"], ["-fsanitize=address"], [f.name for f in EMULATION]),
    "thread": (["-fsanitize=thread"], ["-DEMULATION_TSAN"], ["block.cpp", "fiber.cpp", "grid.cpp"]),
}

pytestmark = pytest.mark.skipif(not COMPILERS, reason="needs g++ or clang++")


class Builder:
    """Compiles what a test asks for, once, into a folder that parallel test processes share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def make(self, name: str, compiler: str, arguments: Callable[[], list[object]]) -> Path:
        path = self.folder / name
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                flags = ["-std=c++17", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-DPYGPT_EMULATION", *INCLUDES]
                command = [compiler, *flags, *map(str, arguments()), "-o", str(path)]
                result = subprocess.run(command, capture_output=True, text=True)
                assert result.returncode == 0, result.stderr
        return path

    def emulation(self, build: str, compiler: str) -> list[Path]:
        def compile_one(source: Path) -> Path:
            _, flags, files = BUILDS[build]
            if source.name not in files:
                return self.make(f"plain-{compiler}-{source.stem}.o", compiler, lambda: ["-c", source])
            return self.make(f"{build}-{compiler}-{source.stem}.o", compiler, lambda: [*flags, "-c", source])

        return [compile_one(source) for source in EMULATION]

    def program(self, name: str, build: str = "plain", compiler: str = "") -> Path:
        """The program of tests/emulation/NAME.cu for the CPU."""
        compiler = compiler or COMPILERS[0]
        source = ["-x", "c++", SOURCES / f"{name}.cu", "-x", "none"]
        objects = self.emulation(build, compiler)
        return self.make(f"{name}-{build}-{compiler}", compiler, lambda: [*BUILDS[build][0], *source, *objects])

    def plans(self) -> Path:
        """tests/emulation/plans.cu with cuda/matmul_cublaslt.cu in place of the emulation's products."""
        sources = ["-I", SOURCES / "cublaslt", "-x", "c++", SOURCES / "plans.cu", ROOT / "cuda" / "matmul_cublaslt.cu"]
        objects = [path for path in self.emulation("plain", COMPILERS[0]) if not path.stem.endswith("matmul")]
        return self.make("plans", COMPILERS[0], lambda: [*sources, "-x", "none", *objects])


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    folder = tmp_path_factory.getbasetemp()
    return Builder((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "emulation")


def run(path: Path, *arguments: str, order: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(path), *arguments]
    if "-thread-" in path.name and shutil.which("setarch"):
        command = ["setarch", "-R", *command]  # some kernels place programs where ThreadSanitizer wants its tables
    variables = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", **environment}
    variables.pop("PYGPT_EMULATION_ORDER", None)
    if order:
        variables["PYGPT_EMULATION_ORDER"] = order
    result = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("ThreadSanitizer cannot place its tables on this machine")
    return result


def passes(result: subprocess.CompletedProcess[str]) -> bool:
    return result.returncode == 0 and "ok" in result.stdout and "FAILED" not in result.stdout and not result.stderr


# ---- what works ----


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("order", [None, *ORDERS, "random:22"])
def test_kernels(builder: Builder, compiler: str, order: str | None) -> None:
    if compiler not in COMPILERS:
        pytest.skip(f"needs {compiler}")
    result = run(builder.program("kernels", "plain", compiler), order=order)
    assert passes(result), result.stdout + result.stderr


@pytest.mark.parametrize("build", ["ucontext", "openmp", "address", "thread"])
def test_kernels_in_other_builds(builder: Builder, build: str) -> None:
    result = run(builder.program("kernels", build), OMP_NUM_THREADS="2")
    assert passes(result), result.stdout + result.stderr


def test_matmul(builder: Builder) -> None:
    result = run(builder.program("matmul"))
    assert passes(result), result.stdout + result.stderr


def test_plans_of_products(builder: Builder) -> None:
    result = run(builder.plans())
    assert passes(result), result.stdout + result.stderr


def test_log_of_plans(builder: Builder) -> None:
    result = run(builder.plans(), PYGPT_CUDA_LOG="1")
    assert result.returncode == 0, result.stdout  # what is only timed for the log is not taken
    lines = result.stderr.splitlines()
    plan = re.compile(
        r"product M 8 N 16 K 100, float32 to float32: algorithm 4, tile 0, stages 0, split-K 0, reduction 0, "
        r"workspace 0, 1\.0000 ms, 0\.0 TFLOP/s"
    )
    assert plan.fullmatch(lines[0]), lines[0]
    ends = ["not timed, does not launch", "same bits", "other bits", "same bits, taken", "not timed, does not launch"]
    for number, (line, end) in enumerate(zip(lines[1:6], ends, strict=True), 1):
        assert line.startswith(f"    algorithm {number}, ") and line.endswith(f", {end}"), line
    assert " accumulate: " in lines[6]
    assert any(", gelu fused: algorithm 3" in line for line in lines)
    assert any(", gelu not fused: algorithm 2" in line for line in lines)


def test_nonsense_order_is_refused(builder: Builder) -> None:
    result = run(builder.program("faults"), "missing_barrier", order="random:x")
    assert result.stdout == "error: PYGPT_EMULATION_ORDER is not forward, reverse or random:SEED\n"


@pytest.mark.parametrize("source", ["kernels", "faults", "matmul"])
def test_nvcc_compiles_the_same_files(source: str, tmp_path: Path) -> None:
    architectures = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90)]
    command = [required.nvcc(), "-std=c++17", *architectures, "-Werror=all-warnings", "-I", str(ROOT / "cuda"), "-c"]
    file = SOURCES / f"{source}.cu"
    result = subprocess.run([*command, str(file), "-o", str(tmp_path / "x.o")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# ---- planted faults that end the launch with a sentence ----


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ("barrier_not_reached", ["__syncthreads", "is not reached by all 256 threads", "threads 200-255 have exited"]),
        ("barriers_differ", ["__syncthreads", "waits at another one"]),
        ("mask_without_caller", ["__shfl_down_sync", "mask 0x0000ffff"]),
        ("mask_with_exited_lane", ["__shfl_xor_sync", "its mask 0xffffffff names", "threads 20-255 have exited"]),
        ("mask_with_diverged_lane", ["its mask 0xffffffff names", "threads 16-31 wait in __syncthreads"]),
        ("mask_differs", ["0xfffffff0", "0xffffffff", "waits in __shfl_xor_sync"]),
        ("source_outside_mask", ["reads from lane 9, which is not in the mask 0x000000ff"]),
        ("active_mask", ["which is not in the mask"]),
        ("misaligned_copy", ["cp_async", "not a multiple of 16"]),
        ("too_much_shared", ["needs more than the 49152 bytes"]),
    ],
)
def test_fault_is_reported(builder: Builder, fault: str, parts: list[str], order: str) -> None:
    result = run(builder.program("faults"), fault, order=order)
    assert result.returncode == 1 and not result.stderr
    assert result.stdout.startswith(f"error: kernel {fault}, block (0,0,0)")
    assert "faults.cu:" in result.stdout
    for part in parts:
        assert part in result.stdout


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("fault", "where"), [("global_tail", "after the last"), ("global_head", "before the first")])
def test_what_is_written_beside_a_buffer_is_reported(builder: Builder, fault: str, where: str, order: str) -> None:
    result = run(builder.program("faults"), fault, order=order)
    assert result.returncode == 1 and not result.stderr
    sentence = f"something is written {where} of the 1024 bytes (256 floats) of a buffer: is a loop too long?"
    assert result.stdout == f"error: kernel {fault}: {sentence}\n"


# ---- planted faults that the order shows: equal bits are expected in every order ----


def bits(builder: Builder, fault: str, order: str) -> str:
    result = run(builder.program("faults"), fault, order=order)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.parametrize(
    "fault",
    [
        "missing_barrier",
        "missing_second_barrier",
        "missing_syncwarp",
        "blocks_in_order",
        "missing_copy_wait",
        "copy_waits_for_too_few",
        "uninitialised_shared",
        "uninitialised_shared_integer",
        "uninitialised_global",
    ],
)
def test_fault_changes_with_the_order(builder: Builder, fault: str) -> None:
    seen = [bits(builder, fault, order) for order in ORDERS]
    assert len(set(seen)) > 1
    assert seen == [bits(builder, fault, order) for order in ORDERS]  # each order itself is repeatable


@pytest.mark.parametrize(
    "fault",
    ["missing_barrier", "missing_copy_wait", "copy_waits_for_too_few", "uninitialised_shared", "uninitialised_global"],
)
def test_fault_shows_as_nan(builder: Builder, fault: str) -> None:
    words = [int(word, 16) for word in bits(builder, fault, "forward").split()]
    assert any(word & 0x7FFFFFFF > 0x7F800000 for word in words)


# ---- planted faults that the sanitizers find ----


@pytest.mark.parametrize("fault", ["global_tail", "global_head", "shared_tail", "dynamic_shared_tail"])
def test_address_sanitizer_finds_overrun(builder: Builder, fault: str) -> None:
    result = run(builder.program("faults", "address"), fault)
    assert result.returncode != 0
    assert "AddressSanitizer" in result.stderr
    assert f"in kernel {fault}, block (0,0,0), thread" in result.stderr


def test_address_sanitizer_survives_abandoned_blocks(builder: Builder) -> None:
    result = run(builder.program("faults", "address"), "barrier_not_reached")
    assert "is not reached by all 256 threads" in result.stdout and not result.stderr


@pytest.mark.parametrize("fault", ["missing_barrier", "missing_second_barrier", "missing_syncwarp", "blocks_in_order"])
def test_thread_sanitizer_finds_race(builder: Builder, fault: str) -> None:
    result = run(builder.program("faults", "thread"), fault)
    assert "ThreadSanitizer: data race" in result.stderr
    assert fault in result.stderr


# ---- a debugger ----


def test_gdb_stops_inside_a_kernel(builder: Builder) -> None:
    gdb = shutil.which("gdb")
    if not gdb:
        pytest.skip("needs gdb")
    commands = [
        "break row_sums if threadIdx.x == 70 && blockIdx.x == 2",
        "run",
        "print threadIdx",
        "print columns",
        "backtrace",
    ]
    arguments = [word for command in commands for word in ("-ex", command)]
    path = builder.program("kernels")
    result = subprocess.run(
        [gdb, "-q", "-nx", "-batch", *arguments, str(path)], capture_output=True, text=True, timeout=120
    )
    if "ptrace" in result.stderr:
        pytest.skip("gdb may not trace programs here")
    assert "{x = 70, y = 0, z = 0}" in result.stdout
    assert "= 777" in result.stdout
    assert "#0  row_sums" in result.stdout and "emulation_start" in result.stdout
    assert "corrupt" not in result.stdout + result.stderr
