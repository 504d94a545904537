/* Instructions that CUDA C++ has no name for. Those of a whole warp, ldmatrix and mma, every lane must call alike.
 * g = lane / 4 and t = lane % 4 below; a uint32_t holds two bf16, the first in its low half.
 *
 *   ldmatrix(r, row)               1, 2 or 4 matrices of 8×8 16-bit elements from shared memory. Lane 8 i + j passes
 *                                  row j of matrix i (16 bytes, aligned); r[i] = M_i(g, 2t), M_i(g, 2t+1)
 *   ldmatrix_transposed(r, row)    the same with M_i transposed: r[i] = M_i(2t, g), M_i(2t+1, g)
 *
 *   mma_bf16(d, a, b0, b1)         D(16,8) += A(16,16) B(16,8), float32 sums
 *       a[0] = A(g, 2t..2t+1)   a[1] = A(g+8, 2t..)   a[2] = A(g, 2t+8..)   a[3] = A(g+8, 2t+8..)
 *       b0 = B(2t..2t+1, g)   b1 = B(2t+8..2t+9, g)
 *       d[0] = D(g, 2t)   d[1] = D(g, 2t+1)   d[2] = D(g+8, 2t)   d[3] = D(g+8, 2t+1)
 *   mma_tf32(d, a, b0, b1)         D(16,8) += A(16,8) B(8,8), one element a register, rounded by round_to_tf32
 *       a[0] = A(g, t)   a[1] = A(g+8, t)   a[2] = A(g, t+4)   a[3] = A(g+8, t+4)      b0 = B(t, g)   b1 = B(t+4, g)
 *
 *   cp_async_16(shared, global, valid)   starts copying 16 bytes, both aligned; zeros if not valid
 *   cp_async_commit()                    the copies started since the last commit are a group
 *   cp_async_wait<n>()                   all but the latest n groups of this thread have arrived
 *
 *   exp2_approx(x)                       2^x to 2 units in the last place; 0 where that is not a normal number
 *
 * mma_* need compute capability 8.0 and trap below it; cp_async_16 is a plain copy there.
 */
#pragma once

#include <cstdint>
#include <cstring>

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#ifdef PYGPT_EMULATION

#include "emulation/primitives.h"

#else

__device__ inline uint32_t shared_address(const void *p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ inline void ldmatrix(uint32_t (&r)[1], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void ldmatrix(uint32_t (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void ldmatrix(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void ldmatrix_transposed(uint32_t (&r)[1], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void ldmatrix_transposed(uint32_t (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void ldmatrix_transposed(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800

__device__ inline void mma_bf16(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t) {
    __trap();
}
__device__ inline void mma_tf32(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t) {
    __trap();
}
__device__ inline uint32_t round_to_tf32(float x) {
    return __float_as_uint(x);
}
__device__ inline void cp_async_16(void *shared, const void *global, bool valid = true) {
    *static_cast<uint4 *>(shared) = valid ? *static_cast<const uint4 *>(global) : make_uint4(0, 0, 0, 0);
}
__device__ inline void cp_async_commit() {}
template <int groups_left> __device__ inline void cp_async_wait() {}

#else

__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline uint32_t round_to_tf32(float x) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

__device__ inline void cp_async_16(void *shared, const void *global, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ inline void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int groups_left> __device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
}

#endif
#endif

constexpr float log2_e = 1.44269504088896341f;

/* Two floats rounded to bf16, as a register of mma_bf16. */
__device__ inline uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}
