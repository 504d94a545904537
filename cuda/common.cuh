/* What every .cu file here includes. */
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "launch.cuh"
#include "primitives.cuh"
#include "reduce.cuh"

template <class Integer> __host__ __device__ constexpr Integer ceil_div(Integer a, Integer b) {
    return (a + b - 1) / b;
}
