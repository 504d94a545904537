"""From logits to a token: temperature, top-k and top-p.

    p = softmax(z / temperature)
    top-k    only the k most likely tokens
    top-p    only the fewest most likely tokens that together have probability top_p or more
    min-p    only tokens at least min_p times as likely as the most likely one

In this order; the probabilities are divided by their sum after each. Of equally likely tokens at a limit, those with
the smaller numbers stay. sample() draws from the candidates by inverting their cumulative distribution: the first
token whose sum of probabilities up to its own exceeds the uniform number. At temperature 0 it takes the likeliest.

Read: docs/generation.md; Holtzman et al. 2020, eq. 2.
"""

from __future__ import annotations

import numpy as np

from pygpt.generation.sampling import Sampling


def candidates(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """logits: (V,); sampling: temperature above 0, top_k, top_p, min_p, each None for no limit.

    Returns the tokens that may be drawn, in ascending order, and their probabilities: (K,) (K,).
    """
    raise NotImplementedError


def sample(logits: np.ndarray, uniform: float, sampling: Sampling) -> int:
    """Draw a token.  uniform: in [0, 1)."""
    raise NotImplementedError
