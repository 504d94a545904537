"""Training steps, whole: a batch, forward, backward, clipping, AdamW. pygpt's and torch's, on equal models."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pygpt.config import GPT2Config
from pygpt.model import GPT2, set_threads
from pygpt.text.batches import TokenDataset
from pygpt.text.token_file import read_tokens

LEARNING_RATE, BETAS, WEIGHT_DECAY, LARGEST_NORM = 1e-4, (0.9, 0.95), 0.1, 1.0

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Step:
    """A case: what one step works on."""

    B: int
    T: int
    part: str = "whole"  # or "passes": forward and backward alone; or "update": clipping, AdamW, gradients to zero
    folder: str | None = None  # of token files, from which each step takes other windows; None: the same random batch

    def random_batch(self, vocab_size: int) -> tuple[Tokens, Tokens]:
        """tokens, targets: (B,T), the same on every side."""
        rows = np.random.default_rng(0).integers(0, vocab_size, (self.B, self.T + 1), np.int32)
        return rows[:, :-1].copy(), rows[:, 1:].copy()


@dataclass(frozen=True)
class PygptSteps:
    """A model of this library in training; a step returns its loss."""

    config: GPT2Config
    threads: int
    dtype: str
    kernels: str
    recompute: str = "none"
    name: str = "pygpt"

    @cached_property
    def model(self) -> GPT2:
        set_threads(self.threads)
        return GPT2(self.config, dtype=self.dtype, kernels=self.kernels, recompute=self.recompute)

    def prepare(self, case: Step) -> Callable[[], float | None]:
        model, batch = self.model, self._batches(case)

        def passes() -> float:
            return model.forward_backward(*batch())

        def update() -> None:
            model.clip_grad_norm(LARGEST_NORM)
            model.adamw_step(LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY)
            model.zero_grad()

        def whole() -> float:
            loss = passes()
            update()
            return loss

        parts: dict[str, Callable[[], float | None]] = {"whole": whole, "passes": passes, "update": update}
        return parts[case.part]

    def _batches(self, case: Step) -> Callable[[], tuple[Tokens, Tokens]]:
        if case.folder is None:
            same = case.random_batch(self.config.vocab_size)
            return lambda: same
        data, numbers = TokenDataset(case.folder, "train"), iter(range(2**31))
        return lambda: data.batch(next(numbers) * case.B, case.B, case.T, 0)


@dataclass(frozen=True)
class TorchSteps:
    """The same model in torch, as people write it: fused AdamW, and autocast for bfloat16."""

    config: GPT2Config
    threads: int
    dtype: str
    compiled: bool = False

    @property
    def name(self) -> str:
        return "torch.compile" if self.compiled else "torch eager"

    @cached_property
    def model(self) -> Any:
        torch: Any = importlib.import_module("torch")
        torch.set_num_threads(self.threads)
        model: Any = importlib.import_module("benchmarks.torch_gpt2").TorchGPT2(self.config)
        fresh = GPT2(self.config)
        model.load(fresh.parameters)
        return model

    @cached_property
    def optimizer(self) -> Any:
        torch: Any = importlib.import_module("torch")
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)

    def prepare(self, case: Step) -> Callable[[], float]:
        torch: Any = importlib.import_module("torch")
        model, optimizer, batch = self.model, self.optimizer, self._batches(case)
        forward = torch.compile(model, dynamic=False) if self.compiled else model

        def precision() -> Any:
            return torch.autocast("cpu", torch.bfloat16) if self.dtype == "bfloat16" else nullcontext()

        def whole() -> float:
            tokens, targets = batch()
            with precision():
                loss = forward(tokens, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return float(loss.item())

        return whole

    def _batches(self, case: Step) -> Callable[[], tuple[Any, Any]]:
        torch: Any = importlib.import_module("torch")
        if case.folder is None:
            same = tuple(torch.from_numpy(part.astype(np.int64)) for part in case.random_batch(self.config.vocab_size))
            return lambda: (same[0], same[1])
        data = TokenDataset(case.folder, "train")
        tokens = read_tokens(data.folder / data.meta.train.shards[0].file)

        def windows(starts: list[int]) -> Any:
            return torch.stack([torch.from_numpy(tokens[i : i + case.T].astype(np.int64)) for i in starts])

        def batch() -> tuple[Any, Any]:
            starts = torch.randint(len(tokens) - case.T, (case.B,)).tolist()
            return windows(starts), windows([start + 1 for start in starts])

        return batch
