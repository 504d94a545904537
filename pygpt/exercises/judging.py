"""Results beside those that are expected: which is off, by how much, and where first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pygpt.comparing.metrics import Bound, difference
from pygpt.errors import show
from pygpt.reference.arrays import Array


@dataclass(frozen=True)
class Verdict:
    """On one array, or one other value, of a result."""

    good: bool
    text: str


def verdicts(name: str, found: Any, expected: Any, bound: Bound) -> Iterator[Verdict]:
    """On a result, or on each of the arrays that it holds.

    Arrays and floating-point numbers may differ within the bound; anything else must be equal.
    """
    if isinstance(expected, list) and any(isinstance(entry, np.ndarray) for entry in expected):
        if not isinstance(found, list) or len(found) != len(expected):
            yield Verdict(False, f"{name} is {show(found)}, expected a list of {len(expected)} arrays")
            return
        expected, found = dict(enumerate(expected)), dict(enumerate(found))
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            yield Verdict(False, f"{name} is of type {type(found).__name__}, expected a dictionary")
            return
        for key, value in expected.items():
            entry = f"{name}[{key!r}]"
            if key in found:
                yield from verdicts(entry, found[key], value, bound)
            else:
                yield Verdict(False, f"{entry} is missing")
    elif isinstance(expected, (np.ndarray, float, np.floating)):
        yield _array(name, found, np.asarray(expected), bound)
    elif isinstance(expected, (list, bytes)):
        yield _sequence(name, found, expected)
    else:
        good = bool(found == expected)
        yield Verdict(good, f"{name} is {show(found)}" + ("" if good else f", expected {show(expected)}"))


def _array(name: str, found: Any, expected: Array, bound: Bound) -> Verdict:
    try:
        found = np.asarray(found)
    except ValueError:
        return Verdict(False, f"{name} has rows of different lengths, expected shape {expected.shape}")
    if found.dtype.kind not in "fiub":
        return Verdict(False, f"{name} has dtype {found.dtype}, expected real numbers of shape {expected.shape}")
    if found.shape != expected.shape:
        return Verdict(False, f"{name} has shape {found.shape}, expected {expected.shape}")
    if expected.dtype.kind != "f":
        wrong = found != expected
        violations = [f"{np.count_nonzero(wrong)} of {wrong.size} elements differ"] if wrong.any() else []
        measured = "equal"
    else:
        # what is infinite has to be so, and counts for nothing then: a difference of infinities has no size
        infinite = ~np.isfinite(expected)
        with np.errstate(invalid="ignore"):  # what is not a number is found in the result
            a = np.where(infinite, np.where(found == expected, 0.0, np.inf), found)
            b = np.where(infinite, 0.0, expected)
            error = abs(a - b)
        metrics = difference(a, b)
        violations, measured = bound.violations(metrics), f"relative L2 {metrics.relative_l2:.1e}"
        rms = float(np.sqrt(np.mean(b**2))) if b.size else 0.0
        wrong = ~(error <= (bound.relative_l2 or 0.0) * rms)
    if not violations:
        return Verdict(True, f"{name}: {measured}")
    where = np.unravel_index(int(wrong.argmax()), wrong.shape)
    place = f"first at [{', '.join(map(str, where))}]: " if wrong.shape else ""
    digits = 6 if f"{found[where]:.6g}" != f"{expected[where]:.6g}" else 17
    numbers = f"{found[where]:.{digits}g}, expected {expected[where]:.{digits}g}"
    return Verdict(False, f"{name}: {'; '.join(violations)}; {place}{numbers}")


def _sequence(name: str, found: Any, expected: list[Any] | bytes) -> Verdict:
    if not isinstance(found, type(expected)):
        kind = type(expected).__name__
        return Verdict(False, f"{name} is of type {type(found).__name__}, expected {kind} of length {len(expected)}")
    for i, (one, other) in enumerate(zip(found, expected, strict=False)):
        if one != other:
            return Verdict(False, f"{name}[{i}] is {show(one)}, expected {show(other)}; those before it are right")
    if len(found) != len(expected):
        return Verdict(False, f"{name} has length {len(found)}, expected {len(expected)}")
    return Verdict(True, f"{name}: equal")
