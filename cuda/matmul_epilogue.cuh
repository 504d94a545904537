/* What follows a product, as kernels of its own: for where the library has no algorithm that does it on the way. */
#pragma once

#include "common.cuh"
#include "layers/gelu.cuh"
#include "matmul.cuh"

inline bool matmul_arguments_valid(const Matmul &m) {
    const bool gelu = m.pre_gelu || m.dgelu;
    return m.M > 0 && m.N > 0 && m.K > 0 && !(m.accumulate && gelu) && !(m.pre_gelu && m.dgelu) &&
           !(m.dgelu && m.bias) && !(m.ab_type == DataType::float32 && m.c_type == DataType::bfloat16);
}

/* c (M,N) holds x without bias, and becomes what matmul.cuh says. */
template <class T>
__global__ void matmul_finish(T *c, T *pre_gelu, const T *bias, const T *dgelu, int64_t size, int64_t N) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size) return;
    float x = static_cast<float>(c[i]);
    if (bias) x += static_cast<float>(bias[i % N]);
    if (pre_gelu) {
        pre_gelu[i] = static_cast<T>(x);
        x = gelu_of(x);
    }
    if (dgelu) x *= dgelu_of(static_cast<float>(dgelu[i]));
    c[i] = static_cast<T>(x);
}

static cudaError_t finish(const Matmul &m, cudaStream_t stream) {
    const int64_t size = m.M * m.N;
    const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(size, ELEMENT_THREADS));
    if (m.c_type == DataType::float32)
        return LAUNCH(matmul_finish<float>, blocks, ELEMENT_THREADS, 0, stream, static_cast<float *>(m.c),
                      static_cast<float *>(m.pre_gelu), static_cast<const float *>(m.bias),
                      static_cast<const float *>(m.dgelu), size, m.N);
    using bf16 = __nv_bfloat16;
    return LAUNCH(matmul_finish<bf16>, blocks, ELEMENT_THREADS, 0, stream, static_cast<bf16 *>(m.c),
                  static_cast<bf16 *>(m.pre_gelu), static_cast<const bf16 *>(m.bias),
                  static_cast<const bf16 *>(m.dgelu), size, m.N);
}
