"""From the logits of one position to a token.

    p = softmax(logits / temperature)           temperature 0: the most likely token
    top-k    only the k most likely tokens
    top-p    only the fewest most likely tokens that together have probability p or more ("nucleus sampling",
             Holtzman et al. 2020, eq. 2)

Everything is computed in float64 and the token is drawn by inverting the cumulative distribution in the order of
the vocabulary, so that rounding differences between backends move the draw by no more than themselves.
"""

from __future__ import annotations

import math
import numbers

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pygpt.errors import UserError


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises UserError when a setting is not a number or out of its range."""
    if not (_is_number(temperature) and math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature is {temperature!r}, expected at least 0, which is the likeliest token")
    if top_k is not None:
        check_integer("top-k", top_k, 1)
    if top_p is not None and not (_is_number(top_p) and 0 < top_p <= 1):
        raise UserError(f"top-p is {top_p!r}, expected a probability above 0 and at most 1")


def check_integer(name: str, value: int, least: int, largest: int | None = None) -> None:
    """Raises UserError when a setting is not an integer or out of its range."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < least or (largest is not None and value > largest):
        expected = f"of at least {least}" if largest is None else f"from {least} to {largest}"
        raise UserError(f"{name} is {value!r}, expected an integer {expected}")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def sample(
    logits: ArrayLike, uniform: float, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> int:
    """Draw a token.

    logits: (V,); uniform: a uniform random number in [0, 1), unused at temperature 0.
    Raises UserError when a logit is not finite.
    """
    logits = np.asarray(logits, np.float64)
    if not np.isfinite(logits).all():
        raise UserError("the model's logits are not finite, so that no token can be drawn; its weights are damaged")
    if temperature == 0:
        return int(logits.argmax())
    tokens, p = candidates(logits, temperature, top_k, top_p)
    cumulative = np.cumsum(p)
    # The product may round up to the last sum, beyond which there is no token.
    target = min(uniform * cumulative[-1], np.nextafter(cumulative[-1], 0))
    return int(tokens[np.searchsorted(cumulative, target, side="right")])


def candidates(
    logits: NDArray[np.float64], temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn, in the order of the vocabulary, and their probabilities: (K,) (K,).

    Of equally likely tokens at a limit, those with the smaller numbers stay.
    """
    tokens = np.arange(logits.size)
    if top_k is not None and top_k < logits.size:
        tokens = np.sort(np.argsort(-logits, kind="stable")[:top_k])
    p = _softmax(logits[tokens], temperature)
    if top_p is not None and top_p < 1:
        likeliest = np.argsort(-p, kind="stable")
        count = int(np.searchsorted(np.cumsum(p[likeliest]), top_p)) + 1
        kept = np.sort(likeliest[:count])
        tokens, p = tokens[kept], p[kept] / p[kept].sum()
    return tokens, p


def _softmax(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    # The maximum goes first: logits / temperature would overflow at temperatures near 0.
    with np.errstate(over="ignore"):
        p = np.exp((logits - logits.max()) / temperature)
    return p / p.sum()
