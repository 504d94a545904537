"""How a model without learned positions tells them apart: angles that grow with the position.

    θ_ti = t / 10000^(2i/n)                                                  n channels, i < n/2
    sinusoidal    P_t,2i = sin θ_ti / √C      P_t,2i+1 = cos θ_ti / √C       added to the embedding in place of wpe

(Vaswani et al. 2017, section 3.5).  P_t+s is a rotation of P_t by angles that depend on s alone. rotary.py turns
queries and keys by the same angles.

The paper adds sin θ_ti to √C times the embedding (section 3.4). LayerNorm, which reads the sum, takes no notice of a
common factor.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pygpt.config import GPT2Config

from .arrays import Array

BASE = 10000.0


def angles(positions: ArrayLike, channels: int) -> NDArray[np.float64]:
    """positions: (T,).  Returns θ: (T,⌈channels/2⌉)."""
    return np.asarray(positions)[:, None] * BASE ** (-np.arange(0, channels, 2) / channels)


def sinusoidal(positions: int, channels: int) -> NDArray[np.float64]:
    """The rows of positions 0 to positions - 1: (positions,channels)."""
    theta = angles(np.arange(positions), channels)
    rows = np.stack([np.sin(theta), np.cos(theta)], -1).reshape(positions, -1)[:, :channels]
    return rows / np.sqrt(channels)


def added_to_embedding(p: Mapping[str, Array], config: GPT2Config) -> Array | None:
    """What the embedding adds for the positions: (n_positions,C) in the dtype of the parameters p, or None."""
    if config.position_embedding == "learned":
        return p["wpe.weight"]
    if config.position_embedding == "sinusoidal":
        return sinusoidal(config.n_positions, config.n_embd).astype(p["wte.weight"].dtype)
    return None
