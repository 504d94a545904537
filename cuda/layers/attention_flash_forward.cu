/* Flash attention, forward, on tensor cores. For a tile of queries of one head, over tiles of keys up to the diagonal:
 *
 *   S = q kᵀ      M' = max(M, max_u S)      P = exp(c (S − M'))      Z = Z exp(c (M − M')) + Σ_u P
 *                                                                    a = a exp(c (M − M')) + (m P) v
 *   y = a / Z     lse = c M + log Z         m: dropout's factor     c: the scale
 *
 * The largest score M, the sum Z and the output a stay in registers, and P goes from one product to the next in them.
 */
#include "attention_flash.cuh"
#include "attention_flash_dropout.cuh"
#include "attention_flash_tile.cuh"

namespace {

template <int head_size, bool with_dropout> struct ForwardShape {
    static constexpr int HS = head_size;
    static constexpr int M = HS > 96 && with_dropout ? 1 : 2;   // a warp has 16 M queries
    static constexpr int warps = M == 2 ? 4 : 8, threads = 32 * warps;
    static constexpr int rows = warps * 16 * M, keys = HS <= 64 ? 64 : 32;   // queries, and keys of a tile
    static constexpr int blocks = M;   // of a multiprocessor, for which registers must suffice
    static constexpr size_t shared_bytes = (rows + 4 * keys) * HS * sizeof(bf16);
};

template <int HS, bool with_dropout>
__global__ void __launch_bounds__(ForwardShape<HS, with_dropout>::threads, ForwardShape<HS, with_dropout>::blocks)
    attention_flash_forward_kernel(bf16 *y, float *lse, const bf16 *qkv, int T, int NH, float scale,
                                   DropoutMask dropout) {
    using Shape = ForwardShape<HS, with_dropout>;
    constexpr int M = Shape::M, N = Shape::keys / 8;
    const Part<Shape::rows> part(true, T, NH, HS);
    const int bh = part.bh, first_query = part.first;
    const Head &head = part.head;

    DYNAMIC_SHARED(bf16, q_tile);
    const KeyTiles<HS, Shape::keys, Shape::threads> tiles{q_tile + Shape::rows * HS, qkv, head, T};
    load_tile<Tile<HS>, Shape::rows, Shape::threads>(q_tile, qkv + head.queries(first_query), head.stride,
                                                     T - first_query);
    tiles.start(0);

    const int warp = uniform(threadIdx.x / 32), g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int warp_query = first_query + warp * 16 * M;
    bf16 *const warp_rows = q_tile + warp * 16 * M * HS;
    RowOperand<HS, M, false> q_operand;
    q_operand.start(warp_rows);
    float a[M][HS / 8][4] = {};
    float largest[M][2], sum[M][2];   // of rows g and g + 8; the sums are of this lane's columns
    UNROLL
    for (int m = 0; m < M; m++) {
        largest[m][0] = largest[m][1] = -INFINITY;
        sum[m][0] = sum[m][1] = 0;
    }
    const float scale2 = scale * log2_e;

    const auto attend = [&](int tile, auto diagonal) {
        constexpr bool masked = decltype(diagonal)::value;   // in part
        const int first_key = tile * Shape::keys;
        if (masked && (first_key > warp_query + 16 * M - 1 || warp_query >= T)) return;   // all masked, or no queries
        Dropped<M, N> dropped;   // drawn before the scores take their registers
        if (with_dropout) DropoutBits(dropout, T, bh).by_queries(dropped, warp_query, first_key);
        float s[M][N][4];
        multiply_rows(s, q_operand, lane_by_chunks<HS>(tiles.keys_of(tile)));
        if (masked) {
            UNROLL
            for (int m = 0; m < M; m++) {
                UNROLL
                for (int n = 0; n < N; n++) {
                    UNROLL
                    for (int i = 0; i < 4; i++) {
                        const int query = warp_query + 16 * m + g + i / 2 * 8, key = first_key + 8 * n + 2 * t + i % 2;
                        if (key > query) s[m][n][i] = -INFINITY;
                    }
                }
            }
        }
        UNROLL
        for (int m = 0; m < M; m++) {
            UNROLL
            for (int half = 0; half < 2; half++) {
                float most = largest[m][half];
                UNROLL
                for (int n = 0; n < N; n++) most = fmaxf(most, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                const float shrink = exp2_approx((largest[m][half] - most) * scale2);   // 0 in the first tile
                const float offset = most * scale2;
                largest[m][half] = most;
                sum[m][half] *= shrink;
                UNROLL
                for (int n = 0; n < N; n++) {
                    UNROLL
                    for (int i = 2 * half; i < 2 * half + 2; i++) {
                        s[m][n][i] = exp2_approx(fmaf(s[m][n][i], scale2, -offset));
                        sum[m][half] += s[m][n][i];
                    }
                }
                UNROLL
                for (int n = 0; n < HS / 8; n++) {
                    a[m][n][2 * half] *= shrink;
                    a[m][n][2 * half + 1] *= shrink;
                }
            }
        }
        if (with_dropout) {
            UNROLL
            for (int i = 0; i < M * N * 4; i++)
                if (dropped(i / (4 * N), i / 4 % N, i % 4)) s[i / (4 * N)][i / 4 % N][i % 4] = 0;
        }
        uint32_t p[N / 2][M][4];
        to_operand<M, N>(p, s);
        multiply_add<HS>(a, p, lane_by_rows<HS>(tiles.values_of(tile)));
    };

    const int key_tiles = ceil_div(min(first_query + Shape::rows, T), Shape::keys);
    stream_tiles(
        0, key_tiles, [&](int tile) { tiles.start(tile); },
        [&](int tile) {
            if ((tile + 1) * Shape::keys - 1 > first_query)
                attend(tile, std::true_type{});
            else
                attend(tile, std::false_type{});
        });

    UNROLL
    for (int m = 0; m < M; m++) {
        UNROLL
        for (int half = 0; half < 2; half++) {
            sum[m][half] += __shfl_xor_sync(0xffffffffu, sum[m][half], 1);
            sum[m][half] += __shfl_xor_sync(0xffffffffu, sum[m][half], 2);
            const int query = warp_query + 16 * m + 8 * half + g;
            if (t == 0 && query < T)
                lse[static_cast<int64_t>(bh) * T + query] = largest[m][half] * scale + logf(sum[m][half]);
        }
    }
    const auto factor = [&](int m, int half) { return dropout.scale / sum[m][half]; };
    store_rows<HS, M>(y + head.y(warp_query), head.C, T - warp_query, warp_rows, a, factor);
}

}   // namespace

cudaError_t attention_flash_forward(bf16 *y, float *lse, const bf16 *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                                    float scale, const DropoutMask &dropout, cudaStream_t stream) {
    return for_instance(HS, dropout, [&](auto head_size, auto with_dropout) {
        return launch_parts<ForwardShape<head_size, with_dropout>>(
            attention_flash_forward_kernel<head_size, with_dropout>, B, T, NH, scale, dropout, stream, y, lse, qkv);
    });
}
