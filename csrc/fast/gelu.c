/* GELU in its tanh form, csrc/layers/gelu.c in vectors.
 *
 *   forward    y = x s      s = ½ (1 + tanh u) = 1 / (1 + exp(−2u))      u = √(2/π) (x + 0.044715 x³)
 *   backward   dx = dy (s + 2 x s (1 − s) u′)      u′ = √(2/π) (1 + 3 · 0.044715 x²)
 *
 * The logistic function s needs one exp, and keeps its digits where 1 + tanh u would lose them, for negative u.
 */
#include "../internal.h"
#include "fast.h"
#include "vector_math.h"

enum { SMALL = DIVIDES_WORK(1 << 13, 0) };

#define SQRT_2_OVER_PI 0.7978845608028654f
#define CUBIC 0.044715f

INLINE Floats gelu_logistic(Floats x) {
    return 1.0f / (1.0f + vector_exp(-2.0f * SQRT_2_OVER_PI * (x + CUBIC * x * x * x)));
}

INLINE Floats gelu(Floats x) {
    return x * gelu_logistic(x);
}

INLINE Floats gelu_gradient(Floats dy, Floats x) {
    Floats s = gelu_logistic(x), slope = SQRT_2_OVER_PI * (1.0f + 3.0f * CUBIC * x * x);
    return dy * (s + 2.0f * x * s * (1.0f - s) * slope);
}

void fast_gelu_forward(float *y, const float *x, int64_t n) {
    int64_t whole = n / LANES * LANES, rest = n - whole;
    #pragma omp parallel for if (n > SMALL)
    for (int64_t i = 0; i < whole; i += LANES) store(y + i, gelu(load(x + i)));
    store_first(y + whole, gelu(load_first(x + whole, rest)), rest);
}

void fast_gelu_backward(float *dx, const float *dy, const float *x, int64_t n) {
    int64_t whole = n / LANES * LANES, rest = n - whole;
    #pragma omp parallel for if (n > SMALL)
    for (int64_t i = 0; i < whole; i += LANES) store(dx + i, gelu_gradient(load(dy + i), load(x + i)));
    store_first(dx + whole, gelu_gradient(load_first(dy + whole, rest), load_first(x + whole, rest)), rest);
}
