"""What the layers share: the type of an array, rows of integers, and the log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pygpt.errors import UserError

Array = NDArray[Any]

Operands = Callable[[Array], Array]
"""What a matrix product does to both of its operands first, such as rounding them; or what storing a tensor does."""


def exact(x: Array) -> Array:
    """Everything as it is."""
    return x


def row_of_integers(name: str, values: Any, scalar: bool = False) -> NDArray[np.int64]:
    """One row of integers, (T,), or, where scalar allows it, one integer.  Raises UserError for anything else."""
    try:
        row = np.asarray(values)
    except ValueError:
        raise UserError(f"{name} has rows of different lengths, expected integers of shape (T,)") from None
    if not row.size and row.ndim == 1:
        return np.zeros(0, np.int64)
    if scalar and row.ndim == 0:
        row = row[None]
    if row.ndim != 1 or row.dtype.kind not in "iu":
        raise UserError(f"{name} has shape {row.shape} and dtype {row.dtype}, expected integers of shape (T,)")
    return row.astype(np.int64)


def log_sum_exp(x: Array) -> Array:
    """log Σ exp(x) over the last axis, which stays with length 1.

    The largest element is subtracted before exp and added after log, so nothing overflows. It is taken over real
    parts, so that complex arrays (complex-step derivatives) pass through.
    """
    largest = x.real.max(-1, keepdims=True)
    return largest + np.log(np.exp(x - largest).sum(-1, keepdims=True))
