"""Which variations of GPT-2 (docs/variations.md) an instrument has the formulas of."""

from __future__ import annotations

from pygpt.config import GPT2Config
from pygpt.errors import UserError


def check_stream(config: GPT2Config, instrument: str) -> None:
    """Raises UserError for a model whose stream is not a sum of what the blocks write, read by the last LayerNorm."""
    if config.norm_position != "pre":
        raise UserError(
            f"norm_position is {config.norm_position!r}, expected 'pre': {instrument} has no formulas for it"
        )
