/* Attention to cached keys and values, split over the keys (flash-decoding: Dao et al. 2023).
 *
 *   s_u = scale q·k_u
 *   of a chunk of positions    m = ⌈max s⌉      P_u = 2^(s_u − m)      z = Σ P_u      a = Σ P_u v_u
 *   of all chunks              M = max m        y = Σ 2^(m − M) a / Σ 2^(m − M) z
 *
 * With a cache in bfloat16, q is rounded too, and so is P where it multiplies v: to the same bits whatever the whole number m.
 *
 * A block has a chunk of one row and head, and the last of these blocks to finish adds up the chunks, in ascending order.
 * Chunks begin at multiples of CHUNK, so what is summed, and how, depends on the row's position alone. Blocks beyond it return
 * at once: a captured graph has a grid for the whole cache.
 */
#include "generation.cuh"

namespace {

constexpr int WARPS = DIVIDES_WORK(4, 2), THREADS = 32 * WARPS;
constexpr int CHUNK = DIVIDES_WORK(64, 16);   // positions
constexpr int LANES = 8;   // that read a position together
constexpr int AT_ONCE = THREADS / LANES;   // positions
static_assert(CHUNK % AT_ONCE == 0);

/* Where a sequence's head begins in the cache. */
__device__ int64_t head_at(const CacheShape &s, const GenerationRow &row, int64_t h) {
    return (row.sequence * s.NH + h) * s.positions * s.HS;
}

template <class T> __global__ void __launch_bounds__(ELEMENT_THREADS) cache_rows(CachedAttention a) {
    const CacheShape &s = a.cache;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x, C = s.NH * s.HS;
    if (i >= a.N * C) return;
    const int64_t r = i / C, c = i % C;
    const int64_t at = head_at(s, a.rows[r], c / s.HS) + a.rows[r].position * s.HS + c % s.HS;
    as<T>(a.keys)[at] = static_cast<T>(a.qkv[(3 * r + 1) * C + c]);
    as<T>(a.values)[at] = static_cast<T>(a.qkv[(3 * r + 2) * C + c]);
}

/* What meets numbers of the cache has as many bits. */
template <class T> __device__ float as_cached(float x) {
    return static_cast<float>(static_cast<T>(x));
}

/* scores[j] = scale q·k_j, and -∞ from `present` on. */
template <class T, int W>
__device__ void score(float (&scores)[CHUNK], const float *q, const T *keys, int present, int64_t HS, float scale) {
    const int lane = threadIdx.x % LANES;
    UNROLL
    for (int first = 0; first < CHUNK; first += AT_ONCE) {
        const int j = first + threadIdx.x / LANES;
        float dot = 0;
        for (int64_t i = lane * W; i < HS && j < present; i += LANES * W) {
            float k[W];
            load<W>(k, keys + j * HS + i);
            for (int w = 0; w < W; w++) dot += as_cached<T>(q[i + w]) * k[w];
        }
        for (int delta = LANES / 2; delta > 0; delta /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, delta);
        if (lane == 0) scores[j] = j < present ? scale * dot : -INFINITY;
    }
}

/* sums[i] = Σ_j weights[j] v_ji */
template <class T, int W>
__device__ void add_values(float *sums, const float (&weights)[CHUNK], const T *values, int present, int64_t HS) {
    SHARED(float, partial, [WARPS][LANES * W]);
    const int lane = threadIdx.x % LANES;
    for (int64_t first = 0; first < HS; first += LANES * W) {
        const int64_t i = first + lane * W;
        float sum[W] = {};
        UNROLL
        for (int begin = 0; begin < CHUNK; begin += AT_ONCE) {
            const int j = begin + threadIdx.x / LANES;
            if (j >= present || i >= HS) continue;
            float v[W];
            load<W>(v, values + j * HS + i);
            for (int w = 0; w < W; w++) sum[w] += weights[j] * v[w];
        }
        for (int w = 0; w < W; w++) {
            for (int delta = LANES; delta < 32; delta *= 2) sum[w] += __shfl_xor_sync(0xffffffffu, sum[w], delta);
            if (threadIdx.x % 32 < LANES) partial[threadIdx.x / 32][lane * W + w] = sum[w];
        }
        __syncthreads();
        if (threadIdx.x < LANES * W && first + threadIdx.x < HS) {
            float total = 0;
            for (int warp = 0; warp < WARPS; warp++) total += partial[warp][threadIdx.x];
            sums[first + threadIdx.x] = total;
        }
        __syncthreads();
    }
}

/* The chunks: (m, z, a) of each. Other blocks have written them, so they are read past the L1 cache. */
__device__ void add_chunks(float *y, const float *chunks, int64_t count, int64_t HS) {
    float largest = -INFINITY;
    for (int64_t c = 0; c < count; c++) largest = fmaxf(largest, __ldcg(chunks + c * (2 + HS)));
    for (int64_t i = threadIdx.x; i < HS; i += THREADS) {
        float weight = 0, sum = 0;
        for (int64_t c = 0; c < count; c++) {
            const float *const chunk = chunks + c * (2 + HS), share = exp2f(__ldcg(chunk) - largest);
            weight += share * __ldcg(chunk + 1);
            sum += share * __ldcg(chunk + 2 + i);
        }
        y[i] = sum / weight;
    }
}

template <class T, int W> __global__ void __launch_bounds__(THREADS) attend_chunk(CachedAttention a) {
    SHARED(float, scores, [CHUNK]);
    SHARED(float, weights, [CHUNK]);
    SHARED(bool, last, [1]);
    const int64_t h = blockIdx.y, r = blockIdx.z, HS = a.cache.HS, C = a.cache.NH * HS;
    const int64_t count = a.rows[r].position + 1, first = static_cast<int64_t>(blockIdx.x) * CHUNK;
    if (first >= count) return;
    const int present = static_cast<int>(min(int64_t{CHUNK}, count - first));
    const int64_t at = head_at(a.cache, a.rows[r], h) + first * HS, chunk = 2 + HS;
    const int64_t capacity = ceil_div<int64_t>(a.cache.positions, CHUNK);
    float *const chunks = a.scratch.sums + (r * a.cache.NH + h) * capacity * chunk;
    float *const own = chunks + blockIdx.x * chunk;

    score<T, W>(scores, a.qkv + 3 * r * C + h * HS, as<T>(a.keys) + at, present, HS, a.scale);
    __syncthreads();
    float largest = -INFINITY, weight = 0;
    for (int j = threadIdx.x % 32; j < CHUNK; j += 32) largest = fmaxf(largest, scores[j]);
    largest = ceilf(warp_max(largest));
    const float origin = largest == -INFINITY ? 0.0f : largest;   // so that weights are 0, not NaN
    for (int j = threadIdx.x % 32; j < CHUNK; j += 32) {
        const float w = exp2f(scores[j] - origin);
        if (threadIdx.x < 32) weights[j] = as_cached<T>(w);
        weight += w;
    }
    weight = warp_sum(weight);
    __syncthreads();
    add_values<T, W>(own + 2, weights, as<T>(a.values) + at, present, HS);

    unsigned *const arrived = a.scratch.arrived + r * a.cache.NH + h;
    const int64_t number = ceil_div<int64_t>(count, CHUNK);
    if (threadIdx.x == 0) {
        own[0] = largest;
        own[1] = weight;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *last = atomicAdd(arrived, 1u) + 1 == number;
    __syncthreads();
    if (!*last) return;
    __threadfence();
    add_chunks(a.y + r * C + h * HS, chunks, number, HS);
    if (threadIdx.x == 0) *arrived = 0;
}

}   // namespace

int64_t chunk_sums(const CacheShape &s, int64_t rows) {
    const int64_t chunks = checked_mul(ceil_div<int64_t>(s.positions, CHUNK), s.NH * (2 + s.HS));
    return checked_mul(chunks, min64(rows, ATTENDED_ROWS));
}

void cached_attention(Queue &queue, CachedAttention a) {
    const CacheShape &s = a.cache;
    for_rows(s.type, s.HS, [&](auto element, auto width) {
        using T = decltype(element);
        constexpr int W = decltype(width)::value;
        ENQUEUE(queue, cache_rows<T>, blocks_for(a.N * s.NH * s.HS, ELEMENT_THREADS), ELEMENT_THREADS, 0, a);
        const unsigned chunks = blocks_for(a.longest, CHUNK);
        for (int64_t left = a.N; left > 0; left -= ATTENDED_ROWS) {
            const auto rows = static_cast<unsigned>(min64(left, ATTENDED_ROWS));
            ENQUEUE(queue, (attend_chunk<T, W>), dim3(chunks, static_cast<unsigned>(s.NH), rows), THREADS, 0, a);
            a.y += ATTENDED_ROWS * s.NH * s.HS;
            a.qkv += ATTENDED_ROWS * 3 * s.NH * s.HS;
            a.rows += ATTENDED_ROWS;
        }
    });
}
