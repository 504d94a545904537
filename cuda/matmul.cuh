/* Matrix products with what belongs to them, on a stream:
 *
 *     x = op(a) op(b) + bias               op(a) (M,K), op(b) (K,N), bias (N); all row-major and dense
 *     c = x   or   c += x   or   c = gelu(x), pre_gelu = x   or   c = x ⊙ gelu'(dgelu)
 *
 * float32 sums; TF32 is never used. The first product of a shape outside a graph capture times the library's algorithms
 * and keeps the fastest among those that give the same bits as the library's favourite, so timing changes no result.
 * With PYGPT_CUDA_LOG=1 it says on stderr what it has timed and what it keeps.
 */
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

constexpr size_t MATMUL_WORKSPACE = size_t{128} << 20;   // of the device's memory, which a context takes

enum class DataType { float32, bfloat16 };

struct Matmul {
    void *c = nullptr;                  // (M,N) of c_type
    const void *a = nullptr;            // (M,K), or (K,M) if transpose_a; of ab_type
    const void *b = nullptr;            // (K,N), or (N,K) if transpose_b; of ab_type
    int64_t M = 0, N = 0, K = 0;
    bool transpose_a = false, transpose_b = false;
    DataType ab_type = DataType::float32, c_type = DataType::float32;
    bool accumulate = false;            // c += x; not with a GELU
    const void *bias = nullptr;         // (N) of c_type
    void *pre_gelu = nullptr;           // (M,N) of c_type, written; not with dgelu
    const void *dgelu = nullptr;        // (M,N) of c_type: the forward pass's pre_gelu; not with bias
};

struct MatmulContext;   // plans and workspace of one device, used by one host thread on one stream at a time

cudaError_t matmul_create(MatmulContext **context);
void matmul_destroy(MatmulContext *context);   // NULL is allowed

/* cudaErrorInvalidValue: a combination that is excluded above. */
cudaError_t matmul(MatmulContext *context, const Matmul &m, cudaStream_t stream);

/* The sentence on the latest failure of this context, "" if the CUDA error says all. */
const char *matmul_error(const MatmulContext *context);
