/* Multi-head self-attention, causal or not. For each sequence and head, with row t of queries q, keys k and values v:
 *
 *   forward    s_tu = scale q_t·k_u  (causal: u ≤ t)     P_tu = exp(s_tu − lse_t)     lse_t = log Σ_u exp(s_tu)
 *              y_t = Σ_u P_tu m_tu v_u                      m: dropout's factor, 1 without dropout
 *   backward   dP_tu = m_tu dy_t·v_u      D_t = Σ_u P_tu dP_tu = dy_t·y_t      dS_tu = P_tu (dP_tu − D_t)
 *              dq_t = scale Σ_u dS_tu k_u      dk_u = scale Σ_t dS_tu q_t      dv_u = Σ_t P_tu m_tu dy_t
 *
 * qkv: (B,T,3,NH,HS)   y: (B,T,NH,HS)   lse: (B,NH,T)
 *
 * The simple kernels, twins of those in tiles (attention_flash.cuh), which are causal, for every head size and type. A warp makes one
 * row of the result. It takes the other rows 32 at a time: first each lane has a row and forms whole dot products, then
 * each lane has channels and adds up over the 32 rows, whose weights wait in shared memory. So sums go in ascending
 * order, always.
 */
#include "attention_flash.cuh"
#include "attention_rows.cuh"
#include "attention_wgmma.cuh"
#include "elements.cuh"
#include "layers.cuh"

namespace {

constexpr int WARPS = 4;   // of a block, and rows of the result
constexpr int SHARED_BYTES = 48 << 10;

struct Sizes {
    int64_t B, T, NH, HS;
    float scale;   // of the scores
    bool causal;

    /* Query t looks at the keys before keys_end(t), and key u is seen by the queries from first_query(u) on. */
    __device__ int64_t keys_end(int64_t t) const {
        return causal ? t + 1 : T;
    }
    __device__ int64_t first_query(int64_t u) const {
        return causal ? u : 0;
    }

    /* Of q of sequence and head bh, row t; k and v follow NH·HS and 2·NH·HS elements later. */
    __device__ int64_t q(int64_t bh, int64_t t) const {
        return ((bh / NH * T + t) * 3 * NH + bh % NH) * HS;
    }
    __device__ int64_t y(int64_t bh, int64_t t) const {
        return ((bh / NH * T + t) * NH + bh % NH) * HS;
    }
};

/* Which row of the result the calling warp makes; false if none. */
__device__ bool row_of_warp(int64_t &bh, int64_t &row, const Sizes &s) {
    const int64_t number = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    bh = number / s.T;
    row = number % s.T;
    return bh < s.B * s.NH;
}

template <class T> __device__ float dot(const float *a, const T *b, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * static_cast<float>(b[i]);
    return sum;
}

/* out_i = shrink out_i + Σ_j weights_j x_ji over 32 rows, of which `rows` exist; the lanes share out the channels. */
template <class T>
__device__ void add_rows(float *out, float shrink, const float *weights, const T *x, int64_t stride, int rows,
                         int64_t n) {
    for (int64_t i = threadIdx.x % 32; i < n; i += 32) {
        float sum = shrink * out[i];
        for (int j = 0; j < rows; j++) sum += weights[j] * static_cast<float>(x[j * stride + i]);
        out[i] = sum;
    }
}

/* A warp's part of the shared memory: 64 weights, and `vectors` of HS floats. */
__device__ float *shared_of_warp(float *shared, int vectors, int64_t HS) {
    return shared + threadIdx.x / 32 * (64 + vectors * HS);
}

template <class T>
__global__ void __launch_bounds__(32 * WARPS)
    attention_row(T *y, float *lse, const T *qkv, Sizes s, DropoutMask dropout) {
    DYNAMIC_SHARED(float, shared);
    float *const weights = shared_of_warp(shared, 2, s.HS), *const q = weights + 64, *const yt = q + s.HS;
    const int lane = threadIdx.x % 32;
    const int64_t C = s.NH * s.HS;
    int64_t bh, t;
    if (!row_of_warp(bh, t, s)) return;
    for (int64_t i = lane; i < s.HS; i += 32) {
        q[i] = static_cast<float>(qkv[s.q(bh, t) + i]);
        yt[i] = 0;
    }
    __syncwarp();

    const int64_t end = s.keys_end(t);
    float largest = -INFINITY, sum = 0;
    for (int64_t first = 0; first < end; first += 32) {
        const int64_t u = first + lane;
        const T *const k = qkv + s.q(bh, first) + C;
        const float score = u < end ? s.scale * dot(q, k + lane * 3 * C, s.HS) : -INFINITY;
        const float larger = fmaxf(largest, warp_max(score)), shrink = expf(largest - larger);
        const float p = u < end ? expf(score - larger) : 0.0f;
        sum = shrink * sum + warp_sum(p);
        largest = larger;
        weights[lane] = u < end ? p * dropout_factor(static_cast<uint64_t>((bh * s.T + t) * s.T + u), dropout) : 0.0f;
        __syncwarp();
        add_rows(yt, shrink, weights, k + C, 3 * C, static_cast<int>(min(int64_t{32}, end - first)), s.HS);
        __syncwarp();
    }
    for (int64_t i = lane; i < s.HS; i += 32) y[s.y(bh, t) + i] = static_cast<T>(yt[i] / sum);
    if (lane == 0) lse[bh * s.T + t] = largest + logf(sum);
}

/* dq_t, and D_t for the kernel after this one. */
template <class T>
__global__ void __launch_bounds__(32 * WARPS)
    attention_query_row(T *dqkv, float *D, const T *dy, const T *y, const float *lse, const T *qkv, Sizes s,
                        DropoutMask dropout) {
    DYNAMIC_SHARED(float, shared);
    float *const weights = shared_of_warp(shared, 3, s.HS), *const q = weights + 64, *const dyt = q + s.HS,
                 *const dq = dyt + s.HS;
    const int lane = threadIdx.x % 32;
    const int64_t C = s.NH * s.HS;
    int64_t bh, t;
    if (!row_of_warp(bh, t, s)) return;
    float product = 0;
    for (int64_t i = lane; i < s.HS; i += 32) {
        q[i] = static_cast<float>(qkv[s.q(bh, t) + i]);
        dyt[i] = static_cast<float>(dy[s.y(bh, t) + i]);
        dq[i] = 0;
        product += dyt[i] * static_cast<float>(y[s.y(bh, t) + i]);
    }
    const float Dt = warp_sum(product), lse_t = lse[bh * s.T + t];
    if (lane == 0) D[bh * s.T + t] = Dt;
    __syncwarp();

    const int64_t end = s.keys_end(t);
    for (int64_t first = 0; first < end; first += 32) {
        const int64_t u = first + lane;
        const T *const k = qkv + s.q(bh, first) + C;
        float dS = 0;
        if (u < end) {
            const float p = expf(s.scale * dot(q, k + lane * 3 * C, s.HS) - lse_t);
            const float m = dropout_factor(static_cast<uint64_t>((bh * s.T + t) * s.T + u), dropout);
            dS = p * (m * dot(dyt, k + C + lane * 3 * C, s.HS) - Dt);
        }
        weights[lane] = dS;
        __syncwarp();
        add_rows(dq, 1.0f, weights, k, 3 * C, static_cast<int>(min(int64_t{32}, end - first)), s.HS);
        __syncwarp();
    }
    for (int64_t i = lane; i < s.HS; i += 32) dqkv[s.q(bh, t) + i] = static_cast<T>(s.scale * dq[i]);
}

/* dk_u and dv_u. */
template <class T>
__global__ void __launch_bounds__(32 * WARPS) attention_key_row(T *dqkv, const float *D, const T *dy, const float *lse,
                                                                const T *qkv, Sizes s, DropoutMask dropout) {
    DYNAMIC_SHARED(float, shared);
    float *const dS = shared_of_warp(shared, 4, s.HS), *const P = dS + 32;
    float *const k = P + 32, *const v = k + s.HS, *const dk = v + s.HS, *const dv = dk + s.HS;
    const int lane = threadIdx.x % 32;
    const int64_t C = s.NH * s.HS;
    int64_t bh, u;
    if (!row_of_warp(bh, u, s)) return;
    for (int64_t i = lane; i < s.HS; i += 32) {
        k[i] = static_cast<float>(qkv[s.q(bh, u) + C + i]);
        v[i] = static_cast<float>(qkv[s.q(bh, u) + 2 * C + i]);
        dk[i] = dv[i] = 0;
    }
    __syncwarp();

    for (int64_t first = s.first_query(u); first < s.T; first += 32) {
        const int64_t t = first + lane;
        const T *const q = qkv + s.q(bh, first), *const dyt = dy + s.y(bh, first);
        dS[lane] = P[lane] = 0;
        if (t < s.T) {
            const float p = expf(s.scale * dot(k, q + lane * 3 * C, s.HS) - lse[bh * s.T + t]);
            const float m = dropout_factor(static_cast<uint64_t>((bh * s.T + t) * s.T + u), dropout);
            dS[lane] = p * (m * dot(v, dyt + lane * C, s.HS) - D[bh * s.T + t]);
            P[lane] = p * m;
        }
        __syncwarp();
        const int rows = static_cast<int>(min(int64_t{32}, s.T - first));
        add_rows(dk, 1.0f, dS, q, 3 * C, rows, s.HS);
        add_rows(dv, 1.0f, P, dyt, C, rows, s.HS);
        __syncwarp();
    }
    for (int64_t i = lane; i < s.HS; i += 32) {
        dqkv[s.q(bh, u) + C + i] = static_cast<T>(s.scale * dk[i]);
        dqkv[s.q(bh, u) + 2 * C + i] = static_cast<T>(dv[i]);
    }
}

template <class T>
__global__ void __launch_bounds__(ELEMENT_THREADS) attention_matrix(float *p, const float *lse, const T *qkv, Sizes s) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
    if (at >= s.B * s.NH * s.T * s.T) return;
    const int64_t u = at % s.T, row = at / s.T, t = row % s.T, bh = row / s.T;
    float score = 0;
    if (u < s.keys_end(t)) {
        const T *const q = qkv + s.q(bh, t), *const k = qkv + s.q(bh, u) + s.NH * s.HS;
        for (int64_t i = 0; i < s.HS; i++) score += static_cast<float>(q[i]) * static_cast<float>(k[i]);
    }
    p[at] = u < s.keys_end(t) ? expf(s.scale * score - lse[row]) : 0.0f;
}

/* How the rows are shared out among blocks whose warps hold so many vectors each. */
struct Grid {
    unsigned blocks, threads;
    size_t shared_bytes;

    Grid(const Sizes &s, int vectors) {
        const int64_t of_warp = (64 + vectors * s.HS) * static_cast<int64_t>(sizeof(float));
        const int64_t warps = max(int64_t{1}, min(int64_t{WARPS}, SHARED_BYTES / of_warp));
        blocks = blocks_for(s.B * s.NH * s.T, warps);
        threads = static_cast<unsigned>(32 * warps);
        shared_bytes = static_cast<size_t>(warps * of_warp);
    }
};

} // namespace

size_t attention_scratch(int64_t B, int64_t T, int64_t NH) {
    return max(static_cast<size_t>(B * NH * T) * sizeof(float), rows_bytes(B, T, NH));
}

static bool flash(const Queue &queue, int64_t HS) {
    const bool can = queue.type == DataType::float32 || queue.compute_capability >= 80;
    return queue.fast && can && for_head_size(HS, [](auto) { return cudaSuccess; }) == cudaSuccess;
}

static bool on_hopper(const Queue &queue, int64_t HS, const DropoutMask &dropout) {
    return queue.fast && queue.type == DataType::bfloat16 &&
           attention_wgmma_fits(queue.compute_capability, HS, dropout);
}

void attention_forward(Queue &queue, void *y, float *lse, const void *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                       float scale, bool causal, const DropoutMask &dropout) {
    if (queue.error != cudaSuccess) return;
    if (causal && on_hopper(queue, HS, dropout)) {
        note(queue, attention_wgmma_forward(as<bf16>(y), lse, as<bf16>(qkv), B, T, NH, scale, queue.stream),
             "attention_wgmma_forward");
        return;
    }
    if (causal && flash(queue, HS)) {
        for_type(queue.type, [&](auto element) {
            using E = decltype(element);
            note(queue, attention_flash_forward(as<E>(y), lse, as<E>(qkv), B, T, NH, HS, scale, dropout, queue.stream),
                 "attention_flash_forward");
        });
        return;
    }
    const Sizes s{B, T, NH, HS, scale, causal};
    const Grid grid(s, 2);
    for_type(queue.type, [&](auto element) {
        using E = decltype(element);
        ENQUEUE(queue, attention_row<E>, grid.blocks, grid.threads, grid.shared_bytes, as<E>(y), lse, as<E>(qkv), s,
                dropout);
    });
}

void attention_backward(Queue &queue, void *dqkv, const void *dy, const void *y, const float *lse, const void *qkv,
                        int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, bool causal,
                        const DropoutMask &dropout) {
    void *const memory = scratch(queue, attention_scratch(B, T, NH));
    if (queue.error != cudaSuccess) return;
    if (causal && on_hopper(queue, HS, dropout)) {
        note(queue,
             attention_wgmma_backward(as<bf16>(dqkv), as<bf16>(dy), as<bf16>(y), lse, as<bf16>(qkv), memory, B, T, NH,
                                      scale, queue.stream),
             "attention_wgmma_backward");
        return;
    }
    if (causal && flash(queue, HS)) {
        for_type(queue.type, [&](auto element) {
            using E = decltype(element);
            note(queue,
                 attention_flash_backward(as<E>(dqkv), as<E>(dy), as<E>(y), lse, as<E>(qkv), memory, B, T, NH, HS,
                                          scale, dropout, queue.stream),
                 "attention_flash_backward");
        });
        return;
    }
    const Sizes s{B, T, NH, HS, scale, causal};
    const Grid queries(s, 3), keys(s, 4);
    float *const D = as<float>(memory);
    for_type(queue.type, [&](auto element) {
        using E = decltype(element);
        ENQUEUE(queue, attention_query_row<E>, queries.blocks, queries.threads, queries.shared_bytes, as<E>(dqkv), D,
                as<E>(dy), as<E>(y), lse, as<E>(qkv), s, dropout);
        ENQUEUE(queue, attention_key_row<E>, keys.blocks, keys.threads, keys.shared_bytes, as<E>(dqkv), D, as<E>(dy),
                lse, as<E>(qkv), s, dropout);
    });
}

void attention_probabilities(Queue &queue, float *p, const float *lse, const void *qkv, int64_t B, int64_t T,
                             int64_t NH, int64_t HS, float scale, bool causal) {
    const Sizes s{B, T, NH, HS, scale, causal};
    for_type(queue.type, [&](auto element) {
        using E = decltype(element);
        ENQUEUE(queue, attention_matrix<E>, blocks_for(B * NH * T * T, ELEMENT_THREADS), ELEMENT_THREADS, 0, p, lse,
                as<E>(qkv), s);
    });
}
