"""The one table of parameters: names, shapes and first values of all that a GPT-2 learns.

Names and layout are Hugging Face's. Whatever goes through the parameters, or counts them, asks this table.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pygpt.config import GPT2Config


@dataclass(frozen=True)
class Parameter:
    """One tensor of the model; fresh, its elements are normally distributed with this mean and std."""

    name: str
    shape: tuple[int, ...]
    mean: float
    std: float

    @property
    def weight_decay(self) -> bool:
        """Optimizers decay matrices, and neither biases nor LayerNorm's weights."""
        return len(self.shape) == 2

    @property
    def muon(self) -> int:
        """How many matrices side by side Muon updates: those of blocks, three in c_attn; 0: AdamW updates it."""
        in_block = self.weight_decay and self.name.startswith("h.")
        return (3 if self.name.endswith("attn.c_attn.weight") else 1) if in_block else 0


def parameter_table(config: GPT2Config) -> list[Parameter]:
    """Every parameter in the order of the table; a head that is wte.weight again is not listed."""
    return _table(config, config.n_layer)


def parameter_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape, in the order of the table."""
    return {parameter.name: parameter.shape for parameter in parameter_table(config)}


def parameter_count(config: GPT2Config) -> int:
    """How many numbers the model learns.  One block counts for all, so n_layer may be absurdly large."""
    none, one = (sum(math.prod(parameter.shape) for parameter in _table(config, blocks)) for blocks in (0, 1))
    return none + config.n_layer * (one - none)


def _table(config: GPT2Config, blocks: int) -> list[Parameter]:
    """The table of a model that is cut off after so many blocks.

    Projections onto the residual stream start smaller by √(2L), the number of them (Radford et al. 2019, section 2.3).
    """
    C, inner = config.n_embd, config.inner
    std = ctypes.c_float(config.initializer_range).value  # as the native libraries hold it
    residual_std = std / math.sqrt(2 * config.n_layer)
    table = []

    def matrix(name: str, rows: int, columns: int, std: float = std) -> None:
        table.append(Parameter(f"{name}.weight", (rows, columns), 0.0, std))

    def affine(name: str, rows: int, columns: int, std: float = std) -> None:
        matrix(name, rows, columns, std)
        if config.bias:
            table.append(Parameter(f"{name}.bias", (columns,), 0.0, 0.0))

    def norm(name: str) -> None:
        table.append(Parameter(f"{name}.weight", (C,), 1.0, 0.0))
        if config.bias:
            table.append(Parameter(f"{name}.bias", (C,), 0.0, 0.0))

    matrix("wte", config.vocab_size, C)
    if config.position_embedding == "learned":
        matrix("wpe", config.n_positions, C)
    for layer in range(blocks):
        h = f"h.{layer}"
        norm(f"{h}.ln_1")
        affine(f"{h}.attn.c_attn", C, 3 * C)
        affine(f"{h}.attn.c_proj", C, C, residual_std)
        norm(f"{h}.ln_2")
        affine(f"{h}.mlp.c_fc", C, inner)
        affine(f"{h}.mlp.c_proj", inner, C, residual_std)
    if config.norm_position == "pre":
        norm("ln_f")
    if not config.tie_word_embeddings:
        matrix("lm_head", config.vocab_size, C)
    return table
