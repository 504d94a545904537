"""What is measured, and how sure it is.

    R = Σ x / Σ y        x: nats, or right answers, of each cluster; y: its tokens or bytes, or 1
    s² = k/(k − 1) Σ (x − R y)² / (Σ y)²        of k clusters (Cochran 1977, section 6.4)

The clusters are taken as independent.  One is an example of a task, or a stretch of a text, in which losses depend on
each other.  With y = 1, s is the usual standard error of a mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Estimate:
    value: float
    error: float | None  # its standard error; None where there is one cluster only


@dataclass(frozen=True)
class Result:
    protocol: str  # what is scored, and how
    counts: dict[str, int]  # of what it was measured on
    metrics: dict[str, Estimate]  # names with underscores


def ratio(x: ArrayLike, y: ArrayLike = 1.0) -> Estimate:
    """Σ x / Σ y and its standard error.  x: (k,); y: (k,), or the same for all."""
    x = np.asarray(x, np.float64)
    y = np.broadcast_to(np.asarray(y, np.float64), x.shape)
    value = x.sum() / y.sum()
    if len(x) < 2:
        return Estimate(float(value), None)
    residuals = x - value * y
    return Estimate(float(value), float(np.sqrt(len(x) / (len(x) - 1) * (residuals @ residuals)) / y.sum()))


def perplexity(loss: Estimate) -> Estimate:
    """exp(loss), and its standard error to first order.  loss: in nats."""
    value = math.exp(loss.value) if loss.value < math.log(1e300) else math.inf
    return Estimate(value, None if loss.error is None else value * loss.error)


def bits(loss: Estimate) -> Estimate:
    """A loss in nats, in bits."""
    return Estimate(loss.value / math.log(2), None if loss.error is None else loss.error / math.log(2))
