/* What the kernels on tensor cores share: their tiles in shared memory, and the products of these.
 *
 * A row of the 8×8 matrices that ldmatrix reads is a chunk, of 8 elements. ldmatrix reads one chunk in each of 8 rows at
 * once, and they must lie in different banks: chunk c of row r is stored in place c ^ flip(r). Rows of 8 chunks fill all
 * banks, so flip must differ in 8 neighbouring rows; of rows of 4, 10 or 12 chunks some lie in different banks already.
 *
 * g = lane / 4 and t = lane % 4 as in primitives.cuh.
 */
#pragma once

#include "attention_tiles.cuh"

namespace {

template <int HS> struct Tile {
    static_assert(HS % 16 == 0, "a tensor core takes 16 channels at a time");
    static constexpr unsigned chunks = HS / 8;
    static constexpr unsigned period = chunks % 8 ? chunks & -chunks : 8;   // the power of two in chunks, up to 8
    static constexpr unsigned repeat = 8;

    static __device__ unsigned flip(unsigned row) {
        return row / (8 / period) % period;
    }
    static __device__ unsigned offset(unsigned row, unsigned chunk) {
        return row * HS + (chunk ^ flip(row)) * 8;
    }
};

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

/* Two tiles each of keys and of values in shared memory: one travels while the other is used. */
template <int HS, int keys, int threads> struct KeyTiles {
    bf16 *shared;   // 4 keys·HS elements
    const bf16 *qkv;
    const Head &head;
    int T;

    __device__ bf16 *keys_of(int tile) const {
        return shared + tile % 2 * keys * HS;
    }
    __device__ bf16 *values_of(int tile) const {
        return shared + (2 + tile % 2) * keys * HS;
    }
    __device__ void start(int tile) const {
        const int first = tile * keys, count = T - first;
        load_tile<Tile<HS>, keys, threads>(keys_of(tile), qkv + head.keys(first), head.stride, count);
        load_tile<Tile<HS>, keys, threads>(values_of(tile), qkv + head.values(first), head.stride, count);
        cp_async_commit();
    }
};

struct Nothing {
    __device__ void operator()() const {}
};

/* use(tile) for the tiles from first to end - 1. start(tile) starts to copy one, each while the one before is used; the
 * first has been started. arrived() is called by each thread when its part of a tile is there, before any reads it. */
template <class Start, class Use, class Arrived = Nothing>
__device__ void stream_tiles(int first, int end, Start start, Use use, Arrived arrived = {}) {
    for (int tile = first; tile < end; tile++) {
        cp_async_wait<0>();
        arrived();
        __syncthreads();   // this tile is there, and nobody reads the one before it any more
        if (tile + 1 < end) start(tile + 1);
        use(tile);
    }
}

} // namespace
