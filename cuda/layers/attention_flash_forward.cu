/* Flash attention, forward, on tensor cores. For a tile of queries of one head, over tiles of keys up to the diagonal:
 *
 *   S = q kᵀ      M' = max(M, max_u S)      P = exp((S − M') / √HS)      Z = Z exp((M − M') / √HS) + Σ_u P
 *                                           a = a exp((M − M') / √HS) + (m P) v
 *   y = a / Z     lse = M / √HS + log Z     m: dropout's factor
 *
 * The largest score M, the sum Z and the output a stay in registers, and P goes from one product to the next in them.
 */
#include "attention_flash.cuh"
#include "attention_flash_dropout.cuh"
#include "attention_flash_tile.cuh"

namespace {

template <int HS, bool with_dropout> struct ForwardShape {
    static constexpr int M = HS > 96 && with_dropout ? 1 : 2;   // a warp has 16 M queries
    static constexpr int warps = M == 2 ? 4 : 8, threads = 32 * warps;
    static constexpr int queries = warps * 16 * M, keys = HS <= 64 ? 64 : 32;
    static constexpr int blocks = M;   // of a multiprocessor, for which registers must suffice
    static constexpr size_t shared_bytes = (queries + 4 * keys) * HS * sizeof(bf16);
};

template <int HS, bool with_dropout>
__global__ void __launch_bounds__(ForwardShape<HS, with_dropout>::threads, ForwardShape<HS, with_dropout>::blocks)
    attention_flash_forward_kernel(bf16 *y, float *lse, const bf16 *qkv, int T, int NH, float scale,
                                   DropoutMask dropout) {
    using Shape = ForwardShape<HS, with_dropout>;
    constexpr int M = Shape::M, N = Shape::keys / 8;
    const int tiles = ceil_div(T, Shape::queries);
    const int bh = static_cast<int>(blockIdx.x) / tiles;
    const int first_query = (tiles - 1 - static_cast<int>(blockIdx.x) % tiles) * Shape::queries;   // most keys first
    const Head head(bh, T, NH, HS);

    // besides the queries, two tiles of keys and of values each: one travels while the other is used
    DYNAMIC_SHARED(bf16, q_tile);
    bf16 *const k_tiles = q_tile + Shape::queries * HS, *const v_tiles = k_tiles + 2 * Shape::keys * HS;
    const auto start_loading = [&](int tile) {
        const int first_key = tile * Shape::keys, place = tile % 2 * Shape::keys * HS;
        const int count = T - first_key;
        load_tile<HS, Shape::keys, Shape::threads>(k_tiles + place, qkv + head.keys(first_key), head.stride, count);
        load_tile<HS, Shape::keys, Shape::threads>(v_tiles + place, qkv + head.values(first_key), head.stride, count);
        cp_async_commit();
    };
    load_tile<HS, Shape::queries, Shape::threads>(q_tile, qkv + head.queries(first_query), head.stride,
                                                  T - first_query);
    start_loading(0);

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
        const int first_key = tile * Shape::keys, place = tile % 2 * Shape::keys * HS;
        if (masked && (first_key > warp_query + 16 * M - 1 || warp_query >= T)) return;   // all masked, or no queries
        Dropped<M, N> dropped;   // drawn before the scores take their registers
        if (with_dropout) DropoutBits(dropout, T, bh).by_queries(dropped, warp_query, first_key);
        float s[M][N][4];
        multiply_rows(s, q_operand, lane_by_chunks<HS>(k_tiles + place));
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
        multiply_add<HS>(a, p, lane_by_rows<HS>(v_tiles + place));
    };

    const int key_tiles = ceil_div(min(first_query + Shape::queries, T), Shape::keys);
    for (int tile = 0; tile < key_tiles; tile++) {
        cp_async_wait<0>();
        __syncthreads();   // this tile is there, and nobody reads the one before it any more
        if (tile + 1 < key_tiles) start_loading(tile + 1);
        if ((tile + 1) * Shape::keys - 1 > first_query)
            attend(tile, std::true_type{});
        else
            attend(tile, std::false_type{});
    }

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

bool attention_flash_supports(int64_t HS, int compute_capability) {
    return compute_capability >= 80 && for_head_size(HS, [](auto) { return cudaSuccess; }) == cudaSuccess;
}

template <int HS, bool with_dropout>
static cudaError_t launch_forward(bf16 *y, float *lse, const bf16 *qkv, int64_t B, int64_t T, int64_t NH,
                                  const DropoutMask &dropout, cudaStream_t stream) {
    using Shape = ForwardShape<HS, with_dropout>;
    const auto kernel = attention_flash_forward_kernel<HS, with_dropout>;
    const unsigned grid = grid_of(B, T, NH, HS, Shape::queries);
    if (grid == 0) return cudaErrorInvalidValue;
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::shared_bytes));
    return LAUNCH(kernel, grid, Shape::threads, Shape::shared_bytes, stream, y, lse, qkv, static_cast<int>(T),
                  static_cast<int>(NH), 1.0f / sqrtf(static_cast<float>(HS)), dropout);
}

cudaError_t attention_flash_forward(bf16 *y, float *lse, const bf16 *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                                    const DropoutMask &dropout, cudaStream_t stream) {
    return for_head_size(HS, [&](auto head_size) -> cudaError_t {
        const auto launch_it = dropout.draw ? launch_forward<head_size, true> : launch_forward<head_size, false>;
        return launch_it(y, lse, qkv, B, T, NH, dropout, stream);
    });
}
