/* Flash attention, backward, on tensor cores. P is made again from lse, in tiles, by two kernels:
 *
 *   P = exp(S/√HS − lse)      dP = m (dy vᵀ)      D = Σ_channels dy y      dS = P (dP − D)       m: dropout's factor
 *   a tile of keys, over tiles of queries from the diagonal on      dv = (m P)ᵀ dy      dk = dSᵀ q / √HS
 *   a tile of queries, over tiles of keys up to the diagonal        dq = dS k / √HS
 *
 * S and dP are computed twice, seven products instead of five. In return every sum stays in the registers of one thread,
 * so its order is fixed without atomics, no gradient passes through memory in float32, and P and dS never leave registers.
 */
#include "attention_flash.cuh"
#include "attention_flash_dropout.cuh"
#include "attention_flash_tile.cuh"

namespace {

/* What the kernels need of a query besides its channels: P = 2^(S log2(e)/√HS − lse2). */
struct Row {
    float lse2, D;   // lse log2(e); beyond the end of the sequence infinity, so that P = 0
};

/* Rows of a head are padded to whole tiles of either kernel. */
constexpr int row_tile = 128;

__host__ __device__ inline int64_t padded(int64_t T) {
    return ceil_div<int64_t>(T, row_tile) * row_tile;
}

/* ---- D: some lanes for each query, 8 channels a lane ---- */

constexpr int row_threads = 256;

template <int HS> constexpr int row_lanes = HS / 8 <= 4 ? 4 : HS / 8 <= 8 ? 8 : 16;

__device__ inline float bf16_product(uint32_t a, uint32_t b) {   // of two pairs
    const auto low = [](uint32_t pair) { return __uint_as_float(pair << 16); };
    const auto high = [](uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); };
    return low(a) * low(b) + high(a) * high(b);
}

template <int HS>
__global__ void __launch_bounds__(row_threads)
    attention_flash_rows(Row *rows, const bf16 *dy, const bf16 *y, const float *lse, int T, int NH, unsigned blocks) {
    constexpr int lanes = row_lanes<HS>;
    const int64_t b = blockIdx.x / blocks;
    const unsigned i = blockIdx.x % blocks * (row_threads / lanes) + threadIdx.x / lanes;
    const unsigned h = i % NH, t = i / NH, chunk = threadIdx.x % lanes, Tp = padded(T);
    const int64_t head = b * NH + h, row = (b * T + t) * NH + h;
    float D = 0;
    if (t < static_cast<unsigned>(T) && chunk < HS / 8) {
        const uint4 u = *reinterpret_cast<const uint4 *>(dy + row * HS + 8 * chunk);
        const uint4 v = *reinterpret_cast<const uint4 *>(y + row * HS + 8 * chunk);
        D = bf16_product(u.x, v.x) + bf16_product(u.y, v.y) + (bf16_product(u.z, v.z) + bf16_product(u.w, v.w));
    }
    UNROLL
    for (int delta = lanes / 2; delta > 0; delta /= 2) D += __shfl_xor_sync(0xffffffffu, D, delta);
    if (chunk != 0 || t >= Tp) return;
    rows[head * Tp + t] = {t < static_cast<unsigned>(T) ? lse[head * T + t] * log2_e : INFINITY, D};
}

/* ---- dk, dv ---- */

template <int HS, bool with_dropout> struct KeyShape {
    static constexpr int M = HS <= (with_dropout ? 32 : 64) ? 2 : 1;   // a warp has 16 M keys
    static constexpr int warps = M == 2 ? 4 : 8, threads = 32 * warps;
    static constexpr int keys = warps * 16 * M, queries = HS == 32 && !with_dropout ? 64 : 32;
    static constexpr int blocks = M;   // of a multiprocessor, for which registers must suffice
    static constexpr size_t shared_bytes = 2 * (keys + 2 * queries) * HS * sizeof(bf16) + 2 * queries * sizeof(Row);
    static_assert(row_tile % queries == 0 && keys % queries == 0);
};

template <int HS, bool with_dropout>
__global__ void __launch_bounds__(KeyShape<HS, with_dropout>::threads, KeyShape<HS, with_dropout>::blocks)
    attention_flash_backward_keys(bf16 *dqkv, const bf16 *dy, const bf16 *qkv, const Row *rows, int T, int NH,
                                  float scale, DropoutMask dropout) {
    using Shape = KeyShape<HS, with_dropout>;
    constexpr int M = Shape::M, N = Shape::queries / 8;
    const int tiles = ceil_div(T, Shape::keys);
    const int bh = static_cast<int>(blockIdx.x) / tiles;
    const int first_key = static_cast<int>(blockIdx.x) % tiles * Shape::keys;   // most queries first
    const Head head(bh, T, NH, HS);
    rows += bh * padded(T);

    // besides keys and values, two tiles of queries, of dy and of rows each: one travels while the other is used
    DYNAMIC_SHARED(bf16, k_tile);
    bf16 *const v_tile = k_tile + Shape::keys * HS;
    bf16 *const q_tiles = v_tile + Shape::keys * HS, *const dy_tiles = q_tiles + 2 * Shape::queries * HS;
    Row *const row_tiles = reinterpret_cast<Row *>(dy_tiles + 2 * Shape::queries * HS);
    const auto start_loading = [&](int tile) {
        const int query = tile * Shape::queries, place = tile % 2 * Shape::queries;
        const int count = T - query;
        load_tile<HS, Shape::queries, Shape::threads>(q_tiles + place * HS, qkv + head.queries(query), head.stride,
                                                      count);
        load_tile<HS, Shape::queries, Shape::threads>(dy_tiles + place * HS, dy + head.y(query), head.C, count);
        if (threadIdx.x < Shape::queries / 2)
            cp_async_16(row_tiles + place + 2 * threadIdx.x, rows + query + 2 * threadIdx.x);
        cp_async_commit();
    };
    load_tile<HS, Shape::keys, Shape::threads>(k_tile, qkv + head.keys(first_key), head.stride, T - first_key);
    load_tile<HS, Shape::keys, Shape::threads>(v_tile, qkv + head.values(first_key), head.stride, T - first_key);
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

    for (int tile = first_tile; tile < end; tile++) {
        cp_async_wait<0>();
        __syncthreads();   // this tile is there, and nobody reads the one before it any more
        if (tile + 1 < end) start_loading(tile + 1);
        if (tile * Shape::queries < first_key + Shape::keys - 1)
            add(tile, std::true_type{});
        else
            add(tile, std::false_type{});
    }

    const int count = T - warp_key;
    store_rows<HS, M>(dqkv + head.keys(warp_key), head.stride, count, warp_k, dk, [&](int, int) { return scale; });
    store_rows<HS, M>(dqkv + head.values(warp_key), head.stride, count, warp_v, dv,
                      [&](int, int) { return dropout.scale; });
}

/* ---- dq ---- */

template <int HS, bool with_dropout> struct QueryShape {
    static constexpr int M = HS <= (with_dropout ? 64 : 96) ? 2 : 1;   // a warp has 16 M queries
    static constexpr int warps = M == 2 ? 4 : 8, threads = 32 * warps;
    static constexpr int queries = warps * 16 * M, keys = HS == 32 && !with_dropout ? 64 : 32;
    static constexpr bool hold = HS <= 64 || M == 1;   // q and dy in registers
    static constexpr int blocks = M;
    static constexpr size_t shared_bytes = (2 * queries + 4 * keys) * HS * sizeof(bf16);
    static_assert(row_tile % queries == 0);
};

template <int HS, bool with_dropout>
__global__ void __launch_bounds__(QueryShape<HS, with_dropout>::threads, QueryShape<HS, with_dropout>::blocks)
    attention_flash_backward_queries(bf16 *dqkv, const bf16 *dy, const bf16 *qkv, const Row *rows, int T, int NH,
                                     float scale, DropoutMask dropout) {
    using Shape = QueryShape<HS, with_dropout>;
    constexpr int M = Shape::M, N = Shape::keys / 8;
    const int tiles = ceil_div(T, Shape::queries);
    const int bh = static_cast<int>(blockIdx.x) / tiles;
    const int first_query = (tiles - 1 - static_cast<int>(blockIdx.x) % tiles) * Shape::queries;   // most keys first
    const Head head(bh, T, NH, HS);

    // besides queries and dy, two tiles of keys and of values each: one travels while the other is used
    DYNAMIC_SHARED(bf16, q_tile);
    bf16 *const dy_tile = q_tile + Shape::queries * HS;
    bf16 *const k_tiles = dy_tile + Shape::queries * HS, *const v_tiles = k_tiles + 2 * Shape::keys * HS;
    const auto start_loading = [&](int tile) {
        const int first_key = tile * Shape::keys, place = tile % 2 * Shape::keys * HS;
        const int count = T - first_key;
        load_tile<HS, Shape::keys, Shape::threads>(k_tiles + place, qkv + head.keys(first_key), head.stride, count);
        load_tile<HS, Shape::keys, Shape::threads>(v_tiles + place, qkv + head.values(first_key), head.stride, count);
        cp_async_commit();
    };
    load_tile<HS, Shape::queries, Shape::threads>(q_tile, qkv + head.queries(first_query), head.stride,
                                                  T - first_query);
    load_tile<HS, Shape::queries, Shape::threads>(dy_tile, dy + head.y(first_query), head.C, T - first_query);
    start_loading(0);

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
        const int first_key = tile * Shape::keys, place = tile % 2 * Shape::keys * HS;
        if (masked && (first_key > warp_query + 16 * M - 1 || warp_query >= T)) return;   // all masked, or no queries
        Dropped<M, N> dropped;   // drawn before the products take their registers
        if (with_dropout) DropoutBits(dropout, T, bh).by_queries(dropped, warp_query, first_key);
        float s[M][N][4], dp[M][N][4];   // S and dP, then dS
        multiply_rows(s, q_operand, lane_by_chunks<HS>(k_tiles + place));
        multiply_rows(dp, dy_operand, lane_by_chunks<HS>(v_tiles + place));
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
        multiply_add<HS>(dq, ds, lane_by_rows<HS>(k_tiles + place));
    };

    const int key_tiles = ceil_div(min(first_query + Shape::queries, T), Shape::keys);
    for (int tile = 0; tile < key_tiles; tile++) {
        cp_async_wait<0>();
        __syncthreads();   // this tile is there, and nobody reads the one before it any more
        if (tile + 1 < key_tiles) start_loading(tile + 1);
        if (tile == 0) {
            q_operand.start(warp_q);
            dy_operand.start(dy_tile + warp * 16 * M * HS);
        }
        if ((tile + 1) * Shape::keys - 1 > first_query)
            add(tile, std::true_type{});
        else
            add(tile, std::false_type{});
    }
    store_rows<HS, M>(dqkv + head.queries(warp_query), head.stride, T - warp_query, warp_q, dq,
                      [&](int, int) { return scale; });
}

}   // namespace

size_t attention_flash_scratch(int64_t B, int64_t T, int64_t NH) {
    return static_cast<size_t>(B * NH * padded(T)) * sizeof(Row);
}

template <int HS, bool with_dropout>
static cudaError_t launch_backward(bf16 *dqkv, const bf16 *dy, const bf16 *y, const float *lse, const bf16 *qkv,
                                   Row *rows, int64_t B, int64_t T, int64_t NH, const DropoutMask &dropout,
                                   cudaStream_t stream) {
    using Keys = KeyShape<HS, with_dropout>;
    using Queries = QueryShape<HS, with_dropout>;
    const unsigned key_grid = grid_of(B, T, NH, HS, Keys::keys), query_grid = grid_of(B, T, NH, HS, Queries::queries);
    const int64_t row_blocks = ceil_div<int64_t>(padded(T) * NH, row_threads / row_lanes<HS>);
    if (key_grid == 0 || query_grid == 0 || padded(T) * NH > 0x7fffffff || B * row_blocks > 0x7fffffff)
        return cudaErrorInvalidValue;
    const auto keys = attention_flash_backward_keys<HS, with_dropout>;
    const auto queries = attention_flash_backward_queries<HS, with_dropout>;
    CUDA_TRY(cudaFuncSetAttribute(keys, cudaFuncAttributeMaxDynamicSharedMemorySize, Keys::shared_bytes));
    CUDA_TRY(cudaFuncSetAttribute(queries, cudaFuncAttributeMaxDynamicSharedMemorySize, Queries::shared_bytes));

    const float scale = 1.0f / sqrtf(static_cast<float>(HS));
    CUDA_TRY(LAUNCH((attention_flash_rows<HS>), static_cast<unsigned>(B * row_blocks), row_threads, 0, stream, rows, dy,
                    y, lse, static_cast<int>(T), static_cast<int>(NH), static_cast<unsigned>(row_blocks)));
    CUDA_TRY(LAUNCH(keys, key_grid, Keys::threads, Keys::shared_bytes, stream, dqkv, dy, qkv, rows, static_cast<int>(T),
                    static_cast<int>(NH), scale, dropout));
    return LAUNCH(queries, query_grid, Queries::threads, Queries::shared_bytes, stream, dqkv, dy, qkv, rows,
                  static_cast<int>(T), static_cast<int>(NH), scale, dropout);
}

cudaError_t attention_flash_backward(bf16 *dqkv, const bf16 *dy, const bf16 *y, const float *lse, const bf16 *qkv,
                                     void *scratch, int64_t B, int64_t T, int64_t NH, int64_t HS,
                                     const DropoutMask &dropout, cudaStream_t stream) {
    return for_head_size(HS, [&](auto head_size) -> cudaError_t {
        const auto launch_it = dropout.draw ? launch_backward<head_size, true> : launch_backward<head_size, false>;
        return launch_it(dqkv, dy, y, lse, qkv, static_cast<Row *>(scratch), B, T, NH, dropout, stream);
    });
}
