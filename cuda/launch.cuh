/* What the kernels cannot spell alike for nvcc and for a C++ compiler: launches, shared memory, and how loops are unrolled.
 *
 *     SHARED(float, tile, [32][33]);         an array of the block; aligned to 16 bytes
 *     DYNAMIC_SHARED(float, buffer);         a pointer to the launch's shared_bytes
 *     cudaError_t error = LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...);
 *     cudaError_t error = LAUNCH((kernel<float, 4>), grid, ...);      commas need brackets
 *     UNROLL  UNROLL_BY(4)  DO_NOT_UNROLL    before a loop
 */
#pragma once

#include <cuda_runtime.h>

#ifdef PYGPT_EMULATION

namespace emulation {
template <class Array> Array &shared(const void *key, Site site = Site::here()) {
    static_assert(alignof(Array) <= 16);
    return *static_cast<Array *>(shared_array(key, sizeof(Array), site));
}
}   // namespace emulation

#define SHARED(type, name, ...)                                                                                        \
    auto &name = emulation::shared<type __VA_ARGS__>([]() -> const void * {                                            \
    static char key; /* one for each declaration in each instance of a template */                                     \
    return &key;                                                                                                       \
    }())
#define DYNAMIC_SHARED(type, name) type *const name = static_cast<type *>(emulation::shared_dynamic())
#define LAUNCH(kernel, ...) emulation::launch(#kernel, kernel, __VA_ARGS__)
#define UNROLL
#define UNROLL_BY(n)
#define DO_NOT_UNROLL

#else

#define SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__
#define DYNAMIC_SHARED(type, name)                                                                                     \
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];                                                  \
    type *const name = reinterpret_cast<type *>(dynamic_shared)

template <class... Parameters, class... Arguments>
[[nodiscard]] cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                                 cudaStream_t stream, Arguments... arguments) {
    kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
    return cudaGetLastError();
}
#define LAUNCH(kernel, ...) launch(kernel, __VA_ARGS__)
#define PRAGMA(text) _Pragma(#text)
#define UNROLL PRAGMA(unroll)
#define UNROLL_BY(n) PRAGMA(unroll n)
#define DO_NOT_UNROLL UNROLL_BY(1)

#endif

/* Leaves the function with the error if a CUDA call failed. */
#define CUDA_TRY(call)                                                                                                 \
    do {                                                                                                               \
        if (const cudaError_t cuda_try_error = (call); cuda_try_error != cudaSuccess) return cuda_try_error;           \
    } while (0)
