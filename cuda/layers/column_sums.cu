/* Sums over the rows of a matrix.
 *
 *   sums += Σ_n x_n          x: (N,C)   sums: (C)
 *
 * Bounded by the memory, so a block reads few rows of a few columns, 16 bytes a thread at a time, and there are many
 * blocks: each leaves the sums of its slice of the rows, which a second kernel adds. How rows are divided depends on
 * the shape alone, so the bits are the same on any device.
 */
#include "column_sums.cuh"
#include "elements.cuh"

namespace {

constexpr int WARPS = DIVIDES_WORK(8, 2);                // of a block
constexpr int64_t MOST_BLOCKS = DIVIDES_WORK(2048, 6);   // of the first kernel
constexpr int64_t LEAST_ROWS = DIVIDES_WORK(64, 3);      // of a slice

struct Slices {
    int64_t rows, count;   // of each but the last, which may have fewer
};

Slices slices_of(DataType type, int64_t N, int64_t C) {
    int64_t width = 0;
    for_rows(type, C, [&](auto, auto W) { width = W; });
    const int64_t groups = ceil_div(C, 32 * width);   // of columns, one a block
    const int64_t rows = max(LEAST_ROWS, ceil_div(N, max(MOST_BLOCKS / groups, int64_t{1})));
    return {rows, ceil_div(N, rows)};
}

/* The sums of a slice, partial (slices,C). A warp takes every WARPS-th of its rows, and 32 W of the columns. */
template <class T, int W>
__global__ void __launch_bounds__(32 * WARPS)
    sum_columns(float *partial, const T *x, int64_t rows, int64_t N, int64_t C) {
    SHARED(float, sums, [WARPS][32 * W]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t group = static_cast<int64_t>(blockIdx.x) * 32 * W, first = blockIdx.y * rows, c = group + lane * W;
    float sum[W] = {};
    if (c < C)
        for (int64_t n = first + warp; n < min(first + rows, N); n += WARPS) {
            float xn[W];
            load<W>(xn, x + n * C + c);
            for (int i = 0; i < W; i++) sum[i] += xn[i];
        }
    for (int i = 0; i < W; i++) sums[warp][lane * W + i] = sum[i];
    __syncthreads();
    for (int at = threadIdx.x; at < 32 * W && group + at < C; at += 32 * WARPS) {
        float of_slice = 0;
        for (int i = 0; i < WARPS; i++) of_slice += sums[i][at];
        partial[blockIdx.y * C + group + at] = of_slice;
    }
}

/* 32 columns a block, of which each warp adds a share of the slices. */
__global__ void __launch_bounds__(1024)
    add_partial_sums(Sums sums, int64_t columns, const float *partial, int64_t slices, int64_t C) {
    SHARED(float, shares, [32][33]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + lane;
    float sum = 0;
    if (column < columns)
        for (int64_t slice = warp; slice < slices; slice += 32) sum += partial[slice * columns + column];
    shares[warp][lane] = sum;
    __syncthreads();
    sum = warp_sum(shares[lane][warp]);   // of column blockIdx.x * 32 + warp
    const int64_t of = static_cast<int64_t>(blockIdx.x) * 32 + warp;
    if (lane == 0 && of < columns && sums.of[of / C]) sums.of[of / C][of % C] += sum;
}

} // namespace

size_t column_sums_scratch(DataType type, int64_t N, int64_t C) {
    return static_cast<size_t>(slices_of(type, N, C).count * C) * sizeof(float);
}

void add_column_sums(Queue &queue, float *sums, const void *x, int64_t N, int64_t C) {
    const Slices slices = slices_of(queue.type, N, C);
    float *const partial = as<float>(scratch(queue, column_sums_scratch(queue.type, N, C)));
    for_rows(queue.type, C, [&](auto element, auto width) {
        using T = decltype(element);
        constexpr int W = decltype(width)::value;
        const dim3 grid(blocks_for(C, 32 * W), static_cast<unsigned>(slices.count));
        ENQUEUE(queue, (sum_columns<T, W>), grid, 32 * WARPS, 0, partial, as<T>(x), slices.rows, N, C);
    });
    add_slices(queue, {{sums}}, 1, partial, slices.count, C);
}

void add_slices(Queue &queue, Sums sums, int64_t count, const float *partial, int64_t slices, int64_t C) {
    ENQUEUE(queue, add_partial_sums, blocks_for(count * C, 32), 1024, 0, sums, count * C, partial, slices, C);
}
