/* What the kernels of flash attention share: tiles in shared memory, their products, and a head's place in qkv.
 *
 * A tile is some rows of HS bf16. Its unit is the chunk of 8 elements, 16 bytes: what cp.async copies, and a row of the
 * 8×8 matrices that ldmatrix reads. ldmatrix reads one chunk in each of 8 rows at once, and they must lie in different
 * banks: chunk c of row r is stored in place c ^ flip(r). Rows of 8 chunks fill all banks, so flip must differ in 8
 * neighbouring rows; of rows of 4, 10 or 12 chunks some lie in different banks already.
 *
 * g = lane / 4 and t = lane % 4 as in primitives.cuh.
 */
#pragma once

#include <type_traits>

#include "../common.cuh"

#ifdef PYGPT_EMULATION
#define UNROLL
#define UNROLL_BY_2
#else
#define UNROLL _Pragma("unroll")
#define UNROLL_BY_2 _Pragma("unroll 2")
#endif

namespace {

using bf16 = __nv_bfloat16;

template <int HS> struct Tile {
    static_assert(HS % 16 == 0, "a tensor core takes 16 channels at a time");
    static constexpr unsigned chunks = HS / 8;
    static constexpr unsigned period = chunks % 8 ? chunks & -chunks : 8;   // the power of two in chunks, up to 8

    static __device__ unsigned flip(unsigned row) {
        return row / (8 / period) % period;
    }
    static __device__ unsigned offset(unsigned row, unsigned chunk) {
        return row * HS + (chunk ^ flip(row)) * 8;
    }
};

/* Starts copying a tile of rows that lie `stride` elements apart; rows from `count` on become zeros, and are not read. A
 * thread copies the same places of several rows, which flip alike: all its addresses are constants away from one. */
template <int HS, int rows, int threads>
__device__ void load_tile(bf16 *tile, const bf16 *x, unsigned stride, int count) {
    constexpr unsigned period = Tile<HS>::period, at_once = threads / period;   // rows
    static_assert(at_once % 8 == 0);
    const unsigned row = threadIdx.x / period, chunk = threadIdx.x % period;
    if (at_once > rows && row >= rows) return;
    bf16 *const to = tile + Tile<HS>::offset(row, chunk);
    const bf16 *const from = x + (row * stride + chunk * 8);
    UNROLL
    for (unsigned r = 0; r < rows; r += at_once) {
        UNROLL
        for (unsigned c = 0; c < Tile<HS>::chunks; c += period)
            cp_async_16(to + r * HS + c * 8, from + (r * stride + c * 8), static_cast<int>(row + r) < count);
    }
}

/* 16×16 elements of a tile, as ldmatrix fetches them: the address that this lane passes. */
template <int HS> struct Lane {
    const bf16 *start;
    unsigned flip;

    __device__ const bf16 *at(unsigned row, unsigned chunk) const {   // row: a multiple of 8; chunk: even
        return start + row * HS + (chunk ^ flip) * 8;
    }
};

/* Matrices in the order (rows 0-7, chunk 0), (rows 8-15, chunk 0), (rows 0-7, chunk 1), (rows 8-15, chunk 1): with
 * ldmatrix the operand A; with ldmatrix_transposed B of two times 8 columns, the tile's rows being summed over. */
template <int HS> __device__ Lane<HS> lane_by_rows(const bf16 *tile) {
    const unsigned lane = threadIdx.x % 32, row = lane % 16;
    return {tile + row * HS, lane / 16 ^ Tile<HS>::flip(row)};
}

/* (rows 0-7, chunk 0), (rows 0-7, chunk 1), (rows 8-15, chunk 0), (rows 8-15, chunk 1): with ldmatrix the operand B of
 * two times 8 columns, which are the tile's rows. */
template <int HS> __device__ Lane<HS> lane_by_chunks(const bf16 *tile) {
    const unsigned lane = threadIdx.x % 32, row = lane % 8 + lane / 16 * 8;
    return {tile + row * HS, lane / 8 % 2 ^ Tile<HS>::flip(row)};
}

/* A warp's 16 M rows of a tile as operand A: held in registers, or fetched whenever they are needed. */
template <int HS, int M, bool held> struct RowOperand {
    Lane<HS> lane;
    uint32_t fragments[held ? HS / 16 : 1][M][4];

    __device__ void start(const bf16 *rows) {
        lane = lane_by_rows<HS>(rows);
        if constexpr (held) {
            UNROLL
            for (int k = 0; k < HS / 16; k++) fetch(fragments[k], k);
        }
    }
    __device__ void get(uint32_t (&a)[M][4], int k) const {
        if constexpr (held) {
            UNROLL
            for (int i = 0; i < 4 * M; i++) a[i / 4][i % 4] = fragments[k][i / 4][i % 4];
        } else {
            fetch(a, k);
        }
    }

  private:
    __device__ void fetch(uint32_t (&a)[M][4], int k) const {
        UNROLL
        for (int m = 0; m < M; m++) ldmatrix(a[m], lane.at(16 * m, 2 * k));
    }
};

/* c (16 M, 8 N) = a bᵀ, with 8 N rows b of a tile: lane_by_chunks */
template <int HS, int M, int N, bool held>
__device__ void multiply_rows(float (&c)[M][N][4], const RowOperand<HS, M, held> &a, const Lane<HS> &b) {
    UNROLL
    for (int i = 0; i < M * N * 4; i++) c[i / (4 * N)][i / 4 % N][i % 4] = 0;
    UNROLL
    for (int k = 0; k < HS / 16; k++) {
        uint32_t fa[M][4];
        a.get(fa, k);
        UNROLL
        for (int n = 0; n < N; n += 2) {
            uint32_t fb[4];
            ldmatrix(fb, b.at(8 * n, 2 * k));
            UNROLL
            for (int m = 0; m < M; m++) {
                mma_bf16(c[m][n], fa[m], fb[0], fb[1]);
                mma_bf16(c[m][n + 1], fa[m], fb[2], fb[3]);
            }
        }
    }
}

/* c (16 M, HS) += a b, with 16 K rows b of a tile: lane_by_rows */
template <int HS, int M, int K>
__device__ void multiply_add(float (&c)[M][HS / 8][4], const uint32_t (&a)[K][M][4], const Lane<HS> &b) {
    UNROLL
    for (int k = 0; k < K; k++) {
        UNROLL
        for (int n = 0; n < HS / 8; n += 2) {
            uint32_t fb[4];
            ldmatrix_transposed(fb, b.at(16 * k, n));
            UNROLL
            for (int m = 0; m < M; m++) {
                mma_bf16(c[m][n], a[k][m], fb[0], fb[1]);
                mma_bf16(c[m][n + 1], a[k][m], fb[2], fb[3]);
            }
        }
    }
}

/* A product (16 M, 8 N) as operand A of the next one, which sums over its columns. A lane already holds what it needs. */
template <int M, int N> __device__ void to_operand(uint32_t (&a)[N / 2][M][4], const float (&c)[M][N][4]) {
    UNROLL
    for (int k = 0; k < N / 2; k++) {
        UNROLL
        for (int m = 0; m < M; m++) {
            UNROLL
            for (int i = 0; i < 4; i++) {
                const float (&two)[4] = c[m][2 * k + i / 2];
                a[k][m][i] = pack_bf16(two[i % 2 * 2], two[i % 2 * 2 + 1]);
            }
        }
    }
}

/* Writes factor(m, half) c to the rows of x, `stride` elements apart, of which there are `count`. It passes through the
 * warp's own rows of a tile, from where whole chunks can be stored. */
template <int HS, int M, class Factor>
__device__ void store_rows(bf16 *x, unsigned stride, int count, bf16 *rows, const float (&c)[M][HS / 8][4],
                           Factor factor) {
    constexpr unsigned chunks = Tile<HS>::chunks;
    const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncwarp();   // other lanes may still fetch operands from there
    UNROLL
    for (int m = 0; m < M; m++) {
        UNROLL
        for (int half = 0; half < 2; half++) {
            const float f = factor(m, half);
            UNROLL
            for (unsigned n = 0; n < chunks; n++) {
                const float (&two)[4] = c[m][n];
                const uint32_t pair = pack_bf16(f * two[2 * half], f * two[2 * half + 1]);
                *reinterpret_cast<uint32_t *>(rows + Tile<HS>::offset(16 * m + 8 * half + g, n) + 2 * t) = pair;
            }
        }
    }
    __syncwarp();
    for (unsigned i = lane; i < 16 * M * chunks; i += 32) {
        const unsigned row = i / chunks, chunk = i % chunks;
        if (static_cast<int>(row) < count)
            *reinterpret_cast<uint4 *>(x + row * stride + chunk * 8) =
                *reinterpret_cast<const uint4 *>(rows + Tile<HS>::offset(row, chunk));
    }
}

/* A value that all lanes of a warp have in common, so that the compiler may know. */
__device__ inline int uniform(int x) {
    return __shfl_sync(0xffffffffu, x, 0);
}

/* 2^x to 2 units in the last place; 0 where that is not a normal number. */
__device__ inline float exp2_approx(float x) {
#ifdef PYGPT_EMULATION
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

constexpr float log2_e = 1.44269504088896341f;

/* Where the rows of a head of a sequence begin, in qkv and in y, from position t on. Distances within a tile are ints;
 * those in a whole tensor need 64 bits. */
struct Head {
    int64_t first, first_y;
    int stride, C;

    __device__ Head(int bh, int T, int NH, int HS) : stride(3 * NH * HS), C(NH * HS) {
        const int64_t row = static_cast<int64_t>(bh / NH) * T;
        first = row * stride + bh % NH * HS;
        first_y = row * C + bh % NH * HS;
    }
    __device__ int64_t queries(int t) const {
        return first + static_cast<int64_t>(t) * stride;
    }
    __device__ int64_t keys(int t) const {
        return queries(t) + C;
    }
    __device__ int64_t values(int t) const {
        return queries(t) + 2 * C;
    }
    __device__ int64_t y(int t) const {
        return first_y + static_cast<int64_t>(t) * C;
    }
};

/* f(head size as a type), or cudaErrorInvalidValue */
template <class F> cudaError_t for_head_size(int64_t HS, F f) {
    switch (HS) {
    case 32: return f(std::integral_constant<int, 32>{});
    case 64: return f(std::integral_constant<int, 64>{});
    case 80: return f(std::integral_constant<int, 80>{});
    case 96: return f(std::integral_constant<int, 96>{});
    case 128: return f(std::integral_constant<int, 128>{});
    default: return cudaErrorInvalidValue;
    }
}

/* One block for each `rows` of the T positions of each head; 0 if there are none, or more than ints can number. */
inline unsigned grid_of(int64_t B, int64_t T, int64_t NH, int64_t HS, int rows) {
    constexpr int64_t most = 0x7fffffff;
    if (B < 1 || T < 1 || NH < 1 || B > most / NH || T > most - rows || NH > most / (3 * HS * rows)) return 0;
    const int64_t heads = B * NH;
    const int64_t tiles = ceil_div<int64_t>(T, rows);
    return heads <= most / tiles ? static_cast<unsigned>(heads * tiles) : 0;
}

} // namespace
