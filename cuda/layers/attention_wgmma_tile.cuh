/* What the kernels for Hopper share. A block is one warpgroup, which has 64 rows of a head and streams the others past
 * them in tiles of 64; so the mask is that of one tile, the diagonal's. Tiles lie in shared memory as those of
 * attention_flash_tile.cuh do. */
#pragma once

#include "../wgmma.cuh"
#include "attention_flash_tile.cuh"
#include "attention_wgmma.cuh"

namespace {

constexpr int wgmma_rows_of_tile = 64, wgmma_head_size = 64, wgmma_threads = 128;
constexpr size_t wgmma_tile_bytes = wgmma_rows_of_tile * wgmma_head_size * sizeof(bf16);

using WarpgroupSum = float[1][8][4];   // this lane's, of the 16 rows of its warp by 64

/* Starts c = a bᵀ for the rows a and b of two tiles. */
__device__ inline void start_multiply_rows(WarpgroupSum &c, const bf16 *a, const bf16 *b) {
    wgmma_fence();
    wgmma_rows<false>(c[0], a, b, 0);
    UNROLL
    for (int k = 1; k < wgmma_head_size / 16; k++) wgmma_rows<true>(c[0], a, b, k);
    wgmma_commit();
}

/* Starts c += a b for the rows b of a tile. */
__device__ inline void start_multiply_add(WarpgroupSum &c, const uint32_t (&a)[4][1][4], const bf16 *b) {
    wgmma_fence();
    UNROLL
    for (int k = 0; k < wgmma_rows_of_tile / 16; k++) wgmma_columns(c[0], a[k][0], b, k);
    wgmma_commit();
}

} // namespace
