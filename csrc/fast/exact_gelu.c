/* GELU in its exact form, csrc/layers/exact_gelu.c in vectors.
 *
 *   forward    y = x Φ(x)
 *   backward   dx = dy (Φ(x) + x φ(x))      φ(x) = e/√(2π)
 *
 *   Φ(−|x|) = e t q(t)      e = exp(−½ x²)      t = 1/(1 + 0.265 |x|)      Φ(|x|) = 1 − Φ(−|x|)
 *
 * q: degree 8, fitted for the least relative error, 1.3e-8, of Φ(−|x|)/e, which is smooth in t down to t = 0. So there is
 * one exp, and the small Φ of negative x keeps its digits.
 */
#include "nonlinearity.h"
#include "vector_math.h"

#define ONE_OVER_SQRT_2_PI 0.3989422804014327f

INLINE Floats half_gaussian(Floats x) {   // e
    return vector_exp(-0.5f * x * x);
}

INLINE Floats normal_distribution(Floats x, Floats e) {
    static const float Q[] = {0.105741087f,  0.105254867f, 0.102641622f,  0.0605494626f, 0.137385941f,
                              -0.115521163f, 0.217059669f, -0.143852805f, 0.0307413205f};
    Floats t = 1.0f / (1.0f + 0.265f * larger(x, -x)), q = broadcast(Q[8]);
    UNROLL
    for (int k = 7; k >= 0; k--) q = q * t + Q[k];
    Floats below = e * t * q;
    return choose(x < 0.0f, below, 1.0f - below);
}

INLINE Floats exact_gelu(Floats x) {
    return x * normal_distribution(x, half_gaussian(x));
}

INLINE Floats exact_gelu_gradient(Floats dy, Floats x) {
    Floats e = half_gaussian(x);
    return dy * (normal_distribution(x, e) + x * e * ONE_OVER_SQRT_2_PI);
}

FAST_NONLINEARITY(exact_gelu, exact_gelu, exact_gelu_gradient)
