/* Flash attention for Hopper, backward: the formulas and the two kernels of attention_flash_backward.cu, in products of a
 * warpgroup. A product that has been started runs while the warpgroup computes what the next one needs. */
#include "attention_rows.cuh"
#include "attention_wgmma_tile.cuh"

namespace {

/* A block has two tiles of its own, and two of each of the tensors that it streams. */
template <int blocks_of_a_multiprocessor, size_t bytes_beside> struct BackwardShape {
    static constexpr int HS = wgmma_head_size, rows = wgmma_rows_of_tile, threads = wgmma_threads;
    static constexpr int blocks = blocks_of_a_multiprocessor;   // for which registers must suffice
    static constexpr size_t shared_bytes = 6 * wgmma_tile_bytes + bytes_beside;
    static_assert(row_tile % rows == 0);
};
using KeyShape = BackwardShape<3, 2 * wgmma_rows_of_tile * sizeof(Row)>;
using QueryShape = BackwardShape<4, 0>;

/* ---- dk, dv ---- */

__global__ void __launch_bounds__(KeyShape::threads, KeyShape::blocks)
    attention_wgmma_backward_keys(bf16 *dqkv, const bf16 *dy, const bf16 *qkv, const Row *rows, int T, int NH,
                                  float scale, DropoutMask) {
    using Shape = KeyShape;
    constexpr int HS = Shape::HS, queries = wgmma_rows_of_tile;
    const Part<Shape::rows> part(false, T, NH, HS);
    const Head &head = part.head;
    rows += part.bh * padded(T);

    DYNAMIC_SHARED(bf16, k_tile);
    bf16 *const v_tile = k_tile + Shape::rows * HS, *const q_tiles = v_tile + Shape::rows * HS;
    bf16 *const dy_tiles = q_tiles + 2 * queries * HS;
    Row *const row_tiles = reinterpret_cast<Row *>(dy_tiles + 2 * queries * HS);
    const auto start_loading = [&](int tile) {
        const int query = tile * queries, place = tile % 2 * queries, count = T - query;
        load_tile<Tile<HS>, queries, Shape::threads>(q_tiles + place * HS, qkv + head.queries(query), head.stride,
                                                     count);
        load_tile<Tile<HS>, queries, Shape::threads>(dy_tiles + place * HS, dy + head.y(query), head.C, count);
        if (threadIdx.x < queries / 2) cp_async_16(row_tiles + place + 2 * threadIdx.x, rows + query + 2 * threadIdx.x);
        cp_async_commit();
    };
    load_tile<Tile<HS>, Shape::rows, Shape::threads>(k_tile, qkv + head.keys(part.first), head.stride, T - part.first);
    load_tile<Tile<HS>, Shape::rows, Shape::threads>(v_tile, qkv + head.values(part.first), head.stride,
                                                     T - part.first);
    const int diagonal = part.first / queries, end = ceil_div(T, queries);   // diagonal: the first tile
    start_loading(diagonal);

    const int warp = uniform(threadIdx.x / 32), g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    WarpgroupSum dk = {}, dv = {};
    const float scale2 = scale * log2_e;

    const auto add = [&](int tile) {
        const int place = tile % 2 * queries;
        const bf16 *const q_tile = q_tiles + place * HS, *const dy_tile = dy_tiles + place * HS;
        const auto two_rows = [&](int n) {
            return *reinterpret_cast<const float4 *>(row_tiles + place + 8 * n + 2 * t);
        };
        WarpgroupSum s, dp;   // Sᵀ and dPᵀ, then Pᵀ and dSᵀ
        start_multiply_rows(s, k_tile, q_tile);
        start_multiply_rows(dp, v_tile, dy_tile);
        float of_column[8][2];   // lse2, then D
        UNROLL
        for (int n = 0; n < 8; n++) of_column[n][0] = two_rows(n).x, of_column[n][1] = two_rows(n).z;
        wgmma_wait<1>(s[0]);
        UNROLL
        for (int i = 0; i < 32; i++) {
            float &p = s[0][i / 4][i % 4];
            p = exp2_approx(fmaf(p, scale2, -of_column[i / 4][i % 2]));
        }
        if (tile == diagonal) {
            UNROLL
            for (int i = 0; i < 32; i++)
                if (16 * warp + g + i / 2 % 2 * 8 > i / 4 * 8 + 2 * t + i % 2) s[0][i / 4][i % 4] = 0;
        }
        uint32_t p[4][1][4], ds[4][1][4];
        to_operand<1, 8>(p, s);
        start_multiply_add(dv, p, dy_tile);
        UNROLL
        for (int n = 0; n < 4; n++) of_column[n][0] = two_rows(n).y, of_column[n][1] = two_rows(n).w;
        wgmma_wait<1>(dp[0]);
        UNROLL   // only now, so that no register is spilled
            for (int n = 4; n < 8; n++) of_column[n][0] = two_rows(n).y,
                                        of_column[n][1] = two_rows(n).w;
        UNROLL
        for (int i = 0; i < 32; i++) {
            float &x = dp[0][i / 4][i % 4];
            x = s[0][i / 4][i % 4] * (x - of_column[i / 4][i % 2]);
        }
        to_operand<1, 8>(ds, dp);
        start_multiply_add(dk, ds, q_tile);
        wgmma_wait<0>(dv[0], dk[0]);
    };

    stream_tiles(diagonal, end, start_loading, add, fence_shared_writes);

    const int warp_key = part.first + 16 * warp, count = T - warp_key;
    __syncthreads();   // no warp's product reads the keys and values any more
    store_rows<HS, 1>(dqkv + head.keys(warp_key), head.stride, count, k_tile + 16 * warp * HS, dk,
                      [&](int, int) { return scale; });
    store_rows<HS, 1>(dqkv + head.values(warp_key), head.stride, count, v_tile + 16 * warp * HS, dv,
                      [](int, int) { return 1.0f; });
}

/* ---- dq ---- */

__global__ void __launch_bounds__(QueryShape::threads, QueryShape::blocks)
    attention_wgmma_backward_queries(bf16 *dqkv, const bf16 *dy, const bf16 *qkv, const Row *rows, int T, int NH,
                                     float scale, DropoutMask) {
    using Shape = QueryShape;
    constexpr int HS = Shape::HS, keys = wgmma_rows_of_tile;
    const Part<Shape::rows> part(true, T, NH, HS);
    const Head &head = part.head;

    DYNAMIC_SHARED(bf16, q_tile);
    bf16 *const dy_tile = q_tile + Shape::rows * HS;
    const KeyTiles<HS, keys, Shape::threads> tiles{dy_tile + Shape::rows * HS, qkv, head, T};
    load_tile<Tile<HS>, Shape::rows, Shape::threads>(q_tile, qkv + head.queries(part.first), head.stride,
                                                     T - part.first);
    load_tile<Tile<HS>, Shape::rows, Shape::threads>(dy_tile, dy + head.y(part.first), head.C, T - part.first);
    tiles.start(0);

    const int warp = uniform(threadIdx.x / 32), g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int warp_query = part.first + 16 * warp, diagonal = part.first / keys;   // the last tile
    const Row *const row = rows + part.bh * padded(T) + warp_query + g;
    const Row of_row[2] = {row[0], row[8]};
    WarpgroupSum dq = {};
    const float scale2 = scale * log2_e;

    const auto add = [&](int tile) {
        WarpgroupSum s, dp;   // S and dP, then P and dS
        start_multiply_rows(s, q_tile, tiles.keys_of(tile));
        start_multiply_rows(dp, dy_tile, tiles.values_of(tile));
        wgmma_wait<1>(s[0]);
        UNROLL
        for (int i = 0; i < 32; i++) {
            float &p = s[0][i / 4][i % 4];
            p = exp2_approx(fmaf(p, scale2, -of_row[i / 2 % 2].lse2));
        }
        if (tile == diagonal) {
            UNROLL
            for (int i = 0; i < 32; i++)
                if (i / 4 * 8 + 2 * t + i % 2 > 16 * warp + g + i / 2 % 2 * 8) s[0][i / 4][i % 4] = 0;
        }
        wgmma_wait<0>(dp[0]);
        UNROLL
        for (int i = 0; i < 32; i++) {
            float &x = dp[0][i / 4][i % 4];
            x = s[0][i / 4][i % 4] * (x - of_row[i / 2 % 2].D);
        }
        uint32_t ds[4][1][4];
        to_operand<1, 8>(ds, dp);
        start_multiply_add(dq, ds, tiles.keys_of(tile));
        wgmma_wait<0>(dq[0]);
    };

    stream_tiles(0, diagonal + 1, [&](int tile) { tiles.start(tile); }, add, fence_shared_writes);

    __syncthreads();   // no warp's product reads the queries any more
    store_rows<HS, 1>(dqkv + head.queries(warp_query), head.stride, T - warp_query, q_tile + 16 * warp * HS, dq,
                      [&](int, int) { return scale; });
}

}   // namespace

cudaError_t attention_wgmma_backward(bf16 *dqkv, const bf16 *dy, const bf16 *y, const float *lse, const bf16 *qkv,
                                     void *scratch, int64_t B, int64_t T, int64_t NH, float scale,
                                     cudaStream_t stream) {
    Row *const rows = static_cast<Row *>(scratch);
    CUDA_TRY(launch_rows<wgmma_head_size>(rows, dy, y, lse, B, T, NH, stream));
    CUDA_TRY(launch_parts<KeyShape>(attention_wgmma_backward_keys, B, T, NH, scale, DropoutMask{}, stream, dqkv, dy,
                                    qkv, rows));
    return launch_parts<QueryShape>(attention_wgmma_backward_queries, B, T, NH, scale, DropoutMask{}, stream, dqkv, dy,
                                    qkv, rows);
}
