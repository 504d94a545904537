"""From the logits of one position to a token.

    z ← z / θ where z > 0, otherwise z θ       of the tokens that the text holds already, with θ the repetition penalty
                                               (Keskar et al. 2019, section 4.1)
    p = softmax(z / temperature)               temperature 0: the most likely token
    top-k    only the k most likely tokens
    top-p    only the fewest most likely tokens that together have probability p or more ("nucleus sampling",
             Holtzman et al. 2020, eq. 2)
    min-p    only tokens at least min-p times as likely as the most likely one (Nguyen et al. 2024)

Everything is computed in float64 and the token is drawn by inverting the cumulative distribution in the order of
the vocabulary, so that rounding differences between backends move the draw by no more than themselves.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pygpt.errors import UserError, check_integer, show


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; None, and 0 but for the temperature, leave a limit out.

    Raises UserError when a setting is not a number or out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (_is_number(self.temperature) and math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(
                f"temperature is {show(self.temperature)}, expected at least 0, which is the likeliest token"
            )
        if self.top_k is not None:
            check_integer("top-k", self.top_k, 0)
        for name, value in (("top-p", self.top_p), ("min-p", self.min_p)):
            if value is not None and not (_is_number(value) and 0 <= value <= 1):
                raise UserError(f"{name} is {show(value)}, expected a probability from 0 to 1; 0 is no limit")
        penalty = self.repetition_penalty
        if not (_is_number(penalty) and math.isfinite(penalty) and penalty > 0):
            raise UserError(f"repetition-penalty is {show(penalty)}, expected a number above 0; 1 is none")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


DEFAULT = Sampling()


def sample(
    logits: ArrayLike,
    uniform: float,
    sampling: Sampling = DEFAULT,
    allowed: NDArray[np.int64] | None = None,
    text: Sequence[int] = (),
) -> int:
    """Draw a token.

    logits: (V,); uniform: a uniform random number in [0, 1), unused at temperature 0; allowed: the tokens that may be
    drawn, None for all; text: the tokens so far, for the repetition penalty.
    Raises UserError when a logit is not finite.
    """
    logits = np.asarray(logits, np.float64)
    if not np.isfinite(logits).all():
        raise UserError("the model's logits are not finite, so that no token can be drawn; its weights are damaged")
    if sampling.repetition_penalty != 1:
        logits = penalised(logits, text, sampling.repetition_penalty)
    if allowed is not None:
        return int(allowed[_draw(logits[allowed], uniform, sampling)])
    return _draw(logits, uniform, sampling)


def penalised(logits: NDArray[np.float64], text: Sequence[int], penalty: float) -> NDArray[np.float64]:
    """The logits, (V,), after the repetition penalty."""
    seen = np.unique(np.asarray(text, np.int64))
    logits = logits.copy()
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits


def _draw(logits: NDArray[np.float64], uniform: float, sampling: Sampling) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    tokens, p = candidates(logits, sampling)
    cumulative = np.cumsum(p)
    # The product may round up to the last sum, beyond which there is no token.
    target = min(uniform * cumulative[-1], np.nextafter(cumulative[-1], 0))
    return int(tokens[np.searchsorted(cumulative, target, side="right")])


def candidates(
    logits: NDArray[np.float64],
    sampling: Sampling,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn, in the order of the vocabulary, and their probabilities: (K,) (K,).

    Of equally likely tokens at a limit, those with the smaller numbers stay.
    """
    tokens = np.arange(logits.size)
    if sampling.top_k and sampling.top_k < logits.size:
        tokens = np.sort(np.argsort(-logits, kind="stable")[: sampling.top_k])
    p = _softmax(logits[tokens], sampling.temperature)
    if sampling.top_p and sampling.top_p < 1:
        likeliest = np.argsort(-p, kind="stable")
        count = int(np.searchsorted(np.cumsum(p[likeliest]), sampling.top_p)) + 1
        kept = np.sort(likeliest[:count])
        tokens, p = tokens[kept], p[kept] / p[kept].sum()
    if sampling.min_p:
        kept = np.flatnonzero(p >= sampling.min_p * p.max())
        tokens, p = tokens[kept], p[kept] / p[kept].sum()
    return tokens, p


def _softmax(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    # The maximum goes first: logits / temperature would overflow at temperatures near 0.
    with np.errstate(over="ignore"):
        p = np.exp((logits - logits.max()) / temperature)
    return p / p.sum()


def log_probability(logits: ArrayLike, token: int) -> float:
    """ln softmax(logits)[token], in nats: the model's own, before temperature, limits and penalty."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum()))
