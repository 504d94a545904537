/* Flash attention, backward, on tensor cores. P is made again from lse, in tiles, by two kernels:
 *
 *   P = exp(c S − lse)        dP = m (dy vᵀ)      D = Σ_channels dy y      dS = P (dP − D)       m: dropout's factor
 *   a tile of keys, over tiles of queries from the diagonal on      dv = (m P)ᵀ dy      dk = c dSᵀ q      c: the scale
 *   a tile of queries, over tiles of keys up to the diagonal        dq = c dS k
 *
 * S and dP are computed twice, seven products instead of five. In return every sum stays in the registers of one thread,
 * so its order is fixed without atomics, no gradient passes through memory in float32, and P and dS never leave registers.
 */
#include "attention_flash.cuh"
#include "attention_flash_dropout.cuh"
#include "attention_flash_tile.cuh"
#include "attention_rows.cuh"

namespace {

/* ---- dk, dv ---- */

template <int head_size, bool with_dropout> struct KeyShape {
    static constexpr int HS = head_size;
    static constexpr int M = HS <= (with_dropout ? 32 : 64) ? 2 : 1;   // a warp has 16 M keys
    static constexpr int warps = M == 2 ? 4 : 8, threads = 32 * warps;
    static constexpr int rows = warps * 16 * M;   // keys
    static constexpr int queries = HS == 32 && !with_dropout ? 64 : 32;   // of a tile
    static constexpr int blocks = M;   // of a multiprocessor, for which registers must suffice
    static constexpr size_t shared_bytes = 2 * (rows + 2 * queries) * HS * sizeof(bf16) + 2 * queries * sizeof(Row);
    static_assert(row_tile % queries == 0 && rows % queries == 0);
};

template <int HS, bool with_dropout>
__global__ void __launch_bounds__(KeyShape<HS, with_dropout>::threads, KeyShape<HS, with_dropout>::blocks)
    attention_flash_backward_keys(bf16 *dqkv, const bf16 *dy, const bf16 *qkv, const Row *rows, int T, int NH,
                                  float scale, DropoutMask dropout) {
    using Shape = KeyShape<HS, with_dropout>;
    constexpr int M = Shape::M, N = Shape::queries / 8;
    const Part<Shape::rows> part(false, T, NH, HS);
    const int bh = part.bh, first_key = part.first;
    const Head &head = part.head;
    rows += bh * padded(T);

    // besides keys and values, two tiles of queries, of dy and of rows each: one travels while the other is used
    DYNAMIC_SHARED(bf16, k_tile);
    bf16 *const v_tile = k_tile + Shape::rows * HS;
    bf16 *const q_tiles = v_tile + Shape::rows * HS, *const dy_tiles = q_tiles + 2 * Shape::queries * HS;
    Row *const row_tiles = reinterpret_cast<Row *>(dy_tiles + 2 * Shape::queries * HS);
    const auto start_loading = [&](int tile) {
        const int query = tile * Shape::queries, place = tile % 2 * Shape::queries;
        const int count = T - query;
        load_tile<Tile<HS>, Shape::queries, Shape::threads>(q_tiles + place * HS, qkv + head.queries(query),
                                                            head.stride, count);
        load_tile<Tile<HS>, Shape::queries, Shape::threads>(dy_tiles + place * HS, dy + head.y(query), head.C, count);
        if (threadIdx.x < Shape::queries / 2)
            cp_async_16(row_tiles + place + 2 * threadIdx.x, rows + query + 2 * threadIdx.x);
        cp_async_commit();
    };
    load_tile<Tile<HS>, Shape::rows, Shape::threads>(k_tile, qkv + head.keys(first_key), head.stride, T - first_key);
    load_tile<Tile<HS>, Shape::rows, Shape::threads>(v_tile, qkv + head.values(first_key), head.stride, T - first_key);
    const int first_tile = first_key / Shape::queries, end = ceil_div(T, Shape::queries);
    start_loading(first_tile);

    const int warp = uniform(threadIdx.x / 32), g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int warp_key = first_key + warp * 16 * M;
    bf16 *const warp_k = k_tile + warp * 16 * M * HS, *const warp_v = v_tile + warp * 16 * M * HS;
    RowOperand<HS, M, false> k_operand, v_operand;
    k_operand.start(warp_k);
    v_operand.start(warp_v);
    float dk[M][HS / 8][4] = {}, dv[M][HS / 8][4] = {};
    const float scale2 = scale * log2_e;

    const auto add = [&](int tile, auto diagonal) {
        constexpr bool masked = decltype(diagonal)::value;   // in part
        const int first_query = tile * Shape::queries, place = tile % 2 * Shape::queries;
        if (masked && first_query + Shape::queries <= warp_key) return;   // all masked
        Dropped<M, N> dropped;   // drawn before the products take their registers
        if (with_dropout) DropoutBits(dropout, T, bh).by_keys(dropped, first_query, warp_key);
        float s[M][N][4], dp[M][N][4];   // Sᵀ and dPᵀ, then Pᵀ and dSᵀ
        multiply_rows(s, k_operand, lane_by_chunks<HS>(q_tiles + place * HS));
        multiply_rows(dp, v_operand, lane_by_chunks<HS>(dy_tiles + place * HS));
        UNROLL
        for (int n = 0; n < N; n++) {
            const float4 two = *reinterpret_cast<const float4 *>(row_tiles + place + 8 * n + 2 * t);
            const float lse2[2] = {two.x, two.z}, D[2] = {two.y, two.w};
            UNROLL
            for (int m = 0; m < M; m++) {
                const int query = first_query + 8 * n + 2 * t, key = warp_key + 16 * m + g;
                UNROLL
                for (int i = 0; i < 4; i++) {
                    float p = exp2_approx(fmaf(s[m][n][i], scale2, -lse2[i % 2]));
                    if (masked && key + i / 2 * 8 > query + i % 2) p = 0;
                    const bool drop = with_dropout && dropped(m, n, i);
                    const float dp_kept = with_dropout ? dropout.scale * dp[m][n][i] : dp[m][n][i];
                    dp[m][n][i] = p * ((drop ? 0 : dp_kept) - D[i % 2]);
                    s[m][n][i] = drop ? 0 : p;
                }
            }
        }
        uint32_t p[N / 2][M][4], ds[N / 2][M][4];
        to_operand<M, N>(p, s);
        to_operand<M, N>(ds, dp);
        multiply_add<HS>(dv, p, lane_by_rows<HS>(dy_tiles + place * HS));
        multiply_add<HS>(dk, ds, lane_by_rows<HS>(q_tiles + place * HS));
    };

    stream_tiles(first_tile, end, start_loading, [&](int tile) {
        if (tile * Shape::queries < first_key + Shape::rows - 1)
            add(tile, std::true_type{});
        else
            add(tile, std::false_type{});
    });

    const int count = T - warp_key;
    store_rows<HS, M>(dqkv + head.keys(warp_key), head.stride, count, warp_k, dk, [&](int, int) { return scale; });
    store_rows<HS, M>(dqkv + head.values(warp_key), head.stride, count, warp_v, dv,
                      [&](int, int) { return dropout.scale; });
}

/* ---- dq ---- */

template <int head_size, bool with_dropout> struct QueryShape {
    static constexpr int HS = head_size;
    static constexpr int M = HS <= (with_dropout ? 64 : 96) ? 2 : 1;   // a warp has 16 M queries
    static constexpr int warps = M == 2 ? 4 : 8, threads = 32 * warps;
    static constexpr int rows = warps * 16 * M;   // queries
    static constexpr int keys = HS == 32 && !with_dropout ? 64 : 32;   // of a tile
    static constexpr bool hold = HS <= 64 || M == 1;   // q and dy in registers
    static constexpr int blocks = M;
    static constexpr size_t shared_bytes = (2 * rows + 4 * keys) * HS * sizeof(bf16);
    static_assert(row_tile % rows == 0);
};

template <int HS, bool with_dropout>
__global__ void __launch_bounds__(QueryShape<HS, with_dropout>::threads, QueryShape<HS, with_dropout>::blocks)
    attention_flash_backward_queries(bf16 *dqkv, const bf16 *dy, const bf16 *qkv, const Row *rows, int T, int NH,
                                     float scale, DropoutMask dropout) {
    using Shape = QueryShape<HS, with_dropout>;
    constexpr int M = Shape::M, N = Shape::keys / 8;
    const Part<Shape::rows> part(true, T, NH, HS);
    const int bh = part.bh, first_query = part.first;
    const Head &head = part.head;

    DYNAMIC_SHARED(bf16, q_tile);
    bf16 *const dy_tile = q_tile + Shape::rows * HS;
    const KeyTiles<HS, Shape::keys, Shape::threads> tiles{dy_tile + Shape::rows * HS, qkv, head, T};
    load_tile<Tile<HS>, Shape::rows, Shape::threads>(q_tile, qkv + head.queries(first_query), head.stride,
                                                     T - first_query);
    load_tile<Tile<HS>, Shape::rows, Shape::threads>(dy_tile, dy + head.y(first_query), head.C, T - first_query);
    tiles.start(0);

    const int warp = uniform(threadIdx.x / 32), g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int warp_query = first_query + warp * 16 * M;
    bf16 *const warp_q = q_tile + warp * 16 * M * HS;
    Row row[M][2];   // g and g + 8
    UNROLL
    for (int m = 0; m < M; m++) {
        row[m][0] = rows[bh * padded(T) + warp_query + 16 * m + g];
        row[m][1] = rows[bh * padded(T) + warp_query + 16 * m + g + 8];
    }
    RowOperand<HS, M, Shape::hold> q_operand, dy_operand;
    float dq[M][HS / 8][4] = {};
    const float scale2 = scale * log2_e;

    const auto add = [&](int tile, auto diagonal) {
        constexpr bool masked = decltype(diagonal)::value;   // in part
        const int first_key = tile * Shape::keys;
        if (masked && (first_key > warp_query + 16 * M - 1 || warp_query >= T)) return;   // all masked, or no queries
        Dropped<M, N> dropped;   // drawn before the products take their registers
        if (with_dropout) DropoutBits(dropout, T, bh).by_queries(dropped, warp_query, first_key);
        float s[M][N][4], dp[M][N][4];   // S and dP, then dS
        multiply_rows(s, q_operand, lane_by_chunks<HS>(tiles.keys_of(tile)));
        multiply_rows(dp, dy_operand, lane_by_chunks<HS>(tiles.values_of(tile)));
        UNROLL
        for (int m = 0; m < M; m++) {
            UNROLL
            for (int n = 0; n < N; n++) {
                const int query = warp_query + 16 * m + g, key = first_key + 8 * n + 2 * t;
                UNROLL
                for (int i = 0; i < 4; i++) {
                    float p = exp2_approx(fmaf(s[m][n][i], scale2, -row[m][i / 2].lse2));
                    if (masked && key + i % 2 > query + i / 2 * 8) p = 0;
                    const bool drop = with_dropout && dropped(m, n, i);
                    const float dp_kept = with_dropout ? dropout.scale * dp[m][n][i] : dp[m][n][i];
                    dp[m][n][i] = p * ((drop ? 0 : dp_kept) - row[m][i / 2].D);
                }
            }
        }
        uint32_t ds[N / 2][M][4];
        to_operand<M, N>(ds, dp);
        multiply_add<HS>(dq, ds, lane_by_rows<HS>(tiles.keys_of(tile)));
    };

    const int key_tiles = ceil_div(min(first_query + Shape::rows, T), Shape::keys);
    stream_tiles(
        0, key_tiles, [&](int tile) { tiles.start(tile); },
        [&](int tile) {
            if (tile == 0) {
                q_operand.start(warp_q);
                dy_operand.start(dy_tile + warp * 16 * M * HS);
            }
            if ((tile + 1) * Shape::keys - 1 > first_query)
                add(tile, std::true_type{});
            else
                add(tile, std::false_type{});
        });
    store_rows<HS, M>(dqkv + head.queries(warp_query), head.stride, T - warp_query, warp_q, dq,
                      [&](int, int) { return scale; });
}

}   // namespace

cudaError_t attention_flash_backward(bf16 *dqkv, const bf16 *dy, const bf16 *y, const float *lse, const bf16 *qkv,
                                     void *scratch, int64_t B, int64_t T, int64_t NH, int64_t HS, float scale,
                                     const DropoutMask &dropout, cudaStream_t stream) {
    Row *const rows = static_cast<Row *>(scratch);
    return for_instance(HS, dropout, [&](auto head_size, auto with_dropout) -> cudaError_t {
        using Keys = KeyShape<head_size, with_dropout>;
        using Queries = QueryShape<head_size, with_dropout>;
        const auto keys = attention_flash_backward_keys<head_size, with_dropout>;
        const auto queries = attention_flash_backward_queries<head_size, with_dropout>;
        CUDA_TRY(launch_rows<head_size>(rows, dy, y, lse, B, T, NH, stream));
        CUDA_TRY(launch_parts<Keys>(keys, B, T, NH, scale, dropout, stream, dqkv, dy, qkv, rows));
        return launch_parts<Queries>(queries, B, T, NH, scale, dropout, stream, dqkv, dy, qkv, rows);
    });
}
