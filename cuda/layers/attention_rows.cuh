/* What the backward pass needs of each query besides its channels, made by one kernel before the others:
 *
 *   lse log2(e), so that P = 2^(c S log2(e) − lse log2(e))          D = Σ_channels dy y      c: the scale
 */
#pragma once

#include "attention_tiles.cuh"

namespace {

struct Row {
    float lse2, D;   // lse2: beyond the end of the sequence infinity, so that P = 0
};

/* Rows of a head are padded to whole tiles of any kernel. */
constexpr int row_tile = 128;

__host__ __device__ inline int64_t padded(int64_t T) {
    return ceil_div<int64_t>(T, row_tile) * row_tile;
}

/* Of the rows, for any head size and type. */
inline size_t rows_bytes(int64_t B, int64_t T, int64_t NH) {
    return static_cast<size_t>(B * NH * padded(T)) * sizeof(Row);
}

constexpr int row_threads = 256;

/* Lanes for each query, of 16 bytes each. */
template <int HS, class E>
constexpr int row_lanes = HS <= 4 * widest<E>    ? 4
                          : HS <= 8 * widest<E>  ? 8
                          : HS <= 16 * widest<E> ? 16
                                                 : 32;

template <int HS, class E>
__global__ void __launch_bounds__(row_threads)
    attention_flash_rows(Row *rows, const E *dy, const E *y, const float *lse, int T, int NH, unsigned blocks) {
    constexpr int lanes = row_lanes<HS, E>, W = widest<E>;
    const int64_t b = blockIdx.x / blocks;
    const unsigned i = blockIdx.x % blocks * (row_threads / lanes) + threadIdx.x / lanes;
    const unsigned h = i % NH, t = i / NH, chunk = threadIdx.x % lanes, Tp = padded(T);
    const int64_t head = b * NH + h, row = (b * T + t) * NH + h;
    float D = 0;
    if (t < static_cast<unsigned>(T) && chunk < HS / W) {
        float u[W], v[W];
        load<W>(u, dy + row * HS + W * chunk);
        load<W>(v, y + row * HS + W * chunk);
        UNROLL
        for (int j = 0; j < W; j++) D += u[j] * v[j];
    }
    UNROLL
    for (int delta = lanes / 2; delta > 0; delta /= 2) D += __shfl_xor_sync(0xffffffffu, D, delta);
    if (chunk != 0 || t >= Tp) return;
    rows[head * Tp + t] = {t < static_cast<unsigned>(T) ? lse[head * T + t] * log2_e : INFINITY, D};
}

template <int HS, class E>
cudaError_t launch_rows(Row *rows, const E *dy, const E *y, const float *lse, int64_t B, int64_t T, int64_t NH,
                        cudaStream_t stream) {
    const int64_t blocks = ceil_div<int64_t>(padded(T) * NH, row_threads / row_lanes<HS, E>);
    if (padded(T) * NH > most || B * blocks > most) return cudaErrorInvalidValue;
    return LAUNCH((attention_flash_rows<HS, E>), static_cast<unsigned>(B * blocks), row_threads, 0, stream, rows, dy, y,
                  lse, static_cast<int>(T), static_cast<int>(NH), static_cast<unsigned>(blocks));
}

}   // namespace
