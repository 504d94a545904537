/* GELU in its exact form (Hendrycks & Gimpel 2016): x times the probability of a normal number below x.
 *
 *   forward    y = x Φ(x)      Φ(x) = ½ erfc(−x/√2)
 *   backward   dx = dy (Φ(x) + x φ(x))      φ(x) = exp(−½ x²)/√(2π)
 */
#include <math.h>

#include "../internal.h"

static const float SQRT_HALF = 0.7071067811865476f;
static const float ONE_OVER_SQRT_2_PI = 0.3989422804014327f;

void exact_gelu_forward(float *y, const float *x, int64_t n) {
    #pragma omp parallel for
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * 0.5f * erfcf(-SQRT_HALF * x[i]);
}

void exact_gelu_backward(float *dx, const float *dy, const float *x, int64_t n) {
    #pragma omp parallel for
    for (int64_t i = 0; i < n; i++) {
        float density = ONE_OVER_SQRT_2_PI * expf(-0.5f * x[i] * x[i]);
        dx[i] = dy[i] * (0.5f * erfcf(-SQRT_HALF * x[i]) + x[i] * density);
    }
}
