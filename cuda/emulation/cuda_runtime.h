/* Stands in for NVIDIA's cuda_runtime.h, so that a C++ compiler builds .cu files for the CPU:
 *
 *     g++ -std=c++17 -x c++ -DPYGPT_EMULATION -I cuda/emulation -I cuda ... kernel.cu
 *
 * and links them with the .cpp files of this folder. docs/emulation.md says what it catches. */
#pragma once

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__

#include "vector_types.h"
#include "device_functions.h"
#include "block.h"
#include "warp.h"
#include "runtime_api.h"
#include "launch.h"
