/* Sums and maxima over a warp or a block, in a fixed order: the same bits in every thread and every run.
 * Whole warps only; a block is one-dimensional. */
#pragma once

#include "launch.cuh"

__device__ inline float warp_sum(float x) {
    for (int delta = 16; delta > 0; delta /= 2) x += __shfl_xor_sync(0xffffffffu, x, delta);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int delta = 16; delta > 0; delta /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, delta));
    return x;
}

__device__ inline float block_sum(float x) {
    SHARED(float, partial, [32]);
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    x = warp_sum(x);
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    x = warp_sum(lane < blockDim.x / 32 ? partial[lane] : 0.0f);
    __syncthreads();   // the next call writes to partial
    return x;
}

__device__ inline float block_max(float x) {
    SHARED(float, partial, [32]);
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    x = warp_max(x);
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    x = warp_max(partial[lane < blockDim.x / 32 ? lane : 0]);
    __syncthreads();
    return x;
}
