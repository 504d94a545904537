/* What flash attention has in common on tensor cores (attention_flash_*) and on the units for float32
 * (attention_fma_*): a head's place in qkv, which of its rows a block takes, tiles of rows in shared memory, the launch.
 *
 * A tile is some rows of HS elements. Its unit is the chunk of 16 bytes, which cp.async copies. Where a chunk lies in its
 * tile, so that threads that read at once find different banks, is up to each family: its Layout has
 *
 *   chunks    of a row               offset(row, chunk)    in elements
 *   period    chunks change places only within so many      repeat    and do so alike in rows so far apart
 */
#pragma once

#include <type_traits>

#include "../philox.cuh"
#include "elements.cuh"

namespace {

/* Starts copying a tile of rows that lie `stride` elements apart; rows from `count` on become zeros, and are not read. */
template <class Layout, int rows, int threads, class E>
__device__ void load_tile(E *tile, const E *x, unsigned stride, int count) {
    constexpr unsigned chunks = Layout::chunks, of_chunk = 16 / sizeof(E);
    constexpr unsigned lanes = chunks % 8 ? chunks & -chunks : 8, at_once = threads / lanes;   // rows
    const unsigned row = threadIdx.x / lanes, chunk = threadIdx.x % lanes;
    if (at_once > rows && row >= rows) return;
    constexpr bool alike = lanes == Layout::period && at_once % Layout::repeat == 0;   // all places of this thread
    E *const to = tile + Layout::offset(row, chunk);
    const E *const from = x + (row * stride + chunk * of_chunk);
    UNROLL
    for (unsigned r = 0; r < rows; r += at_once) {
        UNROLL
        for (unsigned c = 0; c < chunks; c += lanes)
            cp_async_16(alike ? to + (r * chunks + c) * of_chunk : tile + Layout::offset(row + r, chunk + c),
                        from + (r * stride + c * of_chunk), static_cast<int>(row + r) < count);
    }
}

/* A value that all lanes of a warp have in common, so that the compiler may know. */
__device__ inline int uniform(int x) {
    return __shfl_sync(0xffffffffu, x, 0);
}

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

constexpr int64_t most = 0x7fffffff;   // that an int holds

/* One block for each `rows` of the T positions of each head; 0 if there are none, or more than ints can number. */
inline unsigned grid_of(int64_t B, int64_t T, int64_t NH, int64_t HS, int rows) {
    if (B < 1 || T < 1 || NH < 1 || B > most / NH || T > most - rows || NH > most / (3 * HS * rows)) return 0;
    const int64_t heads = B * NH;
    const int64_t tiles = ceil_div<int64_t>(T, rows);
    return heads <= most / tiles ? static_cast<unsigned>(heads * tiles) : 0;
}

/* The rows of a block: `rows` positions of one head, from `first` on. Every head has as many blocks, of which those with
 * the most work should be the first: that is the last queries, or the first keys. */
template <int rows> struct Part {
    int bh, first;
    Head head;

    __device__ Part(bool last_first, int T, int NH, int HS)
        : bh(static_cast<int>(blockIdx.x) / ceil_div(T, rows)), head(bh, T, NH, HS) {
        const int tiles = ceil_div(T, rows), tile = static_cast<int>(blockIdx.x) % tiles;
        first = (last_first ? tiles - 1 - tile : tile) * rows;
    }
};

/* f(head size, whether there is dropout), as types; or cudaErrorInvalidValue */
template <class F> cudaError_t for_instance(int64_t HS, const DropoutMask &dropout, F f) {
    return for_head_size(HS, [&](auto head_size) -> cudaError_t {
        return dropout.draw ? f(head_size, std::true_type{}) : f(head_size, std::false_type{});
    });
}

/* kernel(arguments..., T, NH, scale, dropout), with one block for each Shape::rows of the positions of each head. */
template <class Shape, class... Parameters, class... Arguments>
cudaError_t launch_parts(void (*kernel)(Parameters...), int64_t B, int64_t T, int64_t NH, float scale,
                         const DropoutMask &dropout, cudaStream_t stream, Arguments... arguments) {
    const unsigned grid = grid_of(B, T, NH, Shape::HS, Shape::rows);
    if (grid == 0) return cudaErrorInvalidValue;
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::shared_bytes));
    return LAUNCH(kernel, grid, Shape::threads, Shape::shared_bytes, stream, arguments..., static_cast<int>(T),
                  static_cast<int>(NH), scale, dropout);
}

} // namespace
