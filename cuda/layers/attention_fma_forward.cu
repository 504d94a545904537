/* Flash attention, forward, in float32. For a tile of queries of one head, over tiles of keys up to the diagonal:
 *
 *   S = q kᵀ      M' = max(M, max_u S)      P = exp(c (S − M'))      Z = Z exp(c (M − M')) + Σ_u P
 *                                                                    a = a exp(c (M − M')) + (m P) v
 *   y = a / Z     lse = c M + log Z         m: dropout's factor     c: the scale
 *
 * There is one tile of keys and one of values: the keys of the next step travel while the values are used, and the
 * values while the keys are.
 */
#include "attention_flash.cuh"
#include "attention_fma_tile.cuh"

namespace {

template <int HS, bool with_dropout> struct FmaForwardShape : FmaShape<HS, HS <= 64 ? 8 : 4, 8> {
    static constexpr int blocks = HS == 128 || (HS <= 64 && with_dropout) ? 2 : 3;   // for which registers suffice
    static constexpr size_t shared_bytes = (FmaForwardShape::rows + 2 * fma_columns) * HS * sizeof(float);
    static_assert(shared_bytes <= 64 << 10);   // compute capability 7.5 has no more
};

template <int HS, bool with_dropout>
__global__ void __launch_bounds__(fma_threads, FmaForwardShape<HS, with_dropout>::blocks)
    attention_flash_forward_fma(float *y, float *lse, const float *qkv, int T, int NH, float scale,
                                DropoutMask dropout) {
    using Shape = FmaForwardShape<HS, with_dropout>;
    constexpr int R = Shape::R, N = Shape::N;
    const Part<Shape::rows> part(true, T, NH, HS);
    const int first_query = part.first;
    const Head &head = part.head;

    DYNAMIC_SHARED(float, q_tile);
    float *const k_tile = q_tile + Shape::rows * HS, *const v_tile = k_tile + fma_columns * HS;
    const auto load_keys = [&](int key) {
        load_fma<HS, fma_columns>(k_tile, qkv + head.keys(key), head.stride, T - key);
        cp_async_commit();
    };
    load_fma<HS, Shape::rows>(q_tile, qkv + head.queries(first_query), head.stride, T - first_query);
    load_keys(0);

    const int warp_query = first_query + uniform(threadIdx.x / 32) * Shape::warp_rows;
    float a[R][Shape::channels] = {};
    float largest[R], sum[R];   // the sums are of this lane's columns
    UNROLL
    for (int i = 0; i < R; i++) {
        largest[i] = -INFINITY;
        sum[i] = 0;
    }
    const float scale2 = scale * log2_e;

    const int end = min(first_query + Shape::rows, T);
    for (int key = 0; key < end; key += fma_columns) {
        const bool needed = key < warp_query + Shape::warp_rows && warp_query < T;   // not all masked, and queries
        FmaDropped<Shape> dropped;
        float s[R][N];
        cp_async_wait<0>();
        __syncthreads();   // the keys are there, and nobody reads the values before them any more
        load_fma<HS, fma_columns>(v_tile, qkv + head.values(key), head.stride, T - key);
        cp_async_commit();
        if (needed) {
            if (with_dropout) dropped.by_queries(DropoutDraws(dropout, T, part.bh), first_query, key);
            multiply_rows<Shape>(s, q_tile, k_tile);
        }
        cp_async_wait<0>();
        __syncthreads();   // the values are there, and nobody reads the keys any more
        if (key + fma_columns < end) load_keys(key + fma_columns);
        if (!needed) continue;

        if (key + fma_columns - 1 > warp_query) {   // masked in part
            UNROLL
            for (int i = 0; i < R * N; i++)
                if (key + Shape::column(i % N) > first_query + Shape::row(i / N)) s[i / N][i % N] = -INFINITY;
        }
        UNROLL
        for (int i = 0; i < R; i++) {
            float most = largest[i];
            UNROLL
            for (int j = 0; j < N; j++) most = fmaxf(most, s[i][j]);
            UNROLL
            for (int delta = Shape::lanes / 2; delta > 0; delta /= 2)
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, delta));
            const float shrink = exp2_approx((largest[i] - most) * scale2);   // 0 in the first tile
            largest[i] = most;
            sum[i] *= shrink;
            UNROLL
            for (int j = 0; j < N; j++) {
                s[i][j] = exp2_approx((s[i][j] - most) * scale2);
                sum[i] += s[i][j];
                if (with_dropout && dropped(i, j)) s[i][j] = 0;
            }
            UNROLL
            for (int n = 0; n < Shape::channels; n++) a[i][n] *= shrink;
        }
        multiply_add<Shape>(a, s, v_tile);
    }

    UNROLL
    for (int i = 0; i < R; i++) {
        UNROLL
        for (int delta = Shape::lanes / 2; delta > 0; delta /= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], delta);
        const int query = first_query + Shape::row(i);
        if (Shape::lane() == 0 && query < T)
            lse[static_cast<int64_t>(part.bh) * T + query] = largest[i] * scale + logf(sum[i]);
    }
    store_rows<Shape>(y + head.y(first_query), head.C, T - first_query, a,
                      [&](int i) { return dropout.scale / sum[i]; });
}

}   // namespace

cudaError_t attention_flash_forward(float *y, float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH,
                                    int64_t HS, float scale, const DropoutMask &dropout, cudaStream_t stream) {
    return for_instance(HS, dropout, [&](auto head_size, auto with_dropout) {
        return launch_parts<FmaForwardShape<head_size, with_dropout>>(
            attention_flash_forward_fma<head_size, with_dropout>, B, T, NH, scale, dropout, stream, y, lse, qkv);
    });
}
