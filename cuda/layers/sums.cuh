/* Sums in double precision, in a fixed order. */
#pragma once

#include "../common.cuh"

/* Over a block of whole warps; the same in every thread. */
__device__ inline double block_sum_double(double x) {
    SHARED(double, partial, [32]);
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int delta = 16; delta > 0; delta /= 2) x += __shfl_xor_sync(0xffffffffu, x, delta);
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    x = lane < blockDim.x / 32 ? partial[lane] : 0.0;
    for (int delta = 16; delta > 0; delta /= 2) x += __shfl_xor_sync(0xffffffffu, x, delta);
    __syncthreads();   // the next call writes to partial
    return x;
}
