"""Which variations of GPT-2 (docs/variations.md) an instrument has the formulas of."""

from __future__ import annotations

from collections.abc import Sequence

from pygpt.config import VARIATIONS, GPT2Config
from pygpt.errors import UserError

SUM = (
    *("activation_function", "position_embedding", "bias", "tie_word_embeddings", "causal"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
)
"""Those with which the stream is a sum of what the blocks write to it, and the last LayerNorm reads it."""


def check_variations(config: GPT2Config, instrument: str, known: Sequence[str]) -> None:
    """Raises UserError for a model that varies GPT-2 in another field than the known ones."""
    for name, value in config.variations.items():
        if name not in known:
            expected = VARIATIONS[name][0]
            raise UserError(f"{name} is {value!r}, expected {expected!r}: {instrument} has no formulas for it")
