"""The bigram model: the next token's probability from counts.

    N_ab = how often b follows a in the tokens        P_ab = (N_ab + 1) / Σ_c (N_ac + 1)
    loss = −(1/n) Σ_t ln P[token_t, token_t+1]        over the n pairs of neighbours, in nats

The 1 that is added to each count keeps a pair that never occurs from having an infinite loss. A model that knows
nothing has a loss of ln V; this one is the simplest that knows something.

Read: video 2 of "Neural Networks: Zero to Hero" (makemore); docs/layers/cross_entropy.md.
"""

from __future__ import annotations

import numpy as np


def count(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """tokens: (T,) integers below vocab_size.  Returns N: (V,V), real numbers."""
    raise NotImplementedError


def loss(counts: np.ndarray, tokens: np.ndarray) -> float:
    """counts: (V,V); tokens: (T,).  Returns the mean loss over the T − 1 pairs."""
    raise NotImplementedError
