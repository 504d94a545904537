/* Flash attention for Hopper, forward: the formulas of attention_flash_forward.cu, in products of a warpgroup. While one
 * block waits for a product, the others of its multiprocessor exponentiate. */
#include "attention_wgmma_tile.cuh"

namespace {

struct ForwardShape {
    static constexpr int HS = wgmma_head_size, threads = wgmma_threads;
    static constexpr int rows = wgmma_rows_of_tile, keys = wgmma_rows_of_tile;   // rows: queries
    static constexpr int blocks = 5;   // of a multiprocessor, for which registers must suffice
    static constexpr size_t shared_bytes = 5 * wgmma_tile_bytes;
};

__global__ void __launch_bounds__(ForwardShape::threads, ForwardShape::blocks)
    attention_wgmma_forward_kernel(bf16 *y, float *lse, const bf16 *qkv, int T, int NH, float scale, DropoutMask) {
    using Shape = ForwardShape;
    constexpr int HS = Shape::HS;
    const Part<Shape::rows> part(true, T, NH, HS);
    const Head &head = part.head;

    DYNAMIC_SHARED(bf16, q_tile);
    const KeyTiles<HS, Shape::keys, Shape::threads> tiles{q_tile + Shape::rows * HS, qkv, head, T};
    load_tile<Tile<HS>, Shape::rows, Shape::threads>(q_tile, qkv + head.queries(part.first), head.stride,
                                                     T - part.first);
    tiles.start(0);

    const int warp = uniform(threadIdx.x / 32), g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int warp_query = part.first + 16 * warp, diagonal = part.first / Shape::keys;   // the last tile
    WarpgroupSum a = {};
    float largest[2] = {-INFINITY, -INFINITY};
    float sum[2] = {};   // of rows g and g + 8, as largest is, and of this lane's columns
    const float scale2 = scale * log2_e;

    const auto attend = [&](int tile) {
        WarpgroupSum s;
        start_multiply_rows(s, q_tile, tiles.keys_of(tile));
        wgmma_wait<0>(s[0]);
        if (tile == diagonal) {
            UNROLL
            for (int n = 0; n < 8; n++) {
                UNROLL
                for (int i = 0; i < 4; i++)
                    if (8 * n + 2 * t + i % 2 > 16 * warp + g + i / 2 * 8) s[0][n][i] = -INFINITY;
            }
        }
        UNROLL
        for (int half = 0; half < 2; half++) {
            float most = largest[half];
            UNROLL
            for (int n = 0; n < 8; n++) most = fmaxf(most, fmaxf(s[0][n][2 * half], s[0][n][2 * half + 1]));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            const float shrink = exp2_approx((largest[half] - most) * scale2);   // 0 in the first tile
            const float offset = most * scale2;
            largest[half] = most;
            sum[half] *= shrink;
            UNROLL
            for (int n = 0; n < 8; n++) {
                UNROLL
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    s[0][n][i] = exp2_approx(fmaf(s[0][n][i], scale2, -offset));
                    sum[half] += s[0][n][i];
                }
            }
            if (__any_sync(0xffffffffu, shrink != 1)) {   // seldom after the first tiles
                UNROLL
                for (int n = 0; n < 8; n++) {
                    a[0][n][2 * half] *= shrink;
                    a[0][n][2 * half + 1] *= shrink;
                }
            }
        }
        uint32_t p[4][1][4];
        to_operand<1, 8>(p, s);
        start_multiply_add(a, p, tiles.values_of(tile));
        wgmma_wait<0>(a[0]);
    };

    stream_tiles(0, diagonal + 1, [&](int tile) { tiles.start(tile); }, attend, fence_shared_writes);

    UNROLL
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
        const int query = warp_query + 8 * half + g;
        if (t == 0 && query < T)
            lse[static_cast<int64_t>(part.bh) * T + query] = largest[half] * scale + logf(sum[half]);
    }
    __syncthreads();   // no warp's product reads the queries any more
    store_rows<HS, 1>(y + head.y(warp_query), head.C, T - warp_query, q_tile + 16 * warp * HS, a,
                      [&](int, int half) { return 1.0f / sum[half]; });
}

}   // namespace

bool attention_wgmma_fits(int compute_capability, int64_t HS, const DropoutMask &dropout) {
#if defined(PYGPT_WGMMA) || defined(PYGPT_EMULATION)
    constexpr bool built = true;
#else
    constexpr bool built = false;
#endif
    return built && compute_capability == 90 && HS == wgmma_head_size && !dropout.draw;
}

cudaError_t attention_wgmma_forward(bf16 *y, float *lse, const bf16 *qkv, int64_t B, int64_t T, int64_t NH, float scale,
                                    cudaStream_t stream) {
    return launch_parts<ForwardShape>(attention_wgmma_forward_kernel, B, T, NH, scale, DropoutMask{}, stream, y, lse,
                                      qkv);
}
