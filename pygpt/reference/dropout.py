"""Dropout (Srivastava et al. 2014), scaled in training so that the mean stays.

    forward    y_i = m_i x_i       m_i = 0 with probability p, else 1/(1−p)
    backward   dx_i = m_i dy_i

The mask is a function of the seed, the place in the model, the step and the element, so it is drawn again in the
backward pass instead of being stored, and is the same in every backend.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pygpt.errors import UserError

from . import philox
from .arrays import Array


@dataclass(frozen=True)
class Dropout:
    """Which elements to drop: with probability p, by random numbers that (seed, site, step) name.

    p is held in float32, as in the native libraries.  Raises UserError unless 0 <= p < 1 there, seed has 64 bits, and
    site and step have 32.
    """

    p: float
    seed: int = 0
    site: int = 0  # which dropout of the model
    step: int = 0  # which forward pass

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", float(np.float32(self.p)))
        if not 0 <= self.p < 1:
            raise UserError(f"dropout p is {self.p:.9g}, expected a probability of at least 0 and below 1")
        for name, bits in (("seed", 64), ("site", 32), ("step", 32)):
            if not 0 <= getattr(self, name) < 2**bits:
                raise UserError(f"dropout {name} is {getattr(self, name)}, expected an integer from 0 to 2^{bits} - 1")

    @property
    def scale(self) -> float:
        """Factor of the elements that are kept."""
        return 1 / (1 - self.p)

    def keep(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Which elements of an array stay; they are numbered in row-major order."""
        count = int(np.prod(shape, dtype=np.int64))
        words = philox.words(count, self.seed, self.site, self.step)
        threshold = np.uint32(int(self.p * 2**32))  # P(word < p 2^32) = p
        return (words >= threshold).reshape(shape)


def forward(x: Array, dropout: Dropout | None) -> Array:
    """x: any shape; None is the identity.  Returns y of the same shape."""
    if dropout is None or dropout.p == 0:
        return x
    return np.where(dropout.keep(x.shape), x * dropout.scale, x.dtype.type(0))


def backward(dy: Array, dropout: Dropout | None) -> Array:
    """dy: any shape.  Returns dx of the same shape: the layer is linear and diagonal, so its own transpose."""
    return forward(dy, dropout)
