"""Models that differ from GPT-2, so that any two values of any two fields are together in one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from pygpt.config import VARIATIONS


def pairwise(fields: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Settings with each pair of values: greedily, those first that have most of the pairs that are left."""
    every = [dict(zip(fields, values, strict=True)) for values in product(*fields.values())]
    left = set().union(*map(_parts, every))
    while left:
        best = max(every, key=lambda settings: len(_parts(settings) & left))
        left -= _parts(best)
        yield best


def _parts(settings: Mapping[str, Any]) -> set[Any]:
    """Its values and their pairs."""
    return {*settings.items(), *combinations(settings.items(), 2)}


def _named(fields: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    return {
        "-".join(str(value) for value in settings.values()): settings
        for settings in pairwise(fields)
        if settings != {name: known[0] for name, known in VARIATIONS.items()}
    }


VARIED = _named(VARIATIONS)
"""By a name: the fields in which a model may differ from GPT-2."""

VARIED_CAUSAL = _named({**VARIATIONS, "causal": (True,)})
"""Likewise, of models that generate text."""
