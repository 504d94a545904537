/* LayerNorm over the channels of each row.
 *
 *   forward    x̂ = (x − μ) r      r = 1/√(σ² + ε)      y = x̂ ⊙ w + b
 *   backward   u = w ⊙ dy         dx = dresidual + r (u − ⟨u⟩ − x̂ ⟨u ⊙ x̂⟩)      dw += Σ_n dy ⊙ x̂      db += Σ_n dy
 *
 * ⟨·⟩ is the mean over channels. The variance is taken in a second pass: with E[x²] − μ² a row of mean 3000 and
 * deviation 1 loses all its digits in float32. That pass also finds what rounding has left of Σ (x − μ), and corrects
 * μ by it.
 *
 * Forward, a warp works on a row. It goes over the row several times, but only the first time reaches beyond the L1
 * cache. With the residual connection before it fused in, x = x1 + x2 is formed in each pass: cheaper than to read back
 * what was written.
 *
 * Backward, a block works on a row, and goes on to others; a thread has the same columns of each. So dy and x are read
 * once, and sums over rows stay in registers.
 */
#include "column_sums.cuh"
#include "elements.cuh"
#include "layers.cuh"
#include "row_statistics.cuh"

namespace {

constexpr int WARPS = DIVIDES_WORK(4, 2);   // of a block of the forward pass

/* Of a block of the backward pass at most: with so many, nvcc keeps to 80 registers, and an H100 runs MOST_THREADS at once,
 * over which the rows are divided. */
constexpr int ROW_THREADS = DIVIDES_WORK(768, 32), MOST_THREADS = DIVIDES_WORK(98304, 33 * 32);

template <class T> struct Forward {
    T *x;   // NULL without x2
    T *y;
    float *mean, *rstd;
    const T *x1, *x2, *w, *b;
    int64_t N, C;
    float eps;
};

template <class T, int W> __global__ void __launch_bounds__(32 * WARPS) layernorm_rows(Forward<T> f) {
    const int lane = threadIdx.x % 32;
    const int64_t n = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / 32, C = f.C;
    if (n >= f.N) return;
    const T *const x1 = f.x1 + n * C, *const x2 = f.x2 ? f.x2 + n * C : nullptr;

    auto read = [&](float (&x)[W], int64_t c) {
        load<W>(x, x1 + c);
        if (!x2) return;
        float branch[W];
        load<W>(branch, x2 + c);
        for (int i = 0; i < W; i++) x[i] = stored<T>(x[i] + branch[i]);
    };

    const RowStatistics s = row_statistics<W>(C, f.eps, read);
    for (int64_t c = lane * W; c < C; c += 32 * W) {
        float x[W], w[W], b[W] = {}, y[W];
        read(x, c);
        load<W>(w, f.w + c);
        if (f.b) load<W>(b, f.b + c);
        for (int i = 0; i < W; i++) y[i] = (x[i] - s.mean) * s.rstd * w[i] + b[i];
        store<W>(f.y + n * C + c, y);
        if (x2) store<W>(f.x + n * C + c, x);
    }
    if (lane == 0) {
        f.mean[n] = s.mean;
        f.rstd[n] = s.rstd;
    }
}

template <class T> struct Backward {
    T *dx;
    float *partial;   // (blocks,sums,C): of dw, db and perhaps branch_db
    float2 *means;   // (N): ⟨u⟩ and ⟨u ⊙ x̂⟩, of rows wider than a block
    const T *dresidual, *dy, *x, *w;
    const float *mean, *rstd;
    int64_t N, C;
    int sums;
};

/* One block for each row. */
template <class T, int W> __global__ void __launch_bounds__(ROW_THREADS) layernorm_means_backward(Backward<T> g) {
    const int64_t n = blockIdx.x, C = g.C;
    const float mean = g.mean[n], rstd = g.rstd[n];
    float u_sum = 0, ux_sum = 0;
    for (int64_t c = threadIdx.x * W; c < C; c += ROW_THREADS * W) {
        float dy[W], x[W], w[W];
        load<W>(dy, g.dy + n * C + c);
        load<W>(x, g.x + n * C + c);
        load<W>(w, g.w + c);
        for (int i = 0; i < W; i++) {
            u_sum += w[i] * dy[i];
            ux_sum += w[i] * dy[i] * ((x[i] - mean) * rstd);
        }
    }
    u_sum = block_sum(u_sum);
    ux_sum = block_sum(ux_sum);
    if (threadIdx.x == 0) g.means[n] = {u_sum / static_cast<float>(C), ux_sum / static_cast<float>(C)};
}

/* A block goes over rows, of which each thread has W columns: their sums stay in its registers. If `wide`, several blocks
 * share a row. */
template <class T, int W, bool wide>
__global__ void __launch_bounds__(ROW_THREADS) layernorm_rows_backward(Backward<T> g) {
    SHARED(float2, shares, [2][ROW_THREADS / 32]);   // of the warps; two, so that a row needs one barrier
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int64_t c = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * W, C = g.C;
    float w[W] = {}, dw[W] = {}, db[W] = {}, branch_db[W] = {};
    if (c < C) load<W>(w, g.w + c);

    int turn = 0;
    for (int64_t n = blockIdx.x; n < g.N; n += gridDim.x, turn ^= 1) {
        const float mean = g.mean[n], rstd = g.rstd[n];
        float dy[W] = {}, x[W] = {}, dx[W] = {};
        if (c < C) {
            load<W>(dy, g.dy + n * C + c);
            load<W>(x, g.x + n * C + c);
            if (g.dresidual) load<W>(dx, g.dresidual + n * C + c);
        }
        float u_mean = 0, ux_mean = 0;
        for (int i = 0; i < W; i++) {
            const float x_hat = (x[i] - mean) * rstd, u = w[i] * dy[i];
            u_mean += u;
            ux_mean += u * x_hat;
            dw[i] += dy[i] * x_hat;
            db[i] += dy[i];
            branch_db[i] += dx[i];
        }
        if (wide) {
            u_mean = g.means[n].x, ux_mean = g.means[n].y;
        } else {
            u_mean = warp_sum(u_mean), ux_mean = warp_sum(ux_mean);
            if (lane == 0) shares[turn][warp] = {u_mean, ux_mean};
            __syncthreads();
            u_mean = ux_mean = 0;
            for (int i = 0; i < warps; i++) u_mean += shares[turn][i].x, ux_mean += shares[turn][i].y;
            u_mean /= static_cast<float>(C), ux_mean /= static_cast<float>(C);
        }
        for (int i = 0; i < W; i++) {
            const float x_hat = (x[i] - mean) * rstd, u = w[i] * dy[i];
            dx[i] += rstd * (u - u_mean - x_hat * ux_mean);
        }
        if (c < C) store<W>(g.dx + n * C + c, dx);
    }

    float *const partial = g.partial + blockIdx.x * g.sums * C + c;
    if (c >= C) return;
    store<W>(partial, dw);
    store<W>(partial + C, db);
    if (g.sums == 3) store<W>(partial + 2 * C, branch_db);
}

/* How the backward pass is divided: by the shapes alone, so that every device adds in the same order. */
struct Division {
    int64_t threads, across, blocks;   // of a block; blocks that share a row; blocks that share the rows
    int64_t means, partial;   // floats of scratch memory; the second begin at a multiple of 32 bytes

    Division(int64_t N, int64_t C, int W)
        : threads(min(int64_t{ROW_THREADS}, ceil_div<int64_t>(C, 32 * W) * 32)), across(ceil_div(C, threads * W)),
          blocks(min(N, max(int64_t{1}, MOST_THREADS / (threads * across)))),
          means(across > 1 ? ceil_div<int64_t>(N, 4) * 8 : 0), partial(blocks * 3 * C) {}
};

}   // namespace

size_t layernorm_scratch(DataType type, int64_t N, int64_t C) {
    size_t floats = 0;
    for_rows(type, C, [&](auto, auto width) {
        const Division d(N, C, decltype(width)::value);
        floats = static_cast<size_t>(d.means + d.partial);
    });
    return floats * sizeof(float);
}

static void forward(Queue &queue, void *x, void *y, float *mean, float *rstd, const void *x1, const void *x2,
                    const void *w, const void *b, int64_t N, int64_t C, float eps) {
    for_rows(queue.type, C, [&](auto element, auto width) {
        using T = decltype(element);
        const Forward<T> f{as<T>(x), as<T>(y), mean, rstd, as<T>(x1), as<T>(x2), as<T>(w), as<T>(b), N, C, eps};
        ENQUEUE(queue, (layernorm_rows<T, decltype(width)::value>), blocks_for(N, WARPS), 32 * WARPS, 0, f);
    });
}

void layernorm_forward(Queue &queue, void *y, float *mean, float *rstd, const void *x, const void *w, const void *b,
                       int64_t N, int64_t C, float eps) {
    forward(queue, nullptr, y, mean, rstd, x, nullptr, w, b, N, C, eps);
}

void residual_layernorm_forward(Queue &queue, void *x, void *y, float *mean, float *rstd, const void *x1,
                                const void *x2, const void *w, const void *b, int64_t N, int64_t C, float eps) {
    if (queue.fast) {
        forward(queue, x, y, mean, rstd, x1, x2, w, b, N, C, eps);
    } else {
        residual_forward(queue, x, x1, x2, N * C);
        layernorm_forward(queue, y, mean, rstd, x, w, b, N, C, eps);
    }
}

void layernorm_backward(Queue &queue, void *dx, float *dw, float *db, float *branch_db, const void *dresidual,
                        const void *dy, const void *x, const void *w, const float *mean, const float *rstd, int64_t N,
                        int64_t C) {
    void *const memory = scratch(queue, layernorm_scratch(queue.type, N, C));
    for_rows(queue.type, C, [&](auto element, auto width) {
        using T = decltype(element);
        constexpr int W = decltype(width)::value;
        const Division d(N, C, W);
        const dim3 grid(static_cast<unsigned>(d.blocks), static_cast<unsigned>(d.across));
        const auto threads = static_cast<unsigned>(d.threads);
        const int sums = branch_db ? 3 : 2;
        float2 *const means = as<float2>(memory);
        float *const partial = as<float>(memory) + d.means;
        const Backward<T> g{as<T>(dx), partial, means, as<T>(dresidual), as<T>(dy), as<T>(x), as<T>(w), mean, rstd,
                            N,         C,       sums};
        if (d.across > 1) {
            ENQUEUE(queue, (layernorm_means_backward<T, W>), static_cast<unsigned>(N), ROW_THREADS, 0, g);
            ENQUEUE(queue, (layernorm_rows_backward<T, W, true>), grid, threads, 0, g);
        } else {
            ENQUEUE(queue, (layernorm_rows_backward<T, W, false>), grid, threads, 0, g);
        }
        add_slices(queue, {{dw, db, branch_db}}, sums, partial, d.blocks, C);
    });
}
