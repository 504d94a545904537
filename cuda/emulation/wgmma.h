/* Twins of the PTX instructions in cuda/wgmma.cuh, with the layouts of the PTX ISA ("Register Fragments and Shared
 * Memory Matrix Layouts" of wgmma.m64nNk16). A warp's rows of a product depend on no other warp, so each warp computes
 * its own when it starts them; they come to light with the wait. */
#pragma once

#include "primitives.h"

namespace emulation {

/* Element (row, column) of a tile, as a product reads it. */
inline float wgmma_element(const uint16_t *tile, unsigned row, unsigned column) {
    return bf16_value(tile[row * 64 + (column / 8 ^ row % 8) * 8 + column % 8]);
}

struct Wgmma {
    float *d;                    // 8 times D(g, 2t), D(g, 2t+1), D(g+8, 2t), D(g+8, 2t+1)
    const uint32_t *registers;   // A's 4, or NULL
    const void *a, *b;           // tiles
    int k;
    bool add;
    unsigned first_row;          // of the warp in A
};

inline void complete_wgmma(void *const operands[32], unsigned) {
    const Wgmma &first = *static_cast<const Wgmma *>(operands[0]);
    const auto *const a_tile = static_cast<const uint16_t *>(first.a), *const b_tile =
                                                                           static_cast<const uint16_t *>(first.b);
    const unsigned from = 16 * static_cast<unsigned>(first.k);
    float a[16][16], b[16][64];
    for (unsigned i = 0; i < 16; i++)
        for (unsigned n = 0; n < 64; n++)
            b[i][n] = a_tile ? wgmma_element(b_tile, n, from + i) : wgmma_element(b_tile, from + i, n);
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned i = 0; i < 8; i++) {
            const unsigned row = lane / 4 + i / 2 % 2 * 8, column = lane % 4 * 2 + i / 4 * 8 + i % 2;
            const uint32_t *const registers = static_cast<const Wgmma *>(operands[lane])->registers;
            a[row][column] = a_tile ? wgmma_element(a_tile, first.first_row + row, from + column)
                                    : bf16_value(static_cast<uint16_t>(registers[i / 2] >> i % 2 * 16));
        }
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned n = 0; n < 8; n++)
            for (unsigned i = 0; i < 4; i++) {
                const unsigned row = lane / 4 + i / 2 * 8, column = 8 * n + lane % 4 * 2 + i % 2;
                float &d = static_cast<const Wgmma *>(operands[lane])->d[4 * n + i];
                if (!first.add) d = 0;
                for (unsigned k = 0; k < 16; k++) d += a[row][k] * b[k][column];
            }
}

inline void wgmma(const char *name, Wgmma operand, Site site) {
    for (const void *tile : {operand.a, operand.b})
        if (tile) require_shared(name, tile, size_t{64} * 64 * 2, 1024, site);
    operand.d = product_sums(operand.d);
    collective(name, full_warp, &operand, complete_wgmma, site);
}

} // namespace emulation

template <bool add>
void wgmma_rows(float (&d)[8][4], const __nv_bfloat16 *a, const __nv_bfloat16 *b, int k,
                emulation::Site site = emulation::Site::here()) {
    emulation::wgmma("wgmma_rows", {d[0], nullptr, a, b, k, add, threadIdx.x / 32 % 4 * 16}, site);
}
inline void wgmma_columns(float (&d)[8][4], const uint32_t (&a)[4], const __nv_bfloat16 *b, int k,
                          emulation::Site site = emulation::Site::here()) {
    emulation::wgmma("wgmma_columns", {d[0], a, nullptr, b, k, true, 0}, site);
}
inline void wgmma_fence() {}
inline void wgmma_commit() {
    emulation::product_commit();
}
inline void fence_shared_writes() {}
template <int groups_left, class... Sums> void wgmma_wait(Sums &...) {
    emulation::product_wait(groups_left);
}
