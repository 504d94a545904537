"""Clipping by the global norm (Pascanu, Mikolov & Bengio 2013, algorithm 1).

norm = √(Σ g²) over all gradients      g ← g · max_norm / norm  where norm > max_norm
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .arrays import Array


def global_norm(gradients: Iterable[Array]) -> Any:
    """√ of the sum of the squares of all elements, a number; float32 is summed in float64."""
    return np.sqrt(sum(np.square(g, dtype=np.result_type(g, np.float64)).sum() for g in gradients))


def clip(gradients: Iterable[Array], max_norm: float) -> Any:
    """Scale the gradients in place to the norm max_norm if they exceed it.  Returns their norm before.

    max_norm <= 0 only measures.
    """
    gradients = list(gradients)
    norm = global_norm(gradients)
    if 0 < max_norm < norm.real:
        for g in gradients:
            g *= max_norm / norm
    return norm
