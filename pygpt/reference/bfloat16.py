"""bfloat16, emulated in float32: the upper half of a float32, 8 bits of significand.

`operands=round_bfloat16` in linear.py, classifier.py and gpt2.py rounds where a bf16 model does: the operands of matrix
products. The products are summed in float32.
"""

from __future__ import annotations

import numpy as np

from .arrays import Array


def round_bfloat16(x: Array) -> Array:
    """x: float32 of any shape.  Returns the nearest bfloat16 values, ties to even, as float32.

    Raises TypeError for another dtype, because rounding to float32 first would round twice.
    """
    if x.dtype != np.float32:
        raise TypeError(f"round_bfloat16 takes float32, found {x.dtype}")
    bits = x.view(np.uint32)
    last = (bits >> np.uint32(16)) & np.uint32(1)  # of the bits that stay
    rounded = (bits + np.uint32(0x7FFF) + last) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32))
