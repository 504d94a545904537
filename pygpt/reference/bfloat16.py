"""bfloat16, emulated in float32: the upper half of a float32, 8 bits of significand.

There are two kinds of bf16 model, and an emulation of each. On the CPU only the operands of matrix products are
bfloat16: `operands=round_bfloat16` in linear.py and classifier.py. A CUDA device keeps its tensors in bfloat16 too,
weights, activations and their gradients: `stored=round_bfloat16` in classifier.py and gpt2.py. Sums are in float32 in
both. The fast kernels of a CPU that multiplies bfloat16 round the operands of attention too: bfloat16_attention.py.
"""

from __future__ import annotations

import numpy as np

from .arrays import Array

FLOAT32 = frozenset(
    [
        *("mean", "rstd", "lse", "losses", "dlosses"),  # statistics of rows
        *("dweight", "dbias", "dwte", "dwpe"),  # gradients of weights
        *("w", "m", "v", "dw"),  # what an optimizer works on
        *("p", "c"),  # what is only looked at: attention probabilities, and a product by itself
    ]
)
"""Arguments and results of layers that stay in float32 where tensors are stored in bfloat16."""


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
