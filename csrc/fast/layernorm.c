/* LayerNorm, csrc/layers/layernorm.c in vectors.
 *
 *   forward    x̂ = (x − μ) r      r = 1/√(σ² + ε)      y = x̂ ⊙ w + b
 *   backward   u = w ⊙ dy         dx += r (u − ⟨u⟩ − x̂ ⟨u ⊙ x̂⟩)      dw += Σ_n dy ⊙ x̂      db += Σ_n dy
 *
 * Sums are in float32 here, so the mean is found in two steps: μ = m + ⟨x − m⟩, m being a rounded mean. The differences
 * x − m are small and exact, whence both μ and σ² = ⟨(x − m)²⟩ − (μ − m)² keep their digits where the mean is large.
 */
#include <math.h>

#include "../internal.h"
#include "fast.h"
#include "simd.h"

enum {
    SUMS = 4,   // side by side: in one alone, each addition waits for the one before
    AT_ONCE = SUMS * LANES,
    CHANNELS = DIVIDES_WORK(64, LANES),   // of dw and db, summed by one thread at a time
    STRETCH = DIVIDES_WORK(32, 3),        // of rows
    SMALL = DIVIDES_WORK(1 << 14, 0),
};

INLINE float sum_all(const Floats sum[SUMS]) {
    return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* Row n. `whole`, a constant: C is a multiple of AT_ONCE. */
INLINE void row_forward(int whole, float *y, float *mean, float *rstd, const float *x, const float *w, const float *b,
                        int64_t n, int64_t C, float eps) {
    const float *xn = x + n * C;
    float *yn = y + n * C;
    Floats sum[SUMS] = {{0}};
    for (int64_t c = 0; c < C; c += AT_ONCE) {
        UNROLL
        for (int j = 0; j < SUMS; j++) {
            int64_t at = c + j * LANES;
            sum[j] += load_first(xn + at, whole ? LANES : C - at);
        }
    }
    float m = sum_all(sum) / (float)C;

    Floats rest[SUMS] = {{0}}, squares[SUMS] = {{0}};
    for (int64_t c = 0; c < C; c += AT_ONCE) {
        UNROLL
        for (int j = 0; j < SUMS; j++) {
            int64_t at = c + j * LANES, left = whole ? LANES : C - at;
            Floats d = load_first(xn + at, left) - m;
            if (left < LANES) d = keep_first(d, left);
            rest[j] += d;
            squares[j] += d * d;
        }
    }
    double correction = (double)sum_all(rest) / (double)C;
    double variance = (double)sum_all(squares) / (double)C - correction * correction;
    float mean_n = (float)(m + correction), rstd_n = (float)(1.0 / sqrt(variance + eps));
    mean[n] = mean_n;
    rstd[n] = rstd_n;

    for (int64_t c = 0; c < C; c += LANES) {
        int64_t left = whole ? LANES : C - c;
        Floats x_hat = (load_first(xn + c, left) - mean_n) * rstd_n;
        Floats b_c = b ? load_first(b + c, left) : broadcast(0.0f);
        store_first(yn + c, x_hat * load_first(w + c, left) + b_c, left);
    }
}

void fast_layernorm_forward(float *y, float *mean, float *rstd, const float *x, const float *w, const float *b,
                            int64_t N, int64_t C, float eps) {
    #pragma omp parallel for if (N * C > SMALL)
    for (int64_t n = 0; n < N; n++) {
        if (C % AT_ONCE == 0)
            row_forward(1, y, mean, rstd, x, w, b, n, C, eps);
        else
            row_forward(0, y, mean, rstd, x, w, b, n, C, eps);
    }
}

INLINE void row_backward(int whole, float *dx, const float *dy, const float *x, const float *w, const float *mean,
                         const float *rstd, int64_t n, int64_t C) {
    const float *xn = x + n * C, *dyn = dy + n * C;
    float *dxn = dx + n * C, mean_n = mean[n], rstd_n = rstd[n];
    Floats u_sum[SUMS] = {{0}}, ux_sum[SUMS] = {{0}};
    for (int64_t c = 0; c < C; c += AT_ONCE) {
        UNROLL
        for (int j = 0; j < SUMS; j++) {
            int64_t at = c + j * LANES, left = whole ? LANES : C - at;
            Floats x_hat = (load_first(xn + at, left) - mean_n) * rstd_n;
            Floats u = load_first(w + at, left) * load_first(dyn + at, left);   // 0 beyond the last channel
            u_sum[j] += u;
            ux_sum[j] += u * x_hat;
        }
    }
    float u_mean = sum_all(u_sum) / (float)C, ux_mean = sum_all(ux_sum) / (float)C;
    for (int64_t c = 0; c < C; c += LANES) {
        int64_t left = whole ? LANES : C - c;
        Floats x_hat = (load_first(xn + c, left) - mean_n) * rstd_n;
        Floats u = load_first(w + c, left) * load_first(dyn + c, left);
        store_first(dxn + c, load_first(dxn + c, left) + rstd_n * (u - u_mean - x_hat * ux_mean), left);
    }
}

static void fast_input_backward(float *dx, const float *dy, const float *x, const float *w, const float *mean,
                                const float *rstd, int64_t N, int64_t C) {
    #pragma omp for nowait
    for (int64_t n = 0; n < N; n++) {
        if (C % AT_ONCE == 0)
            row_backward(1, dx, dy, x, w, mean, rstd, n, C);
        else
            row_backward(0, dx, dy, x, w, mean, rstd, n, C);
    }
}

/* CHANNELS channels from the first one on, or so many as there are: sums over stretches of rows in float32, those in
 * double. */
INLINE void channels_backward(int whole, float *dw, float *db, const float *dy, const float *x, const float *mean,
                              const float *rstd, int64_t first, int64_t N, int64_t C) {
    enum { VECTORS = CHANNELS / LANES };
    int64_t channels = whole ? CHANNELS : C - first;
    double dw_total[CHANNELS] = {0.0}, db_total[CHANNELS] = {0.0};
    for (int64_t n0 = 0; n0 < N; n0 += STRETCH) {
        Floats dw_sum[VECTORS] = {{0}}, db_sum[VECTORS] = {{0}};
        for (int64_t n = n0; n < min64(n0 + STRETCH, N); n++) {
            UNROLL
            for (int j = 0; j < VECTORS; j++) {
                int64_t at = n * C + first + j * LANES, left = channels - j * LANES;
                Floats dyn = load_first(dy + at, left);
                dw_sum[j] += dyn * ((load_first(x + at, left) - mean[n]) * rstd[n]);
                db_sum[j] += dyn;
            }
        }
        for (int c = 0; c < CHANNELS; c++) {
            dw_total[c] += dw_sum[c / LANES][c % LANES];
            db_total[c] += db_sum[c / LANES][c % LANES];
        }
    }
    for (int64_t c = 0; c < channels; c++) {
        dw[first + c] += (float)dw_total[c];
        if (db) db[first + c] += (float)db_total[c];
    }
}

static void fast_weight_backward(float *dw, float *db, const float *dy, const float *x, const float *mean,
                                 const float *rstd, int64_t N, int64_t C) {
    #pragma omp for
    for (int64_t first = 0; first < C; first += CHANNELS) {
        if (C - first >= CHANNELS)
            channels_backward(1, dw, db, dy, x, mean, rstd, first, N, C);
        else
            channels_backward(0, dw, db, dy, x, mean, rstd, first, N, C);
    }
}

void fast_layernorm_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w,
                             const float *mean, const float *rstd, int64_t N, int64_t C) {
    #pragma omp parallel if (N * C > SMALL)
    {
        fast_input_backward(dx, dy, x, w, mean, rstd, N, C);
        fast_weight_backward(dw, db, dy, x, mean, rstd, N, C);
    }
}
