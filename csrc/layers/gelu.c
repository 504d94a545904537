/* GELU in its tanh form, as GPT-2 has it (Hendrycks & Gimpel 2016).
 *
 *   forward    y = ½ x (1 + t)      t = tanh(u)      u = √(2/π) (x + 0.044715 x³)
 *   backward   dx = dy (½ (1 + t) + ½ x (1 − t²) u′)      u′ = √(2/π) (1 + 3 · 0.044715 x²)
 */
#include <math.h>

#include "../internal.h"

static const float SQRT_2_OVER_PI = 0.7978845608028654f;
static const float CUBIC = 0.044715f;

void gelu_forward(float *y, const float *x, int64_t n) {
    #pragma omp parallel for
    for (int64_t i = 0; i < n; i++) {
        float t = tanhf(SQRT_2_OVER_PI * (x[i] + CUBIC * x[i] * x[i] * x[i]));
        y[i] = 0.5f * x[i] * (1.0f + t);
    }
}

void gelu_backward(float *dx, const float *dy, const float *x, int64_t n) {
    #pragma omp parallel for
    for (int64_t i = 0; i < n; i++) {
        float t = tanhf(SQRT_2_OVER_PI * (x[i] + CUBIC * x[i] * x[i] * x[i]));
        float slope = SQRT_2_OVER_PI * (1.0f + 3.0f * CUBIC * x[i] * x[i]);
        dx[i] = dy[i] * (0.5f * (1.0f + t) + 0.5f * x[i] * (1.0f - t * t) * slope);
    }
}
