"""What the processor can do at best: csrc/peaks.c."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.table import render
from benchmarks.worker import take_turns
from pygpt.backends.interface import DTYPES
from pygpt.backends.library import cpu_library, last_error
from pygpt.model import set_threads

if TYPE_CHECKING:
    from benchmarks.session import Session

RATES = ("float32", "bfloat16")
MEMORY = ("copy", "triad", "read")


@dataclass(frozen=True)
class Peaks:
    """A side whose cases are the names of the peaks, and whose results are FLOP/s or bytes/s."""

    threads: int
    quick: bool = False
    name: str = "pygpt"

    def prepare(self, case: str) -> Callable[[], float]:
        set_threads(self.threads)
        library = cpu_library()
        seconds = 0.002 if self.quick else 0.1
        if case in RATES:
            return lambda: float(library.pygpt_peak_flops(DTYPES.index(case), seconds))
        size = 2**22 if self.quick else 2**28  # several times the last cache

        def bandwidth() -> float:
            rate = float(library.pygpt_peak_bandwidth(MEMORY.index(case), size, seconds))
            if rate == 0:
                raise MemoryError(last_error(library))
            return rate

        return bandwidth


def measure(session: Session) -> dict[str, Any]:
    """The peaks alone: name -> median, least and largest."""
    names = RATES + MEMORY
    timings = take_turns([(session.peaks, name) for name in names], session.turns)
    return {
        name: {"median": timing.median_result, "least": min(timing.results), "largest": max(timing.results)}
        for name, timing in zip(names, timings, strict=True)
    }


def table(session: Session, found: dict[str, Any]) -> str:
    texts = {
        "float32": ("multiply-adds, float32", "GFLOP/s"),
        "bfloat16": ("products, bfloat16", "GFLOP/s"),
        "copy": ("memory, a = b", "GB/s"),
        "triad": ("memory, a = b + f c", "GB/s"),
        "read": ("memory, sum of a", "GB/s"),
    }
    rows: list[Sequence[str]] = [
        (texts[name][0], *(f"{values[key] / 1e9:.1f}" for key in ("median", "least", "largest")), texts[name][1])
        for name, values in found.items()
    ]
    return render(f"peaks, {session.median}", ("", "median", "least", "largest", ""), rows, left=1)
