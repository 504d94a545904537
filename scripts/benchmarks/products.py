"""Matrix products of GPT-2's shapes, against numpy's BLAS and torch.

Each linear layer asks for the three products of its forward and backward pass, which are the three ways in which an
operand can be transposed:

    y = x w        dx = dy wᵀ        dw = xᵀ dy          w: (in,out), or (out,in) for the head, which is wte
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.session import Session
from benchmarks.table import number, percent, ratio, render
from benchmarks.worker import Timing, Worker, take_turns
from pygpt.backends.library import cpu_library, ffi
from pygpt.backends.pointers import kernel_table
from pygpt.model import set_threads

Operands = tuple[NDArray[np.float32], NDArray[np.float32]]

LAYERS = ((768, 2304), (768, 768), (768, 3072), (3072, 768), (768, 50257))
ROWS = (256, 1024, 4096)
CHARACTER_LAYER = (768, 128, 384)  # queries, keys and values of the preset bytes
LARGE_ROWS = 1024  # from here on a product is large
HEAD = 50257
FORMS = ("y", "dx", "dw")


@dataclass(frozen=True)
class Product:
    """One of the three products of a linear layer with (rows, inputs) and (rows, outputs)."""

    rows: int
    inputs: int
    outputs: int
    form: str  # of FORMS
    tied: bool = False  # the weight lies (outputs, inputs)

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.inputs * self.outputs

    @property
    def sizes(self) -> tuple[int, int, int]:
        """M, N, K: op(a) is (M,K), op(b) is (K,N)."""
        rows, inputs, outputs = self.rows, self.inputs, self.outputs
        if self.form == "dw":
            return (outputs, inputs, rows) if self.tied else (inputs, outputs, rows)
        return (rows, outputs, inputs) if self.form == "y" else (rows, inputs, outputs)

    @property
    def transposed(self) -> tuple[bool, bool]:
        """Whether a lies (K,M), and whether b lies (N,K)."""
        if self.form == "dw":
            return True, False
        return False, (self.form == "y") == self.tied

    @property
    def formula(self) -> str:
        """With wᵀ where the product takes the weight transposed from how it lies."""
        if self.form == "dw":
            return "dw = dyᵀ x" if self.tied else "dw = xᵀ dy"
        x = "x" if self.form == "y" else "dy"
        return f"{self.form} = {x} w{'ᵀ' if self.transposed[1] else ''}"

    def operands(self) -> Operands:
        """a and b as they lie in memory, with random numbers from -1/2 to 1/2."""
        M, N, K = self.sizes
        transpose_a, transpose_b = self.transposed
        rng = np.random.default_rng(0)
        shapes = ((K, M) if transpose_a else (M, K)), ((N, K) if transpose_b else (K, N))
        a, b = (rng.random(shape, np.float32) - np.float32(0.5) for shape in shapes)
        return a, b


@dataclass(frozen=True)
class PygptProducts:
    """This library's; operands are float32, in bfloat16 they are rounded on the way."""

    threads: int
    dtype: str
    kernels: str
    name: str = "pygpt"

    def prepare(self, case: Product) -> Callable[[], Any]:
        """A function that returns c, as on the other sides."""
        set_threads(self.threads)
        matmul = kernel_table(cpu_library(), self.kernels, self.dtype).matmul
        (a, b), (M, N, K) = case.operands(), case.sizes
        c = np.empty((M, N), np.float32)
        pointers = (ffi().from_buffer("float[]", array) for array in (c, a, b))  # they keep the arrays alive
        arguments = *pointers, M, N, K, *case.transposed, False

        def run() -> Any:
            matmul(*arguments)
            return c

        return run


@dataclass(frozen=True)
class NumpyProducts:
    """numpy's BLAS."""

    threads: int
    name: str = "numpy"

    def prepare(self, case: Product) -> Callable[[], Any]:
        a, b = (array.T if turned else array for array, turned in zip(case.operands(), case.transposed, strict=True))
        c = np.empty(case.sizes[:2], np.float32)

        return lambda: np.matmul(a, b, out=c)


@dataclass(frozen=True)
class TorchProducts:
    """torch.mm; in bfloat16 its operands and its result are that from the start."""

    threads: int
    dtype: str
    name: str = "torch"

    def prepare(self, case: Product) -> Callable[[], Any]:
        torch: Any = importlib.import_module("torch")
        torch.set_num_threads(self.threads)
        dtype = getattr(torch, self.dtype)
        operands = [torch.from_numpy(array).to(dtype) for array in case.operands()]
        a, b = (array.T if turned else array for array, turned in zip(operands, case.transposed, strict=True))
        c = torch.empty(case.sizes[:2], dtype=dtype)

        return lambda: torch.mm(a, b, out=c)


def cases(quick: bool) -> list[Product]:
    """What is measured."""
    if quick:
        layers = [(24, 16, 48, False), (24, 16, 97, True)]
    else:
        layers = [(rows, *layer, layer[1] == HEAD) for rows in ROWS for layer in LAYERS]
        layers.append((*CHARACTER_LAYER, False))
    return [Product(*layer[:3], form, layer[3]) for layer in layers for form in FORMS]


def measure(session: Session) -> dict[str, Any]:
    """By dtype, the products with GFLOP/s and ratios, None where an alternative is absent."""
    return {dtype: _measure(session, dtype) for dtype in session.dtypes}


def _measure(session: Session, dtype: str) -> dict[str, Any]:
    workers = [Worker(PygptProducts(session.threads, dtype, session.kernels))]
    if dtype == "float32":
        workers.append(Worker(NumpyProducts(session.threads)))
    if session.torch != "none":
        workers.append(Worker(TorchProducts(session.threads, dtype)))
    names = [worker.side.name for worker in workers]
    rows: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    try:
        session.say(f"products, {dtype}, of " + ", ".join(names))
        for case in tqdm(cases(session.quick), desc=f"products, {dtype}", disable=None, leave=False):
            *timings, peak = take_turns(
                [*((worker, case) for worker in workers), (session.peaks, dtype)], session.turns
            )
            rows.append(_row(case, dict(zip(names, timings, strict=True)), peak.median_result))
            absent |= {name: t.absent for name, t in zip(names, timings, strict=True) if t.absent is not None}
    finally:
        for worker in workers:
            worker.close()
    return {"products": rows, "absent": absent}


def _row(case: Product, timings: dict[str, Timing], peak: float) -> dict[str, Any]:
    seconds = {name: timing.median for name, timing in timings.items()}
    own = seconds["pygpt"]
    assert own is not None  # its failure is a UserError
    M, N, K = case.sizes
    return {
        **asdict(case),
        "formula": case.formula,
        "M": M,
        "N": N,
        "K": K,
        "gflops": {name: None if s is None else case.flops / s / 1e9 for name, s in seconds.items()},
        "peak_gflops": peak / 1e9,
        "of_peak": case.flops / own / peak,
        "ratio": {name: None if s is None else s / own for name, s in seconds.items() if name != "pygpt"},
    }


def table(session: Session, found: dict[str, Any]) -> str:
    return "\n\n".join(_table(session, dtype, values) for dtype, values in found.items())


def _table(session: Session, dtype: str, found: dict[str, Any]) -> str:
    others = list(found["products"][0]["ratio"])
    head = ["rows", "in", "out", "product", "pygpt", "of peak"]
    for other in others:
        head += [other, "ratio"]
    rows: list[Sequence[str]] = []
    for row in found["products"]:
        cells = [str(row[name]) for name in ("rows", "inputs", "outputs", "formula")]
        cells += [number(row["gflops"]["pygpt"]), percent(row["of_peak"])]
        for other in others:
            cells += [number(row["gflops"][other]), ratio(row["ratio"][other])]
        rows.append(cells)
    title = f"matrix products, {dtype}, GFLOP/s, {session.median}\n  ratio: how many times faster pygpt is"
    notes = [f"{name}: {reason}" for name, reason in found["absent"].items()]
    return render(title, head, rows, left=0, notes=[*_extremes(found["products"], others), *notes])


def _extremes(rows: Sequence[dict[str, Any]], others: Sequence[str]) -> list[str]:
    """Where this library is at its worst."""
    large = [row for row in rows if row["rows"] >= LARGE_ROWS] or list(rows)
    lines = [f"least of peak from {large[0]['rows']} rows on: {_place(large, lambda row: row['of_peak'], percent)}"]
    for other in others:
        measured = [row for row in rows if row["ratio"][other] is not None]
        if measured:
            place = _place(measured, lambda row, other=other: row["ratio"][other], ratio)  # type: ignore[misc]
            lines.append(f"least against {other}: {place}")
    return lines


def _place(rows: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], float], text: Callable[[float], str]) -> str:
    least = min(rows, key=key)
    return f"{text(key(least))}, {least['rows']} x {least['inputs']} x {least['outputs']}, {least['formula']}"
