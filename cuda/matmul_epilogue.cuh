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

/* dbias (N) += sums over the columns of op(b), b (K,N) or (N,K). A block takes 32 columns, with 8 partial sums for each
 * that are added in a fixed order. */
template <class T>
__global__ void __launch_bounds__(256)
    matmul_column_sums(float *dbias, const T *b, int64_t N, int64_t K, bool transposed) {
    SHARED(float, partial, [8][33]);
    const int64_t n = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
    float sum = 0;
    if (n < N)
        for (int64_t k = threadIdx.y; k < K; k += 8)
            sum += static_cast<float>(transposed ? b[n * K + k] : b[k * N + n]);
    partial[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && n < N) {
        for (int i = 1; i < 8; i++) sum += partial[i][threadIdx.x];
        dbias[n] += sum;
    }
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

static cudaError_t add_column_sums(const Matmul &m, cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(m.N, 32));
    if (m.ab_type == DataType::float32)
        return LAUNCH(matmul_column_sums<float>, blocks, dim3(32, 8), 0, stream, m.dbias,
                      static_cast<const float *>(m.b), m.N, m.K, m.transpose_b);
    return LAUNCH(matmul_column_sums<__nv_bfloat16>, blocks, dim3(32, 8), 0, stream, m.dbias,
                  static_cast<const __nv_bfloat16 *>(m.b), m.N, m.K, m.transpose_b);
}
