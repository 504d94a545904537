"""Flash attention on tensor cores, emulated on the CPU, against the numpy reference; and faults planted into it."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from test_emulation import COMPILERS, ORDERS, ROOT, SOURCES, Builder, builder, run

from pygpt.metrics import TEACHER_FORCED, difference
from pygpt.reference import attention
from pygpt.reference import dropout as dropout_layer
from pygpt.reference.arrays import Array
from pygpt.reference.bfloat16 import round_bfloat16
from pygpt.reference.dropout import Dropout

__all__ = ["builder"]  # a fixture

pytestmark = pytest.mark.skipif(not COMPILERS, reason="needs g++ or clang++")

HEAD_SIZES = (32, 64, 80, 96, 128)
DROPOUT = Dropout(0.3, seed=2**40 + 1, site=2, step=3)


@dataclass(frozen=True)
class Problem:
    B: int
    T: int
    NH: int
    HS: int
    dropout: Dropout | None = None
    std: float = 1.0

    def __str__(self) -> str:
        return f"B{self.B}-T{self.T}-NH{self.NH}-HS{self.HS}" + ("-dropout" if self.dropout else "")

    def inputs(self) -> tuple[Array, Array]:
        """qkv: (B,T,3C) and dy: (B,T,C), float32 that bfloat16 holds exactly."""
        draw = np.random.default_rng([self.B, self.T, self.NH, self.HS])
        C = self.NH * self.HS
        qkv = draw.normal(0, self.std, (self.B, self.T, 3 * C)).astype(np.float32)
        return round_bfloat16(qkv), round_bfloat16(draw.normal(size=(self.B, self.T, C)).astype(np.float32))


@dataclass(frozen=True)
class Result:
    y: Array  # (B,T,C)
    lse: Array  # (B,NH,T)
    dqkv: Array  # (B,T,3C)


def to_bits(x: Array) -> Array:
    return (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def from_bits(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def compute(
    path: Path, problem: Problem, folder: Path, inputs: tuple[Array, Array] | None = None, **settings: str
) -> Result:
    """What the kernels in the program give."""
    B, T, NH, C = problem.B, problem.T, problem.NH, problem.NH * problem.HS
    drop = problem.dropout or Dropout(0.0)
    folder.mkdir(exist_ok=True)
    (folder / "in").write_bytes(b"".join(to_bits(x).tobytes() for x in inputs or problem.inputs()))
    sizes = (B, T, NH, problem.HS, repr(drop.p), drop.seed, drop.site, drop.step)
    result = run(path, *map(str, sizes), str(folder / "in"), str(folder / "out"), **settings)
    assert result.returncode == 0 and not result.stderr, result.stdout + result.stderr
    values = (folder / "out").read_bytes()
    ends = np.cumsum([2 * B * T * C, 4 * B * NH * T])
    y, lse, dqkv = values[: ends[0]], values[ends[0] : ends[1]], values[ends[1] :]
    return Result(
        from_bits(np.frombuffer(y, np.uint16)).reshape(B, T, C),
        np.frombuffer(lse, np.float32).reshape(B, NH, T),
        from_bits(np.frombuffer(dqkv, np.uint16)).reshape(B, T, 3 * C),
    )


def exact(problem: Problem, found: Result) -> Result:
    """In float64. The backward pass gets y and lse as found, because the kernels do."""
    qkv, dy = (x.astype(np.float64) for x in problem.inputs())
    y, lse = attention.forward(qkv, problem.NH, problem.dropout)
    given = found.y.astype(np.float64), found.lse.astype(np.float64)
    return Result(y, lse, attention.backward(dy, *given, qkv, problem.NH, problem.dropout))


def rounded(problem: Problem, found: Result) -> Result:
    """In float32, rounded to bfloat16 where the kernels round: P, dS and the results."""
    (qkv, dy), drop, NH = problem.inputs(), problem.dropout, problem.NH
    q, k, v = attention.split(qkv, NH)
    s = attention.scores(q, k)
    largest = s.max(-1, keepdims=True)
    p = np.exp(s - largest)
    total = p.sum(-1, keepdims=True)
    y = dropout_layer.forward(round_bfloat16(p), drop).astype(np.float32) @ v / total
    lse = largest + np.log(total)

    p = attention.probabilities(found.lse, qkv, NH)
    ds = round_bfloat16(attention.scores_backward(dy, found.y, p, v, drop).astype(np.float32))
    scale = np.float32(1 / math.sqrt(problem.HS))
    dq, dk = ds @ k * scale, ds.swapaxes(-1, -2) @ q * scale
    dv = dropout_layer.forward(round_bfloat16(p), drop).astype(np.float32).swapaxes(-1, -2) @ attention.heads(dy, NH)
    dqkv = np.concatenate([attention.merge(x) for x in (dq, dk, dv)], axis=-1)
    return Result(round_bfloat16(attention.merge(y)), lse[..., 0], round_bfloat16(dqkv))


def complaints(problem: Problem, found: Result) -> list[str]:
    """What is out of bounds."""
    truth, emulated = exact(problem, found), rounded(problem, found)
    bound = TEACHER_FORCED["bfloat16"]
    parts = {"y": (found.y, truth.y, emulated.y)}
    for i, name in enumerate(("dq", "dk", "dv")):
        parts[name] = tuple(np.split(x.dqkv, 3, -1)[i] for x in (found, truth, emulated))  # type: ignore[assignment]
    if problem.T == 1:  # one probability, which is 1: dq and dk are 0, but for the rounding of y
        parts["dqkv"] = found.dqkv, truth.dqkv, emulated.dqkv
        del parts["dq"], parts["dk"]
    words = [f"{name}: {w}" for name, of in parts.items() for w in bound.violations(difference(*of))]
    lse = difference(found.lse, truth.lse)  # never rounded to bfloat16
    return words + [f"lse: {w}" for w in TEACHER_FORCED["float32"].violations(lse)]


PROBLEMS = [
    *(Problem(2, T, 3, 64) for T in (1, 7, 63, 64, 65, 130)),
    *(Problem(1, T, 1, 64, DROPOUT) for T in (1, 63, 64, 132)),
    *(Problem(1, 130, 2, HS) for HS in HEAD_SIZES if HS != 64),
    *(Problem(1, 68, 2, HS, DROPOUT) for HS in HEAD_SIZES if HS != 64),
    Problem(1, 257, 1, 64),
    Problem(1, 100, 1, 64, std=2.0),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_against_the_reference(builder: Builder, problem: Problem, tmp_path: Path) -> None:
    assert not complaints(problem, compute(builder.program("attention"), problem, tmp_path))


def same_bits(a: Result, b: Result) -> bool:
    return (
        a.y.tobytes() == b.y.tobytes() and a.lse.tobytes() == b.lse.tobytes() and a.dqkv.tobytes() == b.dqkv.tobytes()
    )


@pytest.mark.parametrize("dropout", [None, DROPOUT], ids=["", "dropout"])
@pytest.mark.parametrize("HS", HEAD_SIZES)
def test_same_bits_in_every_order(builder: Builder, HS: int, dropout: Dropout | None, tmp_path: Path) -> None:
    path, problem = builder.program("attention"), Problem(1, 131, 2, HS, dropout)
    first = compute(path, problem, tmp_path)
    for order in [*ORDERS, "random:22"]:
        assert same_bits(first, compute(path, problem, tmp_path, order=order)), order


def test_address_sanitizer_finds_nothing(builder: Builder, tmp_path: Path) -> None:
    path = builder.program("attention", "address")
    for HS in HEAD_SIZES:
        for dropout in (None, DROPOUT):
            compute(path, Problem(1, 131, 2, HS, dropout), tmp_path)


def test_later_positions_change_nothing(builder: Builder, tmp_path: Path) -> None:
    """Not one bit of y and lse before them; nor of dq, which sees later positions through nothing else."""
    path, problem, t = builder.program("attention"), Problem(1, 130, 2, 64), 77
    qkv, dy = problem.inputs()
    first = compute(path, problem, tmp_path)
    qkv[:, t:] *= -2
    second = compute(path, problem, tmp_path, (qkv, dy))
    C = problem.NH * problem.HS
    for a, b in (
        (first.y[:, :t], second.y[:, :t]),
        (first.lse[..., :t], second.lse[..., :t]),
        (first.dqkv[:, :t, :C], second.dqkv[:, :t, :C]),
    ):
        assert a.tobytes() == b.tobytes()
    assert not np.array_equal(first.y[:, t:], second.y[:, t:])


def test_key_gradients_sum_to_zero(builder: Builder, tmp_path: Path) -> None:
    """One vector added to all keys changes nothing: up to rounding, the rows of dS sum to 0."""
    problem = Problem(1, 130, 2, 64)
    dk = np.split(compute(builder.program("attention"), problem, tmp_path).dqkv, 3, -1)[1]
    assert np.linalg.norm(dk.sum(1)) <= 2**-8 * np.linalg.norm(dk) * math.sqrt(problem.T)


def test_other_head_sizes_are_refused(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(2 * 8 * 48))
    sizes = ("1", "2", "1", "48", "0", "0", "0", "0")
    result = run(builder.program("attention"), *sizes, str(tmp_path / "in"), str(tmp_path / "out"))
    assert result.returncode == 1 and "error: invalid argument" in result.stdout


# ---- faults, planted into a copy ----


def copy_of_the_kernels(folder: Path) -> Path:
    """With one head size, to be compiled faster."""
    shutil.copytree(ROOT / "cuda", folder / "cuda", ignore=shutil.ignore_patterns("emulation"))
    (folder / "csrc").symlink_to(ROOT / "csrc")
    replace(folder / "cuda" / "layers" / "attention_flash_tile.cuh", *((case(HS), "") for HS in HEAD_SIZES if HS != 64))
    return folder / "cuda"


def case(HS: int) -> str:
    return f"case {HS}: return f(std::integral_constant<int, {HS}>{{}});"


def replace(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1, f"{path.name} has {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    path.write_text(text)


BARRIER = (
    "__syncthreads();   // this tile is there, and nobody reads the one before it any more\n        if (tile + 1 < "
)
FAULTS = {
    "forward: no barrier": ("forward.cu", BARRIER, "if (tile + 1 < ", "y"),
    "forward: no wait": ("forward.cu", "cp_async_wait<0>();", "cp_async_wait<1>();", "y"),
    "forward: one key of the future": ("forward.cu", "if (key > query)", "if (key > query + 1)", "y"),
    "forward: the diagonal masked": ("forward.cu", "if (key > query)", "if (key >= max(query, 1))", "y"),
    "forward: sums not scaled": ("forward.cu", "sum[m][half] *= shrink;", "", "y"),
    "keys: no barrier": ("backward.cu", BARRIER + "end)", "if (tile + 1 < end)", "dk"),
    "keys: one query of the past": (
        "backward.cu",
        "key + i / 2 * 8 > query + i % 2",
        "key + i / 2 * 8 > query + i % 2 + 1",
        "dk",
    ),
    "queries: no barrier": ("backward.cu", BARRIER + "key_tiles)", "if (tile + 1 < key_tiles)", "dq"),
    "queries: the diagonal masked": (
        "backward.cu",
        "key + i % 2 > query + i / 2 * 8",
        "key + i % 2 >= query + i / 2 * 8",
        "dq",
    ),
    "dropout: lanes exchanged": ("dropout.cuh", "drawn >> 4 * r & 15", "drawn >> 4 * (3 - r) & 15", "dk"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_caught(builder: Builder, fault: str, tmp_path: Path) -> None:
    file, old, new, where = FAULTS[fault]
    copy = copy_of_the_kernels(tmp_path)
    replace(copy / "layers" / f"attention_flash_{file}", (old, new))
    source = ["-iquote", copy, "-x", "c++", SOURCES / "attention.cu", "-x", "none"]
    objects = builder.emulation("plain", COMPILERS[0])
    path = builder.make(f"fault {fault}", COMPILERS[0], lambda: [*source, *objects])
    problem = Problem(1, 132, 1, 64, DROPOUT if "dropout" in fault else None)
    with np.errstate(invalid="ignore"):
        found = complaints(problem, compute(path, problem, tmp_path))
    assert any(words.startswith(f"{where}:") for words in found), found


# ---- nvcc ----


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_no_register_is_spilled(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("needs nvcc")
    copy = copy_of_the_kernels(tmp_path)
    for file in ("forward", "backward"):
        source = copy / "layers" / f"attention_flash_{file}.cu"
        command = [
            nvcc,
            "-std=c++17",
            f"-arch={architecture}",
            "-Xptxas",
            "-v",
            "-Werror=all-warnings",
            "-c",
            str(source),
        ]
        result = subprocess.run([*command, "-o", str(tmp_path / "x.o")], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        spills = re.findall(r"(\d+) bytes spill", result.stderr)
        assert spills and set(spills) == {"0"}, result.stderr
