"""Dropout, with a mask that is drawn twice instead of being stored.

    forward    y_i = m_i x_i       m_i = 0 with probability p, else 1/(1−p)
    backward   dx_i = m_i dy_i

Element i, counted in row-major order, is dropped where word i of its stream is below p · 2³², rounded down; the
stream is philox.words(count, dropout.seed, dropout.site, dropout.step). The factor of what is kept leaves the mean as
it was, so that nothing has to change after training.

Read: docs/layers/dropout.md; Srivastava et al. 2014.
"""

from __future__ import annotations

import numpy as np

from pygpt.reference import philox
from pygpt.reference.dropout import Dropout


def forward(x: np.ndarray, dropout: Dropout) -> np.ndarray:
    """x: any shape; dropout: with the fields p, seed, site and step.  Returns y of the same shape."""
    raise NotImplementedError


def backward(dy: np.ndarray, dropout: Dropout) -> np.ndarray:
    """dy: any shape.  Returns dx of the same shape."""
    raise NotImplementedError
