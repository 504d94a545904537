"""What the sections of the benchmark share."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from benchmarks.peaks import Peaks
from benchmarks.worker import Turns, Worker
from pygpt.backends.interface import DTYPES
from pygpt.backends.library import available_cores
from pygpt.config import MODEL_SIZES, GPT2Config
from pygpt.errors import UserError
from pygpt.memory import check_memory
from pygpt.model import memory_needed

ENOUGH_REPEATS = 5  # for a claim
TORCH = ("all", "eager", "none")
TINY = GPT2Config(vocab_size=97, n_positions=16, n_embd=32, n_layer=2, n_head=2)
TINY_TILES = replace(TINY, n_positions=128, n_embd=128)  # of head size 64, for which CUDA has attention in tiles


@dataclass(frozen=True)
class Session:
    """The settings of a benchmark, and the peaks that everything is measured beside.

    Raises UserError when a setting is out of its range.
    """

    threads: int
    repeats: int
    dtypes: tuple[str, ...] = DTYPES
    kernels: str = "fast"
    recompute: str = "cheap"  # in whole steps; layers are measured with "none", and memory with each
    torch: str = "all"  # which of its alternatives: "all", "eager", "none"
    quick: bool = False  # small shapes and short samples: whether it runs, not how fast

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"repeats is {self.repeats}, expected at least 1")
        if not 1 <= self.threads <= available_cores():
            raise UserError(
                f"threads is {self.threads}, expected 1 to {available_cores()}, the cores that this process may use"
            )

    @property
    def config(self) -> GPT2Config:
        """The model that is measured: GPT-2 124M, or a tiny one."""
        return TINY if self.quick else MODEL_SIZES["gpt2"]

    @cached_property
    def turns(self) -> Turns:
        return Turns(self.repeats, seconds=0.002) if self.quick else Turns(self.repeats)

    @cached_property
    def peaks(self) -> Worker:
        """Takes turns with everything else."""
        return Worker(Peaks(self.threads, quick=self.quick))

    def close(self) -> None:
        if "peaks" in self.__dict__:
            self.peaks.close()

    def memory_needed(self, config: GPT2Config, B: int, T: int, dtype: str, recompute: str | None = None) -> int:
        """Bytes that this library's model takes in training."""
        kind: dict[str, Any] = {"dtype": dtype, "kernels": self.kernels, "recompute": recompute or self.recompute}
        return memory_needed(config, batch_size=B, seq_len=T, training=True, **kind)

    def check_memory(self, needed: int) -> None:
        """Raises UserError when the machine has less."""
        check_memory(needed, "--only can leave this section out")

    @property
    def median(self) -> str:
        """For the head of a table."""
        few = "" if self.repeats >= ENOUGH_REPEATS else f", fewer than the {ENOUGH_REPEATS} that a claim needs"
        return f"median of {self.repeats}{few}"

    def say(self, sentence: str) -> None:
        """What is going on, beside the tables."""
        print(f"... {sentence}", file=sys.stderr, flush=True)

    def say_duration(self, what: str, seconds: float) -> None:
        self.say(f"{what}: about {seconds:.0f} s" if seconds < 100 else f"{what}: about {seconds / 60:.0f} minutes")
