/* LayerNorm over the channels of each row.
 *
 *   forward    x̂ = (x − μ) r      r = 1/√(σ² + ε)      y = x̂ ⊙ w + b
 *   backward   u = w ⊙ dy         dx = dresidual + r (u − ⟨u⟩ − x̂ ⟨u ⊙ x̂⟩)      dw += Σ_n dy ⊙ x̂      db += Σ_n dy
 *
 * ⟨·⟩ is the mean over channels. The variance is taken in a second pass: with E[x²] − μ² a row of mean 3000 and
 * deviation 1 loses all its digits in float32. That pass also finds what rounding has left of Σ (x − μ), and corrects
 * μ by it.
 *
 * A warp works on a row. It goes over the row several times, but only the first time reaches beyond the L1 cache.
 * With the residual connection before it fused in, x = x1 + x2 is formed in each pass: cheaper than to read back what
 * was written.
 */
#include "elements.cuh"
#include "layers.cuh"

namespace {

constexpr int WARPS = DIVIDES_WORK(4, 2);             // of a block
constexpr int MOST_BLOCKS = DIVIDES_WORK(1024, 33);   // of the backward pass; each leaves a partial sum of dw and db

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

    float sum = 0;
    for (int64_t c = lane * W; c < C; c += 32 * W) {
        float x[W];
        read(x, c);
        for (int i = 0; i < W; i++) sum += x[i];
        if (x2) store<W>(f.x + n * C + c, x);
    }
    const float about = warp_sum(sum) / static_cast<float>(C);

    float rest = 0, squares = 0;
    for (int64_t c = lane * W; c < C; c += 32 * W) {
        float x[W];
        read(x, c);
        for (int i = 0; i < W; i++) {
            rest += x[i] - about;
            squares += (x[i] - about) * (x[i] - about);
        }
    }
    const float correction = warp_sum(rest) / static_cast<float>(C), mean = about + correction;
    const float variance = fmaxf(warp_sum(squares) / static_cast<float>(C) - correction * correction, 0.0f);
    const float rstd = 1.0f / sqrtf(variance + f.eps);

    for (int64_t c = lane * W; c < C; c += 32 * W) {
        float x[W], w[W], b[W], y[W];
        read(x, c);
        load<W>(w, f.w + c);
        load<W>(b, f.b + c);
        for (int i = 0; i < W; i++) y[i] = (x[i] - mean) * rstd * w[i] + b[i];
        store<W>(f.y + n * C + c, y);
    }
    if (lane == 0) {
        f.mean[n] = mean;
        f.rstd[n] = rstd;
    }
}

template <class T> struct Backward {
    T *dx;
    float *partial;   // (blocks,2,C): of dw and db
    const T *dresidual, *dy, *x, *w;
    const float *mean, *rstd;
    int64_t N, C;
};

/* Each lane adds its columns of dw and db up in shared memory, (warps,2,C'), where C' is C in whole strides of a
 * warp: the i-th element of a lane's vectors lies 32 floats from the next, so that the lanes reach 32 banks. */
template <class T, int W> __global__ void __launch_bounds__(32 * WARPS) layernorm_rows_backward(Backward<T> g) {
    DYNAMIC_SHARED(float, sums);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int64_t C = g.C, padded = ceil_div<int64_t>(C, 32 * W) * 32 * W;
    float *const dw = sums + warp * 2 * padded, *const db = dw + padded;
    for (int64_t c = lane; c < padded; c += 32) dw[c] = db[c] = 0;

    for (int64_t n = static_cast<int64_t>(blockIdx.x) * warps + warp; n < g.N;
         n += static_cast<int64_t>(gridDim.x) * warps) {
        const float mean = g.mean[n], rstd = g.rstd[n];
        float u_sum = 0, ux_sum = 0;
        for (int64_t c = lane * W; c < C; c += 32 * W) {
            float dy[W], x[W], w[W];
            load<W>(dy, g.dy + n * C + c);
            load<W>(x, g.x + n * C + c);
            load<W>(w, g.w + c);
            for (int i = 0; i < W; i++) {
                const float x_hat = (x[i] - mean) * rstd, u = w[i] * dy[i];
                u_sum += u;
                ux_sum += u * x_hat;
                dw[c - lane * W + 32 * i + lane] += dy[i] * x_hat;
                db[c - lane * W + 32 * i + lane] += dy[i];
            }
        }
        const float u_mean = warp_sum(u_sum) / static_cast<float>(C),
                    ux_mean = warp_sum(ux_sum) / static_cast<float>(C);
        for (int64_t c = lane * W; c < C; c += 32 * W) {
            float dy[W], x[W], w[W], dx[W] = {};
            load<W>(dy, g.dy + n * C + c);
            load<W>(x, g.x + n * C + c);
            load<W>(w, g.w + c);
            if (g.dresidual) load<W>(dx, g.dresidual + n * C + c);
            for (int i = 0; i < W; i++) {
                const float x_hat = (x[i] - mean) * rstd, u = w[i] * dy[i];
                dx[i] += rstd * (u - u_mean - x_hat * ux_mean);
            }
            store<W>(g.dx + n * C + c, dx);
        }
    }

    __syncthreads();
    for (int64_t at = threadIdx.x; at < 2 * padded; at += blockDim.x) {
        float sum = 0;
        for (int i = 0; i < warps; i++) sum += sums[i * 2 * padded + at];
        const int64_t position = at % padded, stride = position / (32 * W), rest = position % (32 * W);
        const int64_t c = stride * 32 * W + rest % 32 * W + rest / 32;
        if (c < C) g.partial[(static_cast<int64_t>(blockIdx.x) * 2 + at / padded) * C + c] = sum;
    }
}

/* dw and db += the sums of the partial sums over the blocks. 32 columns a block; each of its warps sums a share. */
__global__ void __launch_bounds__(1024)
    layernorm_add_partial(float *dw, float *db, const float *partial, int blocks, int64_t C) {
    SHARED(float, shares, [32][33]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + lane;
    float sum = 0;
    if (column < 2 * C)
        for (int block = warp; block < blocks; block += 32) sum += partial[block * 2 * C + column];
    shares[warp][lane] = sum;
    __syncthreads();
    sum = warp_sum(shares[lane][warp]);   // of column blockIdx.x * 32 + warp
    const int64_t of = static_cast<int64_t>(blockIdx.x) * 32 + warp;
    if (lane == 0 && of < 2 * C) (of < C ? dw[of] : db[of - C]) += sum;
}

unsigned backward_blocks(int64_t N, int warps) {
    return static_cast<unsigned>(min(ceil_div<int64_t>(N, warps), static_cast<int64_t>(MOST_BLOCKS)));
}

}   // namespace

size_t layernorm_scratch(int64_t N, int64_t C) {
    return static_cast<size_t>(min(N, static_cast<int64_t>(MOST_BLOCKS)) * 2 * C) * sizeof(float);
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

void layernorm_backward(Queue &queue, void *dx, float *dw, float *db, const void *dresidual, const void *dy,
                        const void *x, const void *w, const float *mean, const float *rstd, int64_t N, int64_t C) {
    float *const partial = as<float>(scratch(queue, layernorm_scratch(N, C)));
    for_rows(queue.type, C, [&](auto element, auto width) {
        using T = decltype(element);
        constexpr int W = decltype(width)::value;
        const int64_t row_bytes = 2 * ceil_div<int64_t>(C, 32 * W) * 32 * W * static_cast<int64_t>(sizeof(float));
        const int warps = static_cast<int>(max(int64_t{1}, min(int64_t{WARPS}, (int64_t{48} << 10) / row_bytes)));
        const size_t shared_bytes = static_cast<size_t>(warps * row_bytes);
        if (shared_bytes > size_t{48} << 10)
            note(queue,
                 cudaFuncSetAttribute(layernorm_rows_backward<T, W>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared_bytes)),
                 "shared memory of LayerNorm's backward pass");
        const unsigned blocks = backward_blocks(N, warps);
        const Backward<T> g{as<T>(dx), partial, as<T>(dresidual), as<T>(dy), as<T>(x), as<T>(w), mean, rstd, N, C};
        ENQUEUE(queue, (layernorm_rows_backward<T, W>), blocks, 32 * warps, shared_bytes, g);
        ENQUEUE(queue, layernorm_add_partial, blocks_for(2 * C, 32), 1024, 0, dw, db, partial, static_cast<int>(blocks),
                C);
    });
}
