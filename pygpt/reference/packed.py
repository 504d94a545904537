"""Matrices of weights as a generator keeps them (csrc/packed.h): the values that a product y = x w really uses.

    float32     w
    bfloat16    bf16(w), and bf16(x)
    int8        s q      s = bf16(|w*| / 127)      q = round(w / s), from −127 to 127
    int4        s q      s = bf16(w* / −8)         q = round(w / s), from −8 to 7
                and, with both, x = sx qx          sx = max |x| / 127      qx = round(x / sx)

w* is the largest in magnitude of GROUP weights: s belongs to one output and GROUP inputs, sx to one row and GROUP
inputs. There are more negative numbers of four bits than positive ones, so w* becomes −8, whatever its sign. bf16 and
round are to nearest, ties to even. Weights are rounded from float32, whatever the dtype of the sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from .arrays import Array, Operands, exact
from .bfloat16 import round_bfloat16

GROUP = 32


def bfloat16(x: Array) -> Array:
    """x: any shape.  Returns the bfloat16 nearest to each float32, in x's own dtype."""
    return round_bfloat16(x.astype(np.float32)).astype(x.dtype)


def int8(w: Array) -> Array:
    """w: (K,N).  Returns s q."""
    return _quantised(w, "int8")


def int4(w: Array) -> Array:
    """w: (K,N).  Returns s q."""
    return _quantised(w, "int4")


def scale_of(group: Array, weights: str) -> Array:
    """group: (up to GROUP,N) float32.  Returns s: (N,)."""
    largest = _largest(group)
    return bfloat16(abs(largest) / np.float32(127) if weights == "int8" else largest / np.float32(-8))


def rounded(w: Array, scale: Array, weights: str) -> Array:
    """w: (...,N); scale: (N,).  Returns s q."""
    return _rounded(w, scale, *((-127, 127) if weights == "int8" else (-8, 7)))


def inputs_int8(x: Array) -> Array:
    """x: (N,K).  Returns sx qx, where the weights are integers."""
    return _in_groups(x.T, lambda group: _rounded(group, abs(_largest(group)) / 127, -127, 127), x.dtype).T


WEIGHTS: dict[str, Operands] = {"float32": exact, "bfloat16": bfloat16, "int8": int8, "int4": int4}
"""What becomes of the weights, by format."""

INPUTS: dict[str, Operands] = {"float32": exact, "bfloat16": bfloat16, "int8": inputs_int8, "int4": inputs_int8}
"""And of the inputs."""


def _quantised(w: Array, weights: str) -> Array:
    return _in_groups(w.astype(np.float32), lambda group: rounded(group, scale_of(group, weights), weights), w.dtype)


def _in_groups(x: Array, change: Operands, dtype: DTypeLike) -> Array:
    """x: (K,N).  Returns it with each group of GROUP rows changed, the last of which may be smaller."""
    y = np.empty(x.shape, dtype)
    for first in range(0, len(x), GROUP):
        y[first : first + GROUP] = change(x[first : first + GROUP])
    return y


def _largest(group: Array) -> Array:
    found: Array = np.take_along_axis(group, abs(group).argmax(0)[None], 0)[0]
    return found


def _rounded(x: Array, scale: Array, lowest: int, highest: int) -> Array:
    q = np.divide(x, scale, out=np.zeros_like(x), where=scale != 0)
    found: Array = scale * np.clip(np.round(q), lowest, highest)
    return found
