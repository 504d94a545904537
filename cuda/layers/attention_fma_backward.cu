/* Flash attention, backward, in float32. P is made again from lse, in tiles, by two kernels:
 *
 *   P = exp(c S − lse)        dP = m (dy vᵀ)      D = Σ_channels dy y      dS = P (dP − D)       m: dropout's factor
 *   a tile of keys, over tiles of queries from the diagonal on      dv = (m P)ᵀ dy      dk = c dSᵀ q      c: the scale
 *   a tile of queries, over tiles of keys up to the diagonal        dq = c dS k
 *
 * As on tensor cores, every sum stays in the registers of one thread, so its order is fixed without atomics.
 */
#include "attention_flash.cuh"
#include "attention_fma_tile.cuh"
#include "attention_rows.cuh"

namespace {

/* Of both kernels: two tiles of the block's rows, and two that stream past. */
template <int HS> struct FmaBackwardShape : FmaShape<HS, 4, HS <= 80 ? 8 : 16> {
    static constexpr int key_blocks = HS == 80 || HS == 128 ? 2 : 3, query_blocks = 3;   // for which registers suffice
    static constexpr size_t shared_bytes = 2 * (FmaBackwardShape::rows + fma_columns) * HS * sizeof(float);
    static_assert(shared_bytes <= 64 << 10);   // compute capability 7.5 has no more
    static_assert(row_tile % FmaBackwardShape::rows == 0 && FmaBackwardShape::rows % fma_columns == 0);
};

/* ---- dk, dv ---- */

template <int HS, bool with_dropout>
__global__ void __launch_bounds__(fma_threads, FmaBackwardShape<HS>::key_blocks)
    attention_flash_backward_keys_fma(float *dqkv, const float *dy, const float *qkv, const Row *rows, int T, int NH,
                                      float scale, DropoutMask dropout) {
    using Shape = FmaBackwardShape<HS>;
    constexpr int R = Shape::R, N = Shape::N;
    const Part<Shape::rows> part(false, T, NH, HS);
    const int first_key = part.first;
    const Head &head = part.head;
    rows += part.bh * padded(T);

    DYNAMIC_SHARED(float, k_tile);
    float *const v_tile = k_tile + Shape::rows * HS;
    float *const q_tile = v_tile + Shape::rows * HS, *const dy_tile = q_tile + fma_columns * HS;
    const auto load_queries = [&](int query) {
        load_fma<HS, fma_columns>(q_tile, qkv + head.queries(query), head.stride, T - query);
        cp_async_commit();
    };
    load_fma<HS, Shape::rows>(k_tile, qkv + head.keys(first_key), head.stride, T - first_key);
    load_fma<HS, Shape::rows>(v_tile, qkv + head.values(first_key), head.stride, T - first_key);
    load_queries(first_key);

    const int warp_key = first_key + uniform(threadIdx.x / 32) * Shape::warp_rows;
    float dk[R][Shape::channels] = {}, dv[R][Shape::channels] = {};
    const float scale2 = scale * log2_e;

    for (int query = first_key; query < T; query += fma_columns) {
        const bool needed = query + fma_columns > warp_key && warp_key < T;   // not all masked, and keys
        FmaDropped<Shape> dropped;
        Row row[N];
        float p[R][N], ds[R][N];   // Pᵀ and dSᵀ
        cp_async_wait<0>();
        __syncthreads();   // the queries are there, and nobody reads dy of those before them any more
        load_fma<HS, fma_columns>(dy_tile, dy + head.y(query), head.C, T - query);
        cp_async_commit();
        if (needed) {
            UNROLL
            for (int j = 0; j < N; j++) row[j] = rows[query + Shape::column(j)];
            if (with_dropout) dropped.by_keys(DropoutDraws(dropout, T, part.bh), query, first_key);
            multiply_rows<Shape>(p, k_tile, q_tile);
            UNROLL
            for (int i = 0; i < R; i++) {
                UNROLL
                for (int j = 0; j < N; j++) {
                    const bool masked = first_key + Shape::row(i) > query + Shape::column(j);
                    p[i][j] = masked ? 0 : exp2_approx(fmaf(p[i][j], scale2, -row[j].lse2));
                }
            }
        }
        cp_async_wait<0>();
        __syncthreads();   // dy is there
        if (needed) {
            multiply_rows<Shape>(ds, v_tile, dy_tile);
            UNROLL
            for (int i = 0; i < R; i++) {
                UNROLL
                for (int j = 0; j < N; j++) {
                    const bool drop = with_dropout && dropped(i, j);
                    const float dp = with_dropout ? dropout.scale * ds[i][j] : ds[i][j];
                    ds[i][j] = p[i][j] * ((drop ? 0 : dp) - row[j].D);
                    if (drop) p[i][j] = 0;
                }
            }
            multiply_add<Shape>(dk, ds, q_tile);
        }
        __syncthreads();   // nobody reads the queries any more
        if (query + fma_columns < T) load_queries(query + fma_columns);
        if (needed) multiply_add<Shape>(dv, p, dy_tile);
    }

    const int count = T - first_key;
    store_rows<Shape>(dqkv + head.keys(first_key), head.stride, count, dk, [&](int) { return scale; });
    store_rows<Shape>(dqkv + head.values(first_key), head.stride, count, dv, [&](int) { return dropout.scale; });
}

/* ---- dq ---- */

template <int HS, bool with_dropout>
__global__ void __launch_bounds__(fma_threads, FmaBackwardShape<HS>::query_blocks)
    attention_flash_backward_queries_fma(float *dqkv, const float *dy, const float *qkv, const Row *rows, int T, int NH,
                                         float scale, DropoutMask dropout) {
    using Shape = FmaBackwardShape<HS>;
    constexpr int R = Shape::R, N = Shape::N;
    const Part<Shape::rows> part(true, T, NH, HS);
    const int first_query = part.first;
    const Head &head = part.head;

    DYNAMIC_SHARED(float, q_tile);
    float *const dy_tile = q_tile + Shape::rows * HS;
    float *const k_tile = dy_tile + Shape::rows * HS, *const v_tile = k_tile + fma_columns * HS;
    const auto load_values = [&](int key) {
        load_fma<HS, fma_columns>(v_tile, qkv + head.values(key), head.stride, T - key);
        cp_async_commit();
    };
    load_fma<HS, Shape::rows>(q_tile, qkv + head.queries(first_query), head.stride, T - first_query);
    load_fma<HS, Shape::rows>(dy_tile, dy + head.y(first_query), head.C, T - first_query);
    load_values(0);

    const int warp_query = first_query + uniform(threadIdx.x / 32) * Shape::warp_rows;
    Row row[R];
    UNROLL
    for (int i = 0; i < R; i++) row[i] = rows[part.bh * padded(T) + first_query + Shape::row(i)];
    float dq[R][Shape::channels] = {};
    const float scale2 = scale * log2_e;

    const int end = min(first_query + Shape::rows, T);
    for (int key = 0; key < end; key += fma_columns) {
        const bool needed = key < warp_query + Shape::warp_rows && warp_query < T;   // not all masked, and queries
        FmaDropped<Shape> dropped;
        float s[R][N], ds[R][N];
        cp_async_wait<0>();
        __syncthreads();   // the values are there, and nobody reads the keys before them any more
        load_fma<HS, fma_columns>(k_tile, qkv + head.keys(key), head.stride, T - key);
        cp_async_commit();
        if (needed) {
            if (with_dropout) dropped.by_queries(DropoutDraws(dropout, T, part.bh), first_query, key);
            multiply_rows<Shape>(ds, dy_tile, v_tile);
        }
        cp_async_wait<0>();
        __syncthreads();   // the keys are there, and nobody reads the values any more
        if (key + fma_columns < end) load_values(key + fma_columns);
        if (!needed) continue;

        multiply_rows<Shape>(s, q_tile, k_tile);
        UNROLL
        for (int i = 0; i < R; i++) {
            UNROLL
            for (int j = 0; j < N; j++) {
                const bool masked = key + Shape::column(j) > first_query + Shape::row(i);
                const float p = masked ? 0 : exp2_approx(fmaf(s[i][j], scale2, -row[i].lse2));
                const float dp = with_dropout ? (dropped(i, j) ? 0 : dropout.scale * ds[i][j]) : ds[i][j];
                ds[i][j] = p * (dp - row[i].D);
            }
        }
        multiply_add<Shape>(dq, ds, k_tile);
    }
    store_rows<Shape>(dqkv + head.queries(first_query), head.stride, T - first_query, dq, [&](int) { return scale; });
}

}   // namespace

cudaError_t attention_flash_backward(float *dqkv, const float *dy, const float *y, const float *lse, const float *qkv,
                                     void *scratch, int64_t B, int64_t T, int64_t NH, int64_t HS, float scale,
                                     const DropoutMask &dropout, cudaStream_t stream) {
    Row *const rows = static_cast<Row *>(scratch);
    return for_instance(HS, dropout, [&](auto head_size, auto with_dropout) -> cudaError_t {
        using Shape = FmaBackwardShape<head_size>;
        const auto keys = attention_flash_backward_keys_fma<head_size, with_dropout>;
        const auto queries = attention_flash_backward_queries_fma<head_size, with_dropout>;
        CUDA_TRY(launch_rows<head_size>(rows, dy, y, lse, B, T, NH, stream));
        CUDA_TRY(launch_parts<Shape>(keys, B, T, NH, scale, dropout, stream, dqkv, dy, qkv, rows));
        return launch_parts<Shape>(queries, B, T, NH, scale, dropout, stream, dqkv, dy, qkv, rows);
    });
}
