"""The upper rungs: the layers of this library, one thread, in the instruction set that PYGPT_ISA names; best of nine.

for isa in baseline x86-64-v3 x86-64-v4 x86-64-v4-bf16; do PYGPT_ISA=$isa python docs/ladder/kernels.py; done
"""

import time
from collections.abc import Callable

import numpy as np

import pygpt
from pygpt.backends.library import cpu_library, library_name

N, IC, OC = 768, 768, 3072  # the product of docs/ladder/matmul.c
T, NH, HS = 1024, 4, 64


def best(call: Callable[[], object], flops: float) -> str:
    """Text: GFLOP/s of the fastest of nine calls."""
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return f"{flops / min(seconds) / 1e9:7.1f} GFLOP/s"


def main() -> None:
    pygpt.set_threads(1)
    rng = np.random.default_rng(0)
    x, w, qkv, dy = (
        rng.normal(size=shape).astype(np.float32) for shape in ((N, IC), (IC, OC), (1, T, 3 * NH * HS), (1, T, NH * HS))
    )
    scores = NH * T * (T + 1) / 2 * HS * 2  # FLOPs of one product of queries and keys, causal
    for kernels in ("plain", "fast"):
        for dtype in ("float32", "bfloat16"):
            ops = pygpt.layers("cpu", dtype, kernels)
            name = f"{library_name(cpu_library())}, {kernels}, {dtype}"
            print(f"{name:34} linear    {best(lambda ops=ops: ops.matmul(x, w), 2 * N * IC * OC)}")
        name = f"{library_name(cpu_library())}, {kernels}"
        y, lse = ops.attention_forward(qkv, NH)
        print(f"{name:34} attention {best(lambda ops=ops: ops.attention_forward(qkv, NH), 2 * scores)} forward")
        backward = best(lambda ops=ops, y=y, lse=lse: ops.attention_backward(dy, y, lse, qkv, NH), 5 * scores)
        print(f"{name:34} attention {backward} backward")


if __name__ == "__main__":
    main()
