/* What every .cu file here includes. */
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "../csrc/divides_work.h"
#include "launch.cuh"
#include "primitives.cuh"
#include "reduce.cuh"

constexpr int ELEMENT_THREADS = DIVIDES_WORK(256, 32);         // of a block, where each thread has its own elements
constexpr int SINGLE_BLOCK_THREADS = DIVIDES_WORK(1024, 32);   // of a kernel that is one block

template <class Integer> __host__ __device__ constexpr Integer ceil_div(Integer a, Integer b) {
    return (a + b - 1) / b;
}
