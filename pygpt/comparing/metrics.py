"""How far an array lies from the exact one, and how far it may.

    relative L2    ‖a − b‖ / ‖b‖
    largest        max |a − b| / rms(b)
    1 − cosine     1 − ⟨a, b⟩ / (‖a‖ ‖b‖)
    ρ              ‖a − b‖ / ‖e − b‖

a is what is judged, b the exact result in float64, and e what numpy gives when it rounds where a bfloat16 model rounds.
Every metric is relative: with an absolute tolerance, zeros would pass for small gradients. A part that is zero exactly,
such as the gradient of the key bias, has no scale of its own; it is judged within its tensor, on the scale of the
query's and value's parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pygpt.reference.arrays import Array


@dataclass(frozen=True)
class Difference:
    """The metrics of one array.  They are infinite where the exact array is zero and the judged one is not."""

    relative_l2: float
    largest: float
    one_minus_cosine: float
    rho: float | None = None  # only of bfloat16


@dataclass(frozen=True)
class Bound:
    """What a difference may be; None: anything.

    ρ is asked only of a relative L2 above rho_from: below, nothing was rounded to bfloat16, and ρ would compare two
    roundings of float32.
    """

    relative_l2: float | None = None
    one_minus_cosine: float | None = None
    rho: float | None = None
    rho_from: float = 0.0

    def violations(self, found: Difference) -> list[str]:
        """Which metrics are out of bounds, in words; NaN always is."""
        rho = found.rho if found.relative_l2 > self.rho_from else None
        limits = (
            ("relative L2", found.relative_l2, self.relative_l2),
            ("1 - cosine", found.one_minus_cosine, self.one_minus_cosine),
            ("rho", rho, self.rho),
        )
        return [
            f"{name} {value:.1e}, bound {limit:.0e}"
            for name, value, limit in limits
            if value is not None and limit is not None and not value <= limit
        ]


TEACHER_FORCED = {
    "float32": Bound(relative_l2=2e-6),
    "bfloat16": Bound(relative_l2=5e-3, rho=2, rho_from=2e-6),
}
"""One layer with the reference's inputs, by dtype."""

ORTHOGONALIZED = Bound(relative_l2=485 * 2.0**-24)
"""Muon in any dtype.  In directions in which the gradient is zero, a rounding error is enlarged a⁵ = 485 times."""

FREE_RUNNING = {
    "float32": {
        "forward": Bound(relative_l2=1e-5),
        "backward": Bound(relative_l2=1e-4),
        "loss": Bound(relative_l2=1e-5),
    },
    "bfloat16": {
        "forward": Bound(one_minus_cosine=1e-3, rho=2, rho_from=1e-5),
        "backward": Bound(one_minus_cosine=1e-3, rho=2, rho_from=1e-4),
        "loss": Bound(relative_l2=5e-3),
    },
}
"""The whole model, by dtype and pass."""


def difference(a: Array, b: Array, emulated: Array | None = None) -> Difference:
    """a, b, emulated: any one shape.  ρ only where emulated is given."""
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape} differ")
    a, b = (np.asarray(x, np.float64).reshape(-1) for x in (a, b))
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found in the result
        return _difference(a, b, None if emulated is None else np.asarray(emulated, np.float64).reshape(-1))


def relative_l2(a: Array, b: Array) -> float:
    """‖a − b‖ / ‖b‖."""
    return difference(a, b).relative_l2


def _difference(a: Array, b: Array, emulated: Array | None) -> Difference:
    error = a - b
    rho = None
    if emulated is not None:
        rho = _ratio(_norm(error), _norm(emulated - b))
    return Difference(
        relative_l2=_ratio(_norm(error), _norm(b)),
        largest=_ratio(float(abs(error).max(initial=0)) * b.size**0.5, _norm(b)),
        one_minus_cosine=_one_minus_cosine(a, b),
        rho=rho,
    )


def _one_minus_cosine(a: Array, b: Array) -> float:
    """½ ‖a/‖a‖ − b/‖b‖‖², the same number without the loss of digits."""
    a_norm, b_norm = _norm(a), _norm(b)
    if a_norm == 0 or b_norm == 0:
        return _ratio(abs(a_norm - b_norm), b_norm)
    return 0.5 * _norm(a / a_norm - b / b_norm) ** 2


def _norm(x: Array) -> float:
    return float(np.linalg.norm(x))


def _ratio(error: float, scale: float) -> float:
    """error / scale; 0/0 is 0, x/0 is inf."""
    if error == 0:
        return 0.0
    return error / scale if scale else np.inf
