/* What the kernels for float32 share: how the threads of a block divide a product of tiles, and its two kinds.
 *
 * A warp has some rows of the block, and a row lies in `lanes` of its lanes. With x the number of a lane among these, a
 * thread has R rows, and of each of them
 *
 *   N neighbouring columns of a product s (rows, 32) = a bᵀ         HS / lanes channels of a sum c (rows, HS) += s b
 *
 * so what it computes of s are R·N sums, each operand being fetched once for R or N of them. Rows are in groups of four
 * neighbours, columns in groups of N: with dropout, four probabilities of neighbouring keys share a draw.
 */
#pragma once

#include "attention_dropout.cuh"
#include "attention_tiles.cuh"

namespace {

constexpr int fma_threads = 128;   // of a block
constexpr int fma_columns = 32;    // rows of the tiles that stream past

/* Chunks of 4 floats. Eight lanes read one chunk in each of eight rows that are 4 apart, and they must lie in different
 * banks, which rows of a multiple of 128 bytes do not provide: chunk c of row r is stored in place c ^ (r / 4 % 8). Of
 * the 20 chunks of 80 channels, the last four can only change places among themselves. */
template <int HS> struct FmaTile {
    static constexpr unsigned chunks = HS / 4, period = 8, repeat = 32;

    static __device__ unsigned place(unsigned flip, unsigned chunk) {
        return chunk ^ (flip & (chunk < chunks / 8 * 8 ? 7 : 3));
    }
    static __device__ unsigned offset(unsigned row, unsigned chunk) {
        return row * HS + place(row / 4 % 8, chunk) * 4;
    }
    /* A chunk of a row; in the rest of its group of four rows it lies HS floats further each. */
    static __device__ const float *at(const float *tile, int row, unsigned chunk) {
        return tile + row * HS + place(static_cast<unsigned>(row) / 4 % 8, chunk) * 4;
    }
};

/* Starts copying a tile. */
template <int HS, int rows> __device__ void load_fma(float *tile, const float *x, int stride, int count) {
    load_tile<FmaTile<HS>, rows, fma_threads>(tile, x, static_cast<unsigned>(stride), count);
}

template <int HS_, int R_, int lanes_> struct FmaShape {
    static constexpr int HS = HS_, R = R_, lanes = lanes_, threads = fma_threads;
    static constexpr int warp_rows = 32 / lanes * R, rows = threads / 32 * warp_rows;
    static constexpr int N = fma_columns / lanes, channels = HS / lanes;
    static constexpr int W = channels % 4 ? 2 : 4;   // neighbouring channels; the next ones are lanes·W further
    static_assert(R % 4 == 0 && 4 % N == 0 && HS % 16 == 0 && channels % W == 0);

    static __device__ int lane() {
        return static_cast<int>(threadIdx.x) % lanes;
    }
    /* The thread's rows, in the block; its columns; and its channels. */
    static __device__ int row(int i) {
        const int warp = static_cast<int>(threadIdx.x) / 32, group = static_cast<int>(threadIdx.x) % 32 / lanes;
        return warp * warp_rows + i / 4 * (128 / lanes) + 4 * group + i % 4;
    }
    static __device__ int column(int j) {
        return 4 * (lane() % 8) + N * (lane() / 8) + j;
    }
    static __device__ int channel(int n) {
        return W * (lane() + lanes * n);
    }
};

__device__ inline void fma4(float &sum, const float (&a)[4], const float (&b)[4]) {
    UNROLL
    for (int i = 0; i < 4; i++) sum = fmaf(a[i], b[i], sum);
}

/* s = a bᵀ: the block's rows a, and 32 rows b. */
template <class Shape> __device__ void multiply_rows(float (&s)[Shape::R][Shape::N], const float *a, const float *b) {
    constexpr int HS = Shape::HS, R = Shape::R, N = Shape::N;
    constexpr unsigned at_once = 32 / (R * N);   // chunks: more take more registers
    UNROLL
    for (int i = 0; i < R * N; i++) s[i / N][i % N] = 0;
    DO_NOT_UNROLL
    for (unsigned first = 0; first < FmaTile<HS>::chunks; first += at_once) {
        UNROLL
        for (unsigned chunk = first; chunk < first + at_once; chunk++) {
            float y[N][4];
            UNROLL
            for (int j = 0; j < N; j++) load<4>(y[j], FmaTile<HS>::at(b, Shape::column(0), chunk) + j * HS);
            UNROLL
            for (int i = 0; i < R; i++) {
                float x[4];
                load<4>(x, FmaTile<HS>::at(a, Shape::row(i / 4 * 4), chunk) + i % 4 * HS);
                UNROLL
                for (int j = 0; j < N; j++) fma4(s[i][j], x, y[j]);
            }
        }
    }
}

/* c += s b: s as multiply_rows leaves it, and 32 rows b. A column of s goes from the lane that has it to the others of
 * its row. */
template <class Shape>
__device__ void multiply_add(float (&c)[Shape::R][Shape::channels], const float (&s)[Shape::R][Shape::N],
                             const float *b) {
    constexpr int HS = Shape::HS, R = Shape::R, N = Shape::N, W = Shape::W;
    DO_NOT_UNROLL
    for (int four = 0; four < fma_columns / 4; four++) {
        UNROLL
        for (int k = 0; k < 4; k++) {
            float y[Shape::channels];
            UNROLL
            for (int n = 0; n < Shape::channels / W; n++) {
                const unsigned channel = Shape::channel(n);
                float part[W];
                load<W>(part, FmaTile<HS>::at(b, 4 * four, channel / 4) + channel % 4 + k * HS);
                UNROLL
                for (int i = 0; i < W; i++) y[n * W + i] = part[i];
            }
            UNROLL
            for (int i = 0; i < R; i++) {
                const float x = __shfl_sync(0xffffffffu, s[i][k % N], four + k / N * 8, Shape::lanes);
                UNROLL
                for (int n = 0; n < Shape::channels; n++) c[i][n] = fmaf(x, y[n], c[i][n]);
            }
        }
    }
}

/* f(i) c_i to the rows of x, `stride` elements apart, of which there are `count`. */
template <class Shape, class Factor>
__device__ void store_rows(float *x, int stride, int count, const float (&c)[Shape::R][Shape::channels],
                           Factor factor) {
    constexpr int W = Shape::W;
    UNROLL
    for (int i = 0; i < Shape::R; i++) {
        if (Shape::row(i) >= count) continue;
        const float f = factor(i);
        UNROLL
        for (int n = 0; n < Shape::channels / W; n++) {
            float part[W];
            UNROLL
            for (int j = 0; j < W; j++) part[j] = f * c[i][n * W + j];
            store<W>(x + Shape::row(i) * stride + Shape::channel(n), part);
        }
    }
}

/* Which elements of a product are dropped: a bit for each that this thread has. */
template <class Shape> struct FmaDropped {
    static constexpr int R = Shape::R, N = Shape::N;
    unsigned word = 0;

    __device__ bool operator()(int i, int j) const {
        return word >> (i * N + j) & 1;
    }

    /* For queries as rows and keys as columns, from (query,key) on. */
    __device__ void by_queries(const DropoutDraws &draws, int query, int key) {
        const int first = Shape::column(0) % 4;
        UNROLL_BY(2)
        for (int i = 0; i < R; i++) {
            const unsigned four = four_keys(draws, query + Shape::row(i), key + Shape::column(0) - first);
            word |= (four >> first & ((1u << N) - 1)) << i * N;
        }
    }
    /* For keys as rows and queries as columns. */
    __device__ void by_keys(const DropoutDraws &draws, int query, int key) {
        static_assert(R == 4, "four keys");
        UNROLL_BY(2)
        for (int j = 0; j < N; j++) {
            const unsigned four = four_keys(draws, query + Shape::column(j), key + Shape::row(0));
            for (int i = 0; i < 4; i++) word |= (four >> i & 1) << (i * N + j);
        }
    }

  private:
    /* Keys from `key` on of one query; they share a draw if T is a multiple of 4. */
    static __device__ unsigned four_keys(const DropoutDraws &draws, int query, int key) {
        const uint64_t first = draws.number(query, key);
        const unsigned offset = first % 4;
        unsigned bits = draws.four<1>(first);
        if (offset) bits |= draws.four<1>(first + 4) << 4;
        return bits >> offset & 15;
    }
};

}   // namespace
