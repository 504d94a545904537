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

enum { SMALL = 1 << 14, CHANNELS = 64, STRETCH = 32 };   // CHANNELS of dw and db are summed by one thread at a time

/* Row n. `whole`, a constant: C is a multiple of LANES. */
INLINE void row_forward(int whole, float *y, float *mean, float *rstd, const float *x, const float *w, const float *b,
                        int64_t n, int64_t C, float eps) {
    const float *xn = x + n * C;
    float *yn = y + n * C;
    Floats sum = {0};
    for (int64_t c = 0; c < C; c += LANES) sum += load_first(xn + c, whole ? LANES : C - c);
    float m = sum_lanes(sum) / (float)C;

    Floats rest = {0}, squares = {0};
    for (int64_t c = 0; c < C; c += LANES) {
        int64_t left = whole ? LANES : C - c;
        Floats d = load_first(xn + c, left) - m;
        if (left < LANES) d = keep_first(d, left);
        rest += d;
        squares += d * d;
    }
    double correction = (double)sum_lanes(rest) / (double)C;
    double variance = (double)sum_lanes(squares) / (double)C - correction * correction;
    mean[n] = (float)(m + correction);
    rstd[n] = (float)(1.0 / sqrt(variance + eps));

    for (int64_t c = 0; c < C; c += LANES) {
        int64_t left = whole ? LANES : C - c;
        Floats x_hat = (load_first(xn + c, left) - mean[n]) * rstd[n];
        store_first(yn + c, x_hat * load_first(w + c, left) + load_first(b + c, left), left);
    }
}

void fast_layernorm_forward(float *y, float *mean, float *rstd, const float *x, const float *w, const float *b,
                            int64_t N, int64_t C, float eps) {
    #pragma omp parallel for if (N * C > SMALL)
    for (int64_t n = 0; n < N; n++) {
        if (C % LANES == 0)
            row_forward(1, y, mean, rstd, x, w, b, n, C, eps);
        else
            row_forward(0, y, mean, rstd, x, w, b, n, C, eps);
    }
}

INLINE void row_backward(int whole, float *dx, const float *dy, const float *x, const float *w, const float *mean,
                         const float *rstd, int64_t n, int64_t C) {
    const float *xn = x + n * C, *dyn = dy + n * C;
    Floats u_sum = {0}, ux_sum = {0};
    for (int64_t c = 0; c < C; c += LANES) {
        int64_t left = whole ? LANES : C - c;
        Floats x_hat = (load_first(xn + c, left) - mean[n]) * rstd[n];
        Floats u = load_first(w + c, left) * load_first(dyn + c, left);   // 0 beyond the last channel
        u_sum += u;
        ux_sum += u * x_hat;
    }
    float u_mean = sum_lanes(u_sum) / (float)C, ux_mean = sum_lanes(ux_sum) / (float)C;
    for (int64_t c = 0; c < C; c += LANES) {
        int64_t left = whole ? LANES : C - c;
        float *dxn = dx + n * C + c;
        Floats x_hat = (load_first(xn + c, left) - mean[n]) * rstd[n];
        Floats u = load_first(w + c, left) * load_first(dyn + c, left);
        store_first(dxn, load_first(dxn, left) + rstd[n] * (u - u_mean - x_hat * ux_mean), left);
    }
}

static void input_backward(float *dx, const float *dy, const float *x, const float *w, const float *mean,
                           const float *rstd, int64_t N, int64_t C) {
    #pragma omp for nowait
    for (int64_t n = 0; n < N; n++) {
        if (C % LANES == 0)
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
        Floats dw_sum[VECTORS] = {{0.0f}}, db_sum[VECTORS] = {{0.0f}};
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
        db[first + c] += (float)db_total[c];
    }
}

static void weight_backward(float *dw, float *db, const float *dy, const float *x, const float *mean, const float *rstd,
                            int64_t N, int64_t C) {
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
        input_backward(dx, dy, x, w, mean, rstd, N, C);
        weight_backward(dw, db, dy, x, mean, rstd, N, C);
    }
}
