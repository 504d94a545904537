/* Twins of the PTX instructions in cuda/primitives.cuh, with the fragment layouts of the PTX ISA ("Matrix fragments for
 * mma.m16n8k16", "... mma.m16n8k8", "ldmatrix"). g = lane / 4 is the group, t = lane % 4 the thread in the group. */
#pragma once

#include "block.h"
#include "device_functions.h"
#include "cuda_bf16.h"

namespace emulation {

constexpr unsigned full_warp = 0xffffffffu;

template <int matrices> struct LoadMatrix {
    uint32_t *registers;   // one for each matrix
    const void *row;   // of eight 16-bit elements: lane 8 i + j gives row j of matrix i
};

template <int matrices, bool transposed> void complete_ldmatrix(void *const operands[32], unsigned) {
    for (unsigned i = 0; i < matrices; i++) {
        uint16_t m[8][8];
        for (unsigned row = 0; row < 8; row++)
            memcpy(m[row], static_cast<const LoadMatrix<matrices> *>(operands[8 * i + row])->row, sizeof m[row]);
        for (unsigned lane = 0; lane < 32; lane++) {
            const unsigned g = lane / 4, t = lane % 4;
            const uint32_t low = transposed ? m[2 * t][g] : m[g][2 * t];
            const uint32_t high = transposed ? m[2 * t + 1][g] : m[g][2 * t + 1];
            static_cast<LoadMatrix<matrices> *>(operands[lane])->registers[i] = low | high << 16;
        }
    }
}

template <int matrices, bool transposed> void ldmatrix(uint32_t *registers, const void *row, Site site) {
    if (lane() < 8 * matrices)   // other lanes' addresses are not used
        require_shared("ldmatrix", row, 16, 16, site);
    LoadMatrix<matrices> operand{registers, row};
    collective("ldmatrix", full_warp, &operand, complete_ldmatrix<matrices, transposed>, site);
}

struct Mma {
    float *d;   // 4: D(g, 2t), D(g, 2t+1), D(g+8, 2t), D(g+8, 2t+1)
    const uint32_t *a;   // 4
    uint32_t b[2];
};

/* D(16,8) += A(16,K) B(K,8): exact products, added up in float32 in the order of k. */
template <int K> void multiply(void *const operands[32], const float (&a)[16][K], const float (&b)[K][8]) {
    for (unsigned lane = 0; lane < 32; lane++) {
        const unsigned g = lane / 4, t = lane % 4;
        float *d = static_cast<const Mma *>(operands[lane])->d;
        for (unsigned i = 0; i < 4; i++) {
            const unsigned row = g + i / 2 * 8, column = 2 * t + i % 2;
            for (unsigned k = 0; k < K; k++) d[i] += a[row][k] * b[k][column];
        }
    }
}

inline void complete_mma_bf16(void *const operands[32], unsigned) {
    float a[16][16], b[16][8];
    for (unsigned lane = 0; lane < 32; lane++) {
        const unsigned g = lane / 4, t = lane % 4;
        const Mma &m = *static_cast<const Mma *>(operands[lane]);
        for (unsigned half = 0; half < 2; half++) {
            const auto value = [half](uint32_t pair) { return bf16_value(static_cast<uint16_t>(pair >> 16 * half)); };
            for (unsigned i = 0; i < 4; i++) a[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = value(m.a[i]);
            for (unsigned i = 0; i < 2; i++) b[2 * t + i * 8 + half][g] = value(m.b[i]);
        }
    }
    multiply<16>(operands, a, b);
}

inline void complete_mma_tf32(void *const operands[32], unsigned) {
    float a[16][8], b[8][8];
    const auto value = [](uint32_t bits) { return __uint_as_float(bits & 0xffffe000u); };   // the unit reads 19 bits
    for (unsigned lane = 0; lane < 32; lane++) {
        const unsigned g = lane / 4, t = lane % 4;
        const Mma &m = *static_cast<const Mma *>(operands[lane]);
        for (unsigned i = 0; i < 4; i++) a[g + i % 2 * 8][t + i / 2 * 4] = value(m.a[i]);
        for (unsigned i = 0; i < 2; i++) b[t + i * 4][g] = value(m.b[i]);
    }
    multiply<8>(operands, a, b);
}

inline void mma(const char *name, Complete complete, float *d, const uint32_t *a, uint32_t b0, uint32_t b1, Site site) {
    Mma operand{d, a, {b0, b1}};
    collective(name, full_warp, &operand, complete, site);
}

}   // namespace emulation

template <int N> void ldmatrix(uint32_t (&r)[N], const void *row, emulation::Site site = emulation::Site::here()) {
    emulation::ldmatrix<N, false>(r, row, site);
}
template <int N>
void ldmatrix_transposed(uint32_t (&r)[N], const void *row, emulation::Site site = emulation::Site::here()) {
    emulation::ldmatrix<N, true>(r, row, site);
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     emulation::Site site = emulation::Site::here()) {
    emulation::mma("mma_bf16", emulation::complete_mma_bf16, d, a, b0, b1, site);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     emulation::Site site = emulation::Site::here()) {
    emulation::mma("mma_tf32", emulation::complete_mma_tf32, d, a, b0, b1, site);
}
inline uint32_t round_to_tf32(float x) {   // to nearest, ties away from zero
    const uint32_t bits = __float_as_uint(x);
    return (bits & 0x7fffffffu) >= 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

inline float exp2_approx(float x) {
    return exp2f(x);
}

inline void cp_async_16(void *shared, const void *global, bool valid = true,
                        emulation::Site site = emulation::Site::here()) {
    emulation::copy_async(shared, global, 16, valid ? 16 : 0, site);
}
inline void cp_async_commit() {
    emulation::copy_async_commit();
}
template <int groups_left> void cp_async_wait() {
    emulation::copy_async_wait(groups_left);
}
