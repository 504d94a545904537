/* LayerNorm over the channels of each row.
 *
 *   forward    x̂ = (x − μ) r      r = 1/√(σ² + ε)      y = x̂ ⊙ w + b
 *   backward   u = w ⊙ dy         dx += r (u − ⟨u⟩ − x̂ ⟨u ⊙ x̂⟩)      dw += Σ_n dy ⊙ x̂      db += Σ_n dy
 *
 * ⟨·⟩ is the mean over channels. The variance is taken in a second pass: with E[x²] − μ² a row of mean 3000 and deviation 1
 * loses all its digits in float32. Sums are in double, which costs nothing beside the memory traffic. dx is added to,
 * because x also goes past the branch, and the residual connection has written the gradient that comes that way.
 */
#include <math.h>

#include "../internal.h"

enum { CHANNELS = DIVIDES_WORK(64, 3) };   // of dw and db, summed by one thread at a time

void layernorm_forward(float *y, float *mean, float *rstd,                // (N,C) (N) (N)
                       const float *x, const float *w, const float *b,    // (N,C) (C) (C) or NULL
                       int64_t N, int64_t C, float eps) {
    #pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        const float *xn = x + n * C;
        double sum = 0.0, squares = 0.0;
        #pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < C; c++) sum += xn[c];
        double mu = sum / (double)C;
        #pragma omp simd reduction(+ : squares)
        for (int64_t c = 0; c < C; c++) squares += (xn[c] - mu) * (xn[c] - mu);
        mean[n] = (float)mu;
        rstd[n] = (float)(1.0 / sqrt(squares / (double)C + eps));
        if (b) {
            #pragma omp simd
            for (int64_t c = 0; c < C; c++) y[n * C + c] = (xn[c] - mean[n]) * rstd[n] * w[c] + b[c];
        } else {
            #pragma omp simd
            for (int64_t c = 0; c < C; c++) y[n * C + c] = (xn[c] - mean[n]) * rstd[n] * w[c];
        }
    }
}

static void input_backward(float *dx, const float *dy, const float *x, const float *w, const float *mean,
                           const float *rstd, int64_t N, int64_t C) {
    #pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        const float *xn = x + n * C, *dyn = dy + n * C;
        double u_sum = 0.0, ux_sum = 0.0;
        #pragma omp simd reduction(+ : u_sum, ux_sum)
        for (int64_t c = 0; c < C; c++) {
            float x_hat = (xn[c] - mean[n]) * rstd[n], u = w[c] * dyn[c];
            u_sum += u;
            ux_sum += u * x_hat;
        }
        float u_mean = (float)(u_sum / (double)C), ux_mean = (float)(ux_sum / (double)C);
        #pragma omp simd
        for (int64_t c = 0; c < C; c++) {
            float x_hat = (xn[c] - mean[n]) * rstd[n], u = w[c] * dyn[c];
            dx[n * C + c] += rstd[n] * (u - u_mean - x_hat * ux_mean);
        }
    }
}

static void weight_backward(float *dw, float *db, const float *dy, const float *x, const float *mean, const float *rstd,
                            int64_t N, int64_t C) {
    #pragma omp parallel for
    for (int64_t first = 0; first < C; first += CHANNELS) {
        int64_t channels = min64(CHANNELS, C - first);
        double dw_sum[CHANNELS] = {0.0}, db_sum[CHANNELS] = {0.0};
        for (int64_t n = 0; n < N; n++) {
            const float *xn = x + n * C + first, *dyn = dy + n * C + first;
            #pragma omp simd
            for (int64_t c = 0; c < channels; c++) {
                dw_sum[c] += dyn[c] * ((xn[c] - mean[n]) * rstd[n]);
                db_sum[c] += dyn[c];
            }
        }
        for (int64_t c = 0; c < channels; c++) {
            dw[first + c] += (float)dw_sum[c];
            if (db) db[first + c] += (float)db_sum[c];
        }
    }
}

void layernorm_backward(float *dx, float *dw, float *db,   // += (N,C), += (C), += (C) or NULL
                        const float *dy, const float *x, const float *w,   // (N,C) (N,C) (C)
                        const float *mean, const float *rstd, int64_t N, int64_t C) {   // (N) (N)
    input_backward(dx, dy, x, w, mean, rstd, N, C);
    weight_backward(dw, db, dy, x, mean, rstd, N, C);
}
