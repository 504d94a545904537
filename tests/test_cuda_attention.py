"""Flash attention in bfloat16 and in float32, emulated on the CPU, against the numpy reference; and faults in it."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import required
from test_emulation import COMPILERS, ORDERS, ROOT, SOURCES, Builder, builder, run

from pygpt.comparing.metrics import TEACHER_FORCED, difference
from pygpt.reference import attention
from pygpt.reference import dropout as dropout_layer
from pygpt.reference.arrays import Array
from pygpt.reference.bfloat16 import round_bfloat16
from pygpt.reference.dropout import Dropout

__all__ = ["builder"]  # a fixture

pytestmark = pytest.mark.skipif(not COMPILERS, reason="needs g++ or clang++")

HEAD_SIZES = (32, 64, 80, 96, 128)
FAMILIES = {"flash": "bfloat16", "wgmma": "bfloat16", "fma": "float32"}  # attention_FAMILY_forward.cu and its like
DROPOUT = Dropout(0.3, seed=2**40 + 1, site=2, step=3)


@dataclass(frozen=True)
class Problem:
    B: int
    T: int
    NH: int
    HS: int
    dropout: Dropout | None = None
    std: float = 1.0
    family: str = "flash"

    @property
    def dtype(self) -> str:
        return FAMILIES[self.family]

    def __str__(self) -> str:
        return f"{self.family}-B{self.B}-T{self.T}-NH{self.NH}-HS{self.HS}" + ("-dropout" if self.dropout else "")

    def inputs(self) -> tuple[Array, Array]:
        """qkv: (B,T,3C) and dy: (B,T,C), float32 that the dtype holds exactly."""
        draw = np.random.default_rng([self.B, self.T, self.NH, self.HS])
        C = self.NH * self.HS
        qkv = draw.normal(0, self.std, (self.B, self.T, 3 * C)).astype(np.float32)
        dy = draw.normal(size=(self.B, self.T, C)).astype(np.float32)
        return (round_bfloat16(qkv), round_bfloat16(dy)) if self.dtype == "bfloat16" else (qkv, dy)

    def to_bytes(self, x: Array) -> bytes:
        return ((x.view(np.uint32) >> np.uint32(16)).astype(np.uint16) if self.dtype == "bfloat16" else x).tobytes()

    def from_bytes(self, values: bytes) -> Array:
        if self.dtype == "float32":
            return np.frombuffer(values, np.float32)
        return (np.frombuffer(values, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


@dataclass(frozen=True)
class Result:
    y: Array  # (B,T,C)
    lse: Array  # (B,NH,T)
    dqkv: Array  # (B,T,3C)


def program(builder: Builder, family: str, build: str = "plain") -> Path:
    return builder.program(f"attention_{family}", build)


def variants(family: str) -> list[tuple[int, Dropout | None]]:
    """Head sizes, with and without dropout, that a family has kernels for."""
    if family == "wgmma":
        return [(64, None)]
    return [(HS, dropout) for HS in HEAD_SIZES for dropout in (None, DROPOUT)]


def compute(
    path: Path, problem: Problem, folder: Path, inputs: tuple[Array, Array] | None = None, **settings: str
) -> Result:
    """What the kernels in the program give."""
    B, T, NH, C = problem.B, problem.T, problem.NH, problem.NH * problem.HS
    drop = problem.dropout or Dropout(0.0)
    folder.mkdir(exist_ok=True)
    (folder / "in").write_bytes(b"".join(map(problem.to_bytes, inputs or problem.inputs())))
    sizes = (B, T, NH, problem.HS, repr(drop.p), drop.seed, drop.site, drop.step)
    result = run(path, *map(str, sizes), str(folder / "in"), str(folder / "out"), **settings)
    assert result.returncode == 0 and not result.stderr, result.stdout + result.stderr
    values = (folder / "out").read_bytes()
    ends = np.cumsum([len(problem.to_bytes(np.zeros(B * T * C, np.float32))), 4 * B * NH * T])
    y, lse, dqkv = values[: ends[0]], values[ends[0] : ends[1]], values[ends[1] :]
    return Result(
        problem.from_bytes(y).reshape(B, T, C),
        np.frombuffer(lse, np.float32).reshape(B, NH, T),
        problem.from_bytes(dqkv).reshape(B, T, 3 * C),
    )


def exact(problem: Problem, found: Result) -> Result:
    """In float64. The backward pass gets y and lse as found, because the kernels do."""
    qkv, dy = (x.astype(np.float64) for x in problem.inputs())
    y, lse = attention.forward(qkv, problem.NH, problem.dropout)
    given = found.y.astype(np.float64), found.lse.astype(np.float64)
    return Result(y, lse, attention.backward(dy, *given, qkv, problem.NH, problem.dropout))


def rounded(problem: Problem, found: Result) -> Result:
    """In float32, rounded to bfloat16 where the kernels on tensor cores round: P, dS and the results."""
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
    truth = exact(problem, found)
    emulated = rounded(problem, found) if problem.dtype == "bfloat16" else truth  # ρ is asked of bfloat16 only
    bound = TEACHER_FORCED[problem.dtype]
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
    *(Problem(2, T, 3, 64, family="wgmma") for T in (1, 7, 63, 64, 65, 130)),
    *(Problem(1, T, 1, 64, family="wgmma") for T in (192, 257, 300, 513)),
    Problem(1, 100, 1, 64, std=2.0, family="wgmma"),
    *(Problem(2, T, 3, 64, family="fma") for T in (1, 2, 31, 33, 64, 65)),
    *(Problem(1, T, 1, 64, DROPOUT, family="fma") for T in (1, 31, 64, 132)),
    *(Problem(1, T, 2, HS, family="fma") for HS in HEAD_SIZES for T in (65, 129)),
    *(Problem(1, T, 2, HS, DROPOUT, family="fma") for HS in HEAD_SIZES if HS != 64 for T in (68, 129)),
    Problem(1, 257, 1, 64, family="fma"),
    Problem(1, 100, 1, 64, std=2.0, family="fma"),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_against_the_reference(builder: Builder, problem: Problem, tmp_path: Path) -> None:
    assert not complaints(problem, compute(program(builder, problem.family), problem, tmp_path))


def same_bits(a: Result, b: Result) -> bool:
    return (
        a.y.tobytes() == b.y.tobytes() and a.lse.tobytes() == b.lse.tobytes() and a.dqkv.tobytes() == b.dqkv.tobytes()
    )


@pytest.mark.parametrize(
    "problem",
    [Problem(1, 131, 2, HS, dropout, family=family) for family in FAMILIES for HS, dropout in variants(family)],
    ids=str,
)
def test_same_bits_in_every_order(builder: Builder, problem: Problem, tmp_path: Path) -> None:
    path = program(builder, problem.family)
    first = compute(path, problem, tmp_path)
    for order in [*ORDERS, "random:22"]:
        assert same_bits(first, compute(path, problem, tmp_path, order=order)), order


@pytest.mark.parametrize("family", FAMILIES)
def test_address_sanitizer_finds_nothing(builder: Builder, family: str, tmp_path: Path) -> None:
    path = program(builder, family, "address")
    for HS, dropout in variants(family):
        compute(path, Problem(1, 131, 2, HS, dropout, family=family), tmp_path)


def test_float32_fits_into_the_shared_memory_of_7_5(builder: Builder, tmp_path: Path) -> None:
    path = program(builder, "fma")
    for HS in HEAD_SIZES:
        problem = Problem(1, 33, 1, HS, family="fma")
        assert not complaints(problem, compute(path, problem, tmp_path, PYGPT_EMULATION_COMPUTE_CAPABILITY="7.5"))


@pytest.mark.parametrize("family", FAMILIES)
def test_later_positions_change_nothing(builder: Builder, family: str, tmp_path: Path) -> None:
    """Not one bit of y and lse before them; nor of dq, which sees later positions through nothing else."""
    path, problem, t = program(builder, family), Problem(1, 130, 2, 64, family=family), 77
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


@pytest.mark.parametrize("family, precision", [("flash", 2**-8), ("wgmma", 2**-8), ("fma", 2**-19)])
def test_key_gradients_sum_to_zero(builder: Builder, family: str, precision: float, tmp_path: Path) -> None:
    """One vector added to all keys changes nothing: up to rounding, the rows of dS sum to 0."""
    problem = Problem(1, 130, 2, 64, family=family)
    dk = np.split(compute(program(builder, family), problem, tmp_path).dqkv, 3, -1)[1]
    assert np.linalg.norm(dk.sum(1)) <= precision * np.linalg.norm(dk) * math.sqrt(problem.T)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_head_sizes_are_refused(builder: Builder, family: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(4 * 8 * 48))
    sizes = ("1", "2", "1", "48", "0", "0", "0", "0")
    result = run(program(builder, family), *sizes, str(tmp_path / "in"), str(tmp_path / "out"))
    assert result.returncode == 1 and "error: invalid argument" in result.stdout


# ---- faults, planted into a copy ----


def copy_of_the_kernels(folder: Path) -> Path:
    """With one head size, to be compiled faster."""
    shutil.copytree(ROOT / "cuda", folder / "cuda", ignore=shutil.ignore_patterns("emulation"))
    (folder / "csrc").symlink_to(ROOT / "csrc")
    replace(folder / "cuda" / "layers" / "attention_tiles.cuh", *((case(HS), "") for HS in HEAD_SIZES if HS != 64))
    return folder / "cuda"


def case(HS: int) -> str:
    return f"case {HS}: return f(std::integral_constant<int, {HS}>{{}});"


def replace(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1, f"{path.name} has {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    path.write_text(text)


def barrier(what: str) -> str:
    return f"__syncthreads();   // {what}"


SHARED_LOOP = barrier("this tile is there, and nobody reads the one before it any more")
KEYS_READ = barrier("the values are there, and nobody reads the keys any more")
VALUES_READ = barrier("the keys are there, and nobody reads the values before them any more")
# file of the kernels, what stands there, what comes in its place, and the results that must show it
FAULTS = {
    "no barrier": ("flash_tile.cuh", SHARED_LOOP, "", "y dk dq"),
    "no wait": ("flash_tile.cuh", "cp_async_wait<0>();", "cp_async_wait<1>();", "y dk dq"),
    "forward: one key of the future": ("flash_forward.cu", "if (key > query)", "if (key > query + 1)", "y"),
    "forward: the diagonal masked": ("flash_forward.cu", "if (key > query)", "if (key >= max(query, 1))", "y"),
    "forward: sums not scaled": ("flash_forward.cu", "sum[m][half] *= shrink;", "", "y"),
    "keys: one query of the past": (
        "flash_backward.cu",
        "key + i / 2 * 8 > query + i % 2",
        "key + i / 2 * 8 > query + i % 2 + 1",
        "dk",
    ),
    "queries: the diagonal masked": (
        "flash_backward.cu",
        "key + i % 2 > query + i / 2 * 8",
        "key + i % 2 >= query + i / 2 * 8",
        "dq",
    ),
    "wgmma forward: the diagonal masked": ("wgmma_forward.cu", "> 16 * warp + g", ">= 16 * warp + g", "y"),
    "wgmma forward: a tile too few": (
        "wgmma_forward.cu",
        "stream_tiles(0, diagonal + 1,",
        "stream_tiles(0, diagonal,",
        "y",
    ),
    "wgmma forward: output not scaled": ("wgmma_forward.cu", "shrink != 1)", "shrink > 1)", "y"),
    "wgmma keys: a query of the past": ("wgmma_backward.cu", "> i / 4 * 8", "> 1 + i / 4 * 8", "dk"),
    "wgmma keys: another query's D": (
        "wgmma_backward.cu",
        "two_rows(n).y, of_column[n][1] = two_rows(n).w;\n        wgmma",
        "two_rows(n).w, of_column[n][1] = two_rows(n).y;\n        wgmma",
        "dk",
    ),
    "wgmma queries: another row": ("wgmma_backward.cu", "of_row[i / 2 % 2].D", "of_row[i % 2].D", "dq"),
    "wgmma forward: scores read before the wait": (
        "wgmma_forward.cu",
        "wgmma_wait<0>(s[0]);",
        "wgmma_wait<1>(s[0]);",
        "y",
    ),
    "wgmma keys: no wait for dP": ("wgmma_backward.cu", "wgmma_wait<1>(dp[0]);", "wgmma_wait<2>(dp[0]);", "dk"),
    "wgmma: another part of the channels": (
        "wgmma_tile.cuh",
        "wgmma_rows<true>(c[0], a, b, k)",
        "wgmma_rows<true>(c[0], a, b, 0)",
        "y dk dq",
    ),
    "dropout: lanes exchanged": ("flash_dropout.cuh", "drawn >> 4 * r & 15", "drawn >> 4 * (3 - r) & 15", "dk"),
    "fma forward: keys overwritten": ("fma_forward.cu", KEYS_READ, "", "y"),
    "fma forward: values overwritten": ("fma_forward.cu", VALUES_READ, "", "y"),
    "fma forward: output not scaled": ("fma_forward.cu", "a[i][n] *= shrink;", ";", "y"),
    "fma forward: one key of the future": (
        "fma_forward.cu",
        "first_query + Shape::row(i / N))",
        "1 + first_query + Shape::row(i / N))",
        "y",
    ),
    "fma queries: values overwritten": (
        "fma_backward.cu",
        KEYS_READ.replace("values are", "keys are").replace("reads the keys", "reads the values"),
        "",
        "dq",
    ),
    "fma queries: the diagonal masked": (
        "fma_backward.cu",
        "key + Shape::column(j) > first",
        "key + Shape::column(j) >= first",
        "dq",
    ),
    "fma keys: queries overwritten": ("fma_backward.cu", barrier("nobody reads the queries any more"), "", "dk"),
    "fma keys: dropped probabilities counted": ("fma_backward.cu", "if (drop) p[i][j] = 0;", "", "dv"),
    "fma: another lane's scores": ("fma_tile.cuh", "four + k / N * 8", "(four ^ 1) + k / N * 8", "y dk dv dq"),
    "fma dropout: a draw too early": (
        "fma_tile.cuh",
        "draws.four<1>(first + 4) << 4",
        "draws.four<1>(first) << 4",
        "y dv",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_caught(builder: Builder, fault: str, tmp_path: Path) -> None:
    file, old, new, where = FAULTS[fault]
    family = file.split("_")[0]
    copy = copy_of_the_kernels(tmp_path)
    replace(copy / "layers" / f"attention_{file}", (old, new))
    source = ["-iquote", copy, "-x", "c++", SOURCES / f"attention_{family}.cu", "-x", "none"]
    objects = builder.emulation("plain", COMPILERS[0])
    path = builder.make(f"fault {fault}", COMPILERS[0], lambda: [*source, *objects])
    T = 131 if "too early" in fault else 132  # four keys share a draw in 132
    problem = Problem(1, T, 1, 64, DROPOUT if "drop" in fault else None, family=family)
    with np.errstate(invalid="ignore"):
        found = complaints(problem, compute(path, problem, tmp_path))
    for part in where.split():
        assert any(words.startswith(f"{part}:") for words in found), found


# ---- nvcc ----


@pytest.mark.parametrize(
    "family, architecture",
    [("flash", "sm_80"), ("flash", "sm_90"), ("wgmma", "sm_90a"), ("fma", "sm_75"), ("fma", "sm_80"), ("fma", "sm_90")],
)
def test_no_register_is_spilled(family: str, architecture: str, tmp_path: Path) -> None:
    nvcc = required.nvcc()
    copy = copy_of_the_kernels(tmp_path)
    for file in ("forward", "backward"):
        source = copy / "layers" / f"attention_{family}_{file}.cu"
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
