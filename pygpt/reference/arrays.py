"""What the layers share: the type of an array, and the log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

Operands = Callable[[Array], Array]
"""What a matrix product does to both of its operands first, such as rounding them; or what storing a tensor does."""


def exact(x: Array) -> Array:
    """Everything as it is."""
    return x


def log_sum_exp(x: Array) -> Array:
    """log Σ exp(x) over the last axis, which stays with length 1.

    The largest element is subtracted before exp and added after log, so nothing overflows. It is taken over real
    parts, so that complex arrays (complex-step derivatives) pass through.
    """
    largest = x.real.max(-1, keepdims=True)
    return largest + np.log(np.exp(x - largest).sum(-1, keepdims=True))
