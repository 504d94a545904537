/* Products of a warpgroup, four warps in a row, on Hopper's tensor cores (PTX ISA, "Asynchronous Warpgroup Level
 * Matrix Multiply-Accumulate"). Every thread of the warpgroup must make the same call.
 *
 *   wgmma_rows<add>(d, a, b, k)   D(64,64) = or += A(64,16) B(16,64)    A(m, i) = a(m, 16 k + i)   B(i, n) = b(n, 16 k + i)
 *   wgmma_columns(d, a, b, k)     D(64,64) += A(64,16) B(16,64)         A in registers             B(i, n) = b(16 k + i, n)
 *
 * A tile, a or b, is 64×64 bfloat16 in shared memory, aligned to 1024 bytes, a row's chunk c of 8 elements in place
 * c ^ row % 8. Warp w of the warpgroup has rows 16 w to 16 w + 15 of D and, in registers, of A, each lane as in mma_bf16
 * (primitives.cuh): a is A's 16×16, d[n] is columns 8 n to 8 n + 7 of D. Registers of A serve one product: ptxas 13.0
 * gives them to another operand afterwards, even if they are read again.
 *
 * A product only starts with the call. Until a wait, d must not be touched, nor the tiles be written:
 *
 *   wgmma_fence()             before the first product, and after other writes to its registers
 *   wgmma_commit()            the products started since the last commit are a group
 *   wgmma_wait<n>(d...)       all but the latest n groups are done, and their results in d
 *   fence_shared_writes()     between writes of a tile and the barrier before products read it, by each who wrote
 *
 * Compute capability 9.0 has them, in code made for 9.0a; otherwise they trap.
 */
#pragma once

#include "common.cuh"

#ifdef PYGPT_EMULATION

#include "emulation/wgmma.h"

#elif !defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ inline void wgmma_fence() {}
__device__ inline void wgmma_commit() {}
__device__ inline void fence_shared_writes() {}
template <int groups_left, class... Sums> __device__ void wgmma_wait(Sums &...) {
    __trap();
}
template <bool add> __device__ void wgmma_rows(float (&)[8][4], const __nv_bfloat16 *, const __nv_bfloat16 *, int) {
    __trap();
}
__device__ inline void wgmma_columns(float (&)[8][4], const uint32_t (&)[4], const __nv_bfloat16 *, int) {
    __trap();
}

#else

__device__ inline void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ inline void fence_shared_writes() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* The compiler must not move a use of d to before the wait: so here d is written. */
__device__ inline void wgmma_done(float (&d)[8][4]) {
    UNROLL
    for (int i = 0; i < 32; i++) asm volatile("" : "+f"(d[i / 4][i % 4])::"memory");
}
template <int groups_left, class... Sums> __device__ void wgmma_wait(Sums &...d) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups_left) : "memory");
    (wgmma_done(d), ...);
}

/* "Matrix-descriptor": rows of 128 bytes, exchanged in 128-byte swizzle mode, eight of them 1024 bytes. Its unit is 16
 * bytes. */
__device__ inline uint64_t wgmma_descriptor(const void *tile) {
    const uint64_t at = shared_address(tile) >> 4, eight_rows = 1024 >> 4;
    return at | eight_rows << 16 | eight_rows << 32 | uint64_t{1} << 62;
}

#define WGMMA_FOUR(constraint, n) constraint(d[n][0]), constraint(d[n][1]), constraint(d[n][2]), constraint(d[n][3])
#define WGMMA_SUMS(constraint)                                                                                         \
    WGMMA_FOUR(constraint, 0), WGMMA_FOUR(constraint, 1), WGMMA_FOUR(constraint, 2), WGMMA_FOUR(constraint, 3),        \
        WGMMA_FOUR(constraint, 4), WGMMA_FOUR(constraint, 5), WGMMA_FOUR(constraint, 6), WGMMA_FOUR(constraint, 7)
/* adds: a predicate, whether to add to D or to overwrite it */
#define WGMMA(adds, operands)                                                                                          \
    "{\n"                                                                                                              \
    ".reg .pred adds;\n"                                                                                               \
    "setp.ne.u32 adds, " #adds ", 0;\n"                                                                                \
    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "                                                            \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "  \
    "%24, %25, %26, %27, %28, %29, %30, %31}, " operands ";\n"                                                         \
    "}"

template <bool add>
__device__ void wgmma_rows(float (&d)[8][4], const __nv_bfloat16 *a, const __nv_bfloat16 *b, int k) {
    const unsigned offset = static_cast<unsigned>(2 * k);   // of 16 columns
    const uint64_t from_a = wgmma_descriptor(a) + offset, from_b = wgmma_descriptor(b) + offset;
    if constexpr (add)
        asm volatile(WGMMA(1, "%32, %33, adds, 1, 1, 0, 0") : WGMMA_SUMS("+f") : "l"(from_a), "l"(from_b) : "memory");
    else
        asm volatile(WGMMA(0, "%32, %33, adds, 1, 1, 0, 0") : WGMMA_SUMS("=f") : "l"(from_a), "l"(from_b) : "memory");
}
__device__ inline void wgmma_columns(float (&d)[8][4], const uint32_t (&a)[4], const __nv_bfloat16 *b, int k) {
    const unsigned offset = static_cast<unsigned>(128 * k);   // of 16 rows
    asm volatile(WGMMA(1, "{%32, %33, %34, %35}, %36, adds, 1, 1, 1")
                 : WGMMA_SUMS("+f")
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(b) + offset)
                 : "memory");
}

#undef WGMMA
#undef WGMMA_SUMS
#undef WGMMA_FOUR

#endif
