/* The layers of generation: an embedding and a product with packed weights, and attention to cached keys and values.
 *
 *   embedding   x = wte[token] + wpe[position]
 *   product     y = residual + activation(x w + b)   with bfloat16, x is rounded too
 *     int4      y_n = Σ_groups s_n sx Σ_k q_kn qx_k       sx = max |x| / 127      qx = x / sx, rounded
 *   attention   s_u = scale q·k_u      P_u = exp(s_u − max s) / Σ exp(s − max s)      y = Σ_u P_u v_u
 *
 * csrc/packed.h has the formats. Each sum is taken in an order that depends on its own length alone, never on the number of
 * rows, and each number by the same instructions: so the activation and the residual are part of the product, where the elementwise
 * kernels would treat the last elements of all rows by code of their own.
 *
 * The simple kernels: a block makes one row's 32 outputs, or one row's head.
 */
#include "elements.cuh"
#include "exact_gelu.cuh"
#include "gelu.cuh"
#include "generation.cuh"
#include "rotary.cuh"

namespace {

constexpr int WARPS = DIVIDES_WORK(8, 2);   // of a product's block: warp i has groups i, i + WARPS, ...
constexpr int ATTENTION_THREADS = DIVIDES_WORK(128, 32);   // of a block, and positions that it takes at a time

/* ---- packed weights ---- */

/* A PackedMatrix of PACKED_WIDTH as kernels see it. */
struct Panels {
    const unsigned char *data;
    int64_t K, N, groups, group_bytes;

    explicit Panels(const PackedMatrix &m)
        : data(m.data), K(m.K), N(m.N), groups(divide_up(m.K, GROUP)),
          group_bytes(packed_group_bytes(m.type, PACKED_WIDTH)) {}

    __device__ const unsigned char *group(int64_t panel, int64_t g) const {
        return data + (panel * groups + g) * group_bytes;
    }
};

/* Of a group of int8 or int4, in column n. */
__device__ float scale_of(const unsigned char *group, int n) {
    return static_cast<float>(reinterpret_cast<const bf16 *>(group)[n]);
}

/* 8 + q */
__device__ int int4_of(const unsigned char *group, int k, int n) {
    const unsigned char byte = group[2 * PACKED_WIDTH + (k / 8 * PACKED_WIDTH + n) * 4 + k % 4];
    return k % 8 < 4 ? byte & 15 : byte >> 4;
}

template <int type> __device__ float weight_of(const unsigned char *group, int k, int n) {
    if constexpr (type == PYGPT_FLOAT32) {
        return reinterpret_cast<const float *>(group)[k * PACKED_WIDTH + n];
    } else if constexpr (type == PYGPT_BFLOAT16) {
        return static_cast<float>(reinterpret_cast<const bf16 *>(group)[(k / 2 * PACKED_WIDTH + n) * 2 + k % 2]);
    } else {
        static_assert(type == PYGPT_INT8);
        return scale_of(group, n) * static_cast<float>(static_cast<signed char>(group[(2 + k) * PACKED_WIDTH + n]));
    }
}

/* All types but int4, with which only a product works. */
template <class F> void for_weights(int type, F f) {
    if (type == PYGPT_FLOAT32) f(std::integral_constant<int, PYGPT_FLOAT32>{});
    if (type == PYGPT_BFLOAT16) f(std::integral_constant<int, PYGPT_BFLOAT16>{});
    if (type == PYGPT_INT8) f(std::integral_constant<int, PYGPT_INT8>{});
}

/* ---- embedding ---- */

template <int type>
__global__ void __launch_bounds__(ELEMENT_THREADS)
    embed_packed(float *x, const GenerationRow *rows, Panels wte, const float *wpe, int64_t N) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x, C = wte.K;
    if (i >= N * C) return;
    const GenerationRow row = rows[i / C];
    const int64_t c = i % C;
    const unsigned char *const group = wte.group(row.token / PACKED_WIDTH, c / GROUP);
    const float token = weight_of<type>(group, static_cast<int>(c % GROUP), static_cast<int>(row.token % PACKED_WIDTH));
    x[i] = wpe ? token + wpe[row.position * C + c] : token;
}

__global__ void __launch_bounds__(ELEMENT_THREADS)
    rotate_rows(float *qkv, const GenerationRow *rows, int64_t N, int64_t NH, int64_t HS) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x, half = HS / 2;
    if (at >= N * half) return;
    const int64_t r = at / half, i = at % half;
    const Turn turn(static_cast<double>(rows[r].position), i, HS);
    float *const x = qkv + r * 3 * NH * HS + i;
    for (int64_t h = 0; h < 2 * NH; h++) turn(x + h * HS, x + h * HS, half);   // queries and keys
}

/* ---- product ---- */

/* quantise_inputs() of csrc/packed.c; a thread has a group. */
__global__ void __launch_bounds__(ELEMENT_THREADS)
    quantise(QuantisedInputs *to, const float *x, int64_t rows, int64_t groups, int64_t K) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
    if (i >= rows * groups) return;
    const int64_t first = i % groups * GROUP, count = min(int64_t{GROUP}, K - first);
    x += i / groups * K + first;
    float largest = 0.0f;
    for (int k = 0; k < count && largest == largest; k++)
        if (!(fabsf(x[k]) <= largest)) largest = fabsf(x[k]);   // a NaN too, and then it stays
    const float scale = largest / 127.0f;
    int32_t sum = 0;
    for (int k = 0; k < GROUP; k++) {
        const float q = k < count && scale != 0.0f ? rintf(x[k] / scale) : 0.0f;
        to[i].q[k] = static_cast<int8_t>(q >= -127.0f ? q <= 127.0f ? static_cast<int>(q) : 127 : -127);
        sum += to[i].q[k];
    }
    to[i].scale = scale;
    to[i].sum = sum;
}

struct Product {
    float *y;
    const float *x;
    const QuantisedInputs *inputs;
    Panels w;
    const float *b, *residual;
    bool activated;
    int activation_function;
};

/* Σ_k x_k w_kn over group g, of `count` inputs, of a row. */
template <int type>
__device__ float group_sum(const Product &p, const unsigned char *group, int64_t row, int64_t g, int count, int n) {
    if constexpr (type == PYGPT_INT4) {
        const QuantisedInputs &inputs = p.inputs[row * p.w.groups + g];
        int32_t dot = 0;
        for (int k = 0; k < count; k++) dot += int4_of(group, k, n) * inputs.q[k];
        return static_cast<float>(dot - 8 * inputs.sum) * (scale_of(group, n) * inputs.scale);
    } else {
        const float *const x = p.x + row * p.w.K + g * GROUP;
        float sum = 0;
        for (int k = 0; k < count; k++)
            sum += (type == PYGPT_BFLOAT16 ? stored<bf16>(x[k]) : x[k]) * weight_of<type>(group, k, n);
        return sum;
    }
}

__device__ float activation_of(int activation_function, float x) {
    switch (activation_function) {
    case PYGPT_GELU: return exact_gelu_of(x);
    case PYGPT_RELU: return x > 0.0f ? x : 0.0f;
    default: return gelu_of(x);
    }
}

template <int type> __global__ void __launch_bounds__(32 * WARPS) packed_product_row(Product p) {
    SHARED(float, partial, [WARPS][32]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t panel = blockIdx.x, row = blockIdx.y, n = panel * PACKED_WIDTH + lane;
    float sum = 0;
    for (int64_t g = warp; g < p.w.groups; g += WARPS) {
        const int count = static_cast<int>(min(int64_t{GROUP}, p.w.K - g * GROUP));
        sum += group_sum<type>(p, p.w.group(panel, g), row, g, count, lane);
    }
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || n >= p.w.N) return;
    float y = p.b ? p.b[n] : 0.0f;
    for (int i = 0; i < WARPS; i++) y += partial[i][lane];
    if (p.activated) y = activation_of(p.activation_function, y);
    if (p.residual) y += p.residual[row * p.w.N + n];
    p.y[row * p.w.N + n] = y;
}

/* ---- attention ---- */

/* Where a sequence's head begins in the cache. */
__device__ int64_t head_at(const CacheShape &s, const GenerationRow &row, int64_t h) {
    return (row.sequence * s.NH + h) * s.positions * s.HS;
}

template <class T>
__global__ void __launch_bounds__(ELEMENT_THREADS)
    cache_rows(T *keys, T *values, const float *qkv, const GenerationRow *rows, int64_t N, CacheShape s) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x, C = s.NH * s.HS;
    if (i >= N * C) return;
    const int64_t r = i / C, c = i % C;
    const int64_t at = head_at(s, rows[r], c / s.HS) + rows[r].position * s.HS + c % s.HS;
    keys[at] = static_cast<T>(qkv[(3 * r + 1) * C + c]);
    values[at] = static_cast<T>(qkv[(3 * r + 2) * C + c]);
}

/* A thread forms whole dot products, and then adds up channels of y, which stay its own: in ascending order of positions. The
 * barriers are those in block_max() and block_sum(). */
template <class T>
__global__ void __launch_bounds__(ATTENTION_THREADS) attend(float *y, const T *keys, const T *values, const float *qkv,
                                                            const GenerationRow *rows, CacheShape s, float scale) {
    SHARED(float, weights, [ATTENTION_THREADS]);
    const int64_t h = blockIdx.x, r = blockIdx.y, C = s.NH * s.HS, count = rows[r].position + 1;
    const float *const q = qkv + r * 3 * C + h * s.HS;
    keys += head_at(s, rows[r], h);
    values += head_at(s, rows[r], h);
    y += r * C + h * s.HS;
    for (int64_t i = threadIdx.x; i < s.HS; i += ATTENTION_THREADS) y[i] = 0;

    float largest = -INFINITY, sum = 0;
    for (int64_t first = 0; first < count; first += ATTENTION_THREADS) {
        const int64_t u = first + threadIdx.x;
        float score = -INFINITY;
        if (u < count) {
            float dot = 0;
            for (int64_t i = 0; i < s.HS; i++) dot += q[i] * static_cast<float>(keys[u * s.HS + i]);
            score = scale * dot;
        }
        const float larger = fmaxf(largest, block_max(score)), shrink = expf(largest - larger);
        weights[threadIdx.x] = u < count ? expf(score - larger) : 0.0f;
        sum = shrink * sum + block_sum(weights[threadIdx.x]);
        largest = larger;
        const int present = static_cast<int>(min(int64_t{ATTENTION_THREADS}, count - first));
        for (int64_t i = threadIdx.x; i < s.HS; i += ATTENTION_THREADS) {
            float yi = shrink * y[i];
            for (int j = 0; j < present; j++) yi += weights[j] * static_cast<float>(values[(first + j) * s.HS + i]);
            y[i] = yi;
        }
    }
    for (int64_t i = threadIdx.x; i < s.HS; i += ATTENTION_THREADS) y[i] /= sum;
}

dim3 grid_of(int64_t across, int64_t rows) {
    return dim3(static_cast<unsigned>(across), static_cast<unsigned>(rows));
}

}   // namespace

void packed_embedding(Queue &queue, float *x, const GenerationRow *rows, const PackedMatrix &wte, const float *wpe,
                      int64_t N) {
    for_weights(wte.type, [&](auto type) {
        ENQUEUE(queue, embed_packed<decltype(type)::value>, blocks_for(N * wte.K, ELEMENT_THREADS), ELEMENT_THREADS, 0,
                x, rows, Panels(wte), wpe, N);
    });
}

void rotary_rows(Queue &queue, float *qkv, const GenerationRow *rows, int64_t N, int64_t NH, int64_t HS) {
    ENQUEUE(queue, rotate_rows, blocks_for(N * (HS / 2), ELEMENT_THREADS), ELEMENT_THREADS, 0, qkv, rows, N, NH, HS);
}

void packed_product(Queue &queue, const PackedProduct &p) {
    const Panels w(p.w);
    const Product product{p.y, p.x, p.inputs, w, p.b, p.residual, p.activated, p.activation_function};
    const dim3 grid = grid_of(packed_panels(&p.w), p.rows);
    if (p.w.type == PYGPT_INT4) {
        ENQUEUE(queue, quantise, blocks_for(p.rows * w.groups, ELEMENT_THREADS), ELEMENT_THREADS, 0, p.inputs, p.x,
                p.rows, w.groups, w.K);
        ENQUEUE(queue, packed_product_row<PYGPT_INT4>, grid, 32 * WARPS, 0, product);
    }
    for_weights(p.w.type, [&](auto type) {
        ENQUEUE(queue, packed_product_row<decltype(type)::value>, grid, 32 * WARPS, 0, product);
    });
}

void cached_attention(Queue &queue, float *y, void *keys, void *values, const float *qkv, const GenerationRow *rows,
                      int64_t N, const CacheShape &s, float scale) {
    for_type(s.type, [&](auto element) {
        using T = decltype(element);
        ENQUEUE(queue, cache_rows<T>, blocks_for(N * s.NH * s.HS, ELEMENT_THREADS), ELEMENT_THREADS, 0, as<T>(keys),
                as<T>(values), qkv, rows, N, s);
        ENQUEUE(queue, attend<T>, grid_of(s.NH, N), ATTENTION_THREADS, 0, y, as<T>(keys), as<T>(values), qkv, rows, s,
                scale);
    });
}
