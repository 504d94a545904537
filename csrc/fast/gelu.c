/* GELU in its tanh form, csrc/layers/gelu.c in vectors.
 *
 *   forward    y = x s      s = ½ (1 + tanh u) = 1 / (1 + exp(−2u))      u = √(2/π) (x + 0.044715 x³)
 *   backward   dx = dy (s + 2 x s (1 − s) u′)      u′ = √(2/π) (1 + 3 · 0.044715 x²)
 *
 * The logistic function s needs one exp, and keeps its digits where 1 + tanh u would lose them, for negative u.
 */
#include "nonlinearity.h"
#include "vector_math.h"

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

FAST_NONLINEARITY(gelu, gelu, gelu_gradient)
