"""Matrices of weights as a generator keeps them (csrc/packed.h): the values that a product y = x w really uses.

    float32     w
    bfloat16    bf16(w), and bf16(x)
    int8        s q      s = bf16(|w*| / 127)      q = round(w / s), from −127 to 127
    int4        s q      s = bf16(w* / −8)         q = round(w / s), from −8 to 7
                and x = sx qx                      sx = max |x| / 127      qx = round(x / sx)

w* is the largest in magnitude of GROUP weights: s belongs to one output and GROUP inputs, sx to one row and GROUP
inputs. There are more negative numbers of four bits than positive ones, so w* becomes −8, whatever its sign. bf16 and
round are to nearest, ties to even. Weights are rounded from float32, whatever the dtype of the sums.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .arrays import Array, Operands, exact
from .bfloat16 import round_bfloat16

GROUP = 32


def bfloat16(x: Array) -> Array:
    """x: any shape.  Returns the bfloat16 nearest to each float32, in x's own dtype."""
    return round_bfloat16(x.astype(np.float32)).astype(x.dtype)


def int8(w: Array) -> Array:
    """w: (K,N).  Returns s q."""
    return _quantised(w, lambda largest: bfloat16(abs(largest) / np.float32(127)), -127, 127)


def int4(w: Array) -> Array:
    """w: (K,N).  Returns s q."""
    return _quantised(w, lambda largest: bfloat16(largest / np.float32(-8)), -8, 7)


def inputs_int4(x: Array) -> Array:
    """x: (N,K).  Returns sx qx, where the weights have four bits."""
    return _in_groups(x.T, lambda largest: abs(largest) / 127, -127, 127).T


WEIGHTS: dict[str, Operands] = {"float32": exact, "bfloat16": bfloat16, "int8": int8, "int4": int4}
"""What becomes of the weights, by format."""

INPUTS: dict[str, Operands] = {"float32": exact, "bfloat16": bfloat16, "int8": exact, "int4": inputs_int4}
"""And of the inputs."""


def _quantised(w: Array, scale: Callable[[Array], Array], lowest: int, highest: int) -> Array:
    return _in_groups(w.astype(np.float32), scale, lowest, highest).astype(w.dtype)


def _in_groups(x: Array, scale: Callable[[Array], Array], lowest: int, highest: int) -> Array:
    """s q of each column of x, (K,N), in groups of GROUP rows, the last of which may be smaller."""
    y = np.empty_like(x)
    for first in range(0, len(x), GROUP):
        group = x[first : first + GROUP]
        largest = np.take_along_axis(group, abs(group).argmax(0)[None], 0)
        s = scale(largest)
        q = np.divide(group, s, out=np.zeros_like(group), where=s != 0)
        y[first : first + GROUP] = s * np.clip(np.round(q), lowest, highest)
    return y
