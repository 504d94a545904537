"""What each head attends to when n random tokens come twice (Elhage et al. 2021; Olsson et al. 2022).

    previous     P[t, t−1]
    first        P[t, 0]
    duplicate    P[t, t−n]         the same token, the first time
    induction    P[t, t−n+1]       the token that followed it then, which is the one to predict

each a mean over the positions t ≥ n. Only a model that looks back predicts the second half better than the first.
"""

from __future__ import annotations

import numpy as np

from pygpt.config import check_causal
from pygpt.errors import UserError
from pygpt.model import GPT2
from pygpt.reference.arrays import Array
from pygpt.study.result import Map, Result
from pygpt.study.trace import trace

LONGEST = 32


def heads(
    model: GPT2, vocabulary: Array | None = None, length: int | None = None, batch_size: int = 8, seed: int = 0
) -> Result:
    """vocabulary: the tokens to draw from, all if not given; length: n, if not given as many as fit, up to 32.

    Arrays: previous, first, duplicate and induction, (L,NH), and losses, (2n−1,), the mean over the batch.
    Raises UserError where the model has fewer than 4 positions or than 2n, and for one that is not causal.
    """
    check_causal(model.config, "has attention that only looks back")
    positions = model.config.n_positions
    n = min(LONGEST, positions // 2) if length is None else length
    if not 2 <= n <= positions // 2:
        raise UserError(f"{n} random tokens are to come twice, expected 2 to {positions // 2}: half of the positions")
    known = np.arange(model.config.vocab_size) if vocabulary is None else vocabulary
    found = trace(model, repeated(known, n, batch_size, seed))
    arrays = scores(found.attention("probabilities"), n)
    losses = np.asarray(found.activations["losses"], np.float64)[:, :-1].mean(0)
    rows = [
        (layer, head, *(float(score[layer, head]) for score in arrays.values()))
        for layer, head in np.ndindex(model.config.n_layer, model.config.n_head)
    ]
    t = np.arange(n, 2 * n)
    notes = [
        f"uniform attention: {(1 / (t + 1)).mean():.4g} in each column",
        f"loss {losses[: n - 1].mean():.4f} in the first half, "
        f"{losses[n:].mean():.4f} in the second but for its first token",
    ]
    title = f"attention to {n} random tokens that come twice, {batch_size} times"
    panels = [Map(name, score, "head", "layer") for name, score in arrays.items()]
    return Result(title, ("layer", "head", *arrays), rows, {**arrays, "losses": losses}, panels, notes)


def repeated(vocabulary: Array, n: int, batch_size: int, seed: int) -> Array:
    """Rows of n random tokens, all different where there are enough of them, that come twice: (batch_size,2n)."""
    rng = np.random.default_rng(seed)
    rows = [rng.choice(vocabulary, n, replace=len(vocabulary) < n) for _ in range(batch_size)]
    return np.tile(np.stack(rows), 2)


def scores(p: Array, n: int) -> dict[str, Array]:
    """p: (L,B,NH,T,T) with T = 2n.  Returns the four scores, (L,NH) each."""
    t = np.arange(n, 2 * n)
    keys = {"previous": t - 1, "first": 0 * t, "duplicate": t - n, "induction": t - n + 1}
    return {name: np.asarray(p[..., t, key], np.float64).mean((1, 3)) for name, key in keys.items()}
