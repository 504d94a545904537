"""Attention in tiles beside the simple kernels, through the library: long sequences on a GPU, short ones emulated.

What can be seen only from inside, and faults in the kernels: test_cuda_attention.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backends import Backend
from test_cuda import device
from test_cuda_attention import DROPOUT, HEAD_SIZES, Problem, Result, complaints

from pygpt.reference.arrays import Array
from pygpt.reference.dropout import Dropout

__all__ = ["device"]  # a fixture

LENGTHS = {"cuda": (1023, 1024), "cuda-emulated": (67, 68)}  # dropout draws for four keys at once where T % 4 is 0


def compute(ops: Any, problem: Problem) -> Result:
    qkv, dy = problem.inputs()
    y, lse = ops.attention_forward(qkv, problem.NH, problem.dropout)
    return Result(y, lse, ops.attention_backward(dy, y, lse, qkv, problem.NH, problem.dropout))


def parts(result: Result) -> list[Array]:
    return [result.y, *np.split(result.dqkv, 3, -1)]


@pytest.mark.parametrize("dropout", [None, DROPOUT], ids=["", "dropout"])
@pytest.mark.parametrize("HS", (*HEAD_SIZES, 48))
@pytest.mark.parametrize("family", ["flash", "fma"])  # on Hopper "wgmma" in place of "flash", where it has a kernel
def test_tiles_and_simple_kernels_are_within_the_bounds(
    family: str, HS: int, dropout: Dropout | None, device: str
) -> None:
    """Of the exact result, both; and they are two: other bits where there is a kernel in tiles, the same where not.

    The bounds hold for any length here: a sum of K random terms in float32 errs by √(K/6) · 2⁻²⁴, which is 8e-7 of 2e-6
    for K = 1024, and in bfloat16 the rounding of what is stored, 2e-3, covers all of that.
    """
    for T in LENGTHS[device]:
        problem = Problem(2, T, 2, HS, dropout, family=family)
        found = [compute(Backend(device, problem.dtype, kernels).layers(), problem) for kernels in ("fast", "plain")]
        for kernels, result in zip(("fast", "plain"), found, strict=True):
            assert not complaints(problem, result), f"T {T}, {kernels} kernels"
        for fast, simple in zip(*map(parts, found), strict=True):
            assert np.array_equal(fast, simple) == (HS not in HEAD_SIZES), f"T {T}"
