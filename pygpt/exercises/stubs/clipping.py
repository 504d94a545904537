"""Clipping by the norm of all gradients together.

    norm = √(Σ g²) over all gradients      g ← g · max_norm / norm  where norm > max_norm

One factor for all tensors: the direction of the step stays, only its length is limited.

Read: docs/layers/adamw.md; Pascanu, Mikolov & Bengio 2013, algorithm 1.
"""

from __future__ import annotations

import numpy as np


def clip(gradients: list[np.ndarray], max_norm: float) -> float:
    """Scale the gradients in place.  Returns their norm before; max_norm <= 0 only measures."""
    raise NotImplementedError
