/* exp and 2^x of LANES floats at once. Their error is at most 1.03 ulp, over all floats, tiny results included.
 *
 *   exp(x) = 2^n exp(r)      n = round(x / ln 2)      r = x − n ln 2, |r| ≤ ½ ln 2
 *   2^x = 2^n exp(r)         n = round(x)             r = (x − n) ln 2
 *   exp(r) = 1 + r + r² q(r)      q: degree 4, fitted for the least relative error of the whole, 3e-9
 *
 * exp(−inf) = 0, exp(inf) = inf, NaN stays NaN; the same for 2^x.
 */
#ifndef PYGPT_VECTOR_MATH_H
#define PYGPT_VECTOR_MATH_H

#include "simd.h"

#define WHOLE 12582912.0f   // 1.5 · 2^23: n + WHOLE has no fraction, and n itself in its lowest bits

/* x 2^n for whole n in −152 ... 129. A NaN stays NaN, whatever its n. */
INLINE Floats scale_by_power(Floats x, Floats n_and_whole) {
#if defined(SIMD_AVX512)
    return (Floats)_mm512_scalef_ps((__m512)x, (__m512)(n_and_whole - WHOLE));
#else
    Ints power = (Ints)n_and_whole - (Ints)broadcast(WHOLE);
    Ints half = power >> 1;   // in two steps, because 2^n itself may be out of range
    return x * (Floats)((half + 127) << 23) * (Floats)((power - half + 127) << 23);
#endif
}

/* 2^n exp(r); q in powers of r²: a shorter chain than one coefficient after the other. */
INLINE Floats exp_of_rest(Floats n_and_whole, Floats r) {
    Floats r2 = r * r;
    Floats q = (0.0013814539f * r2 + (0.0083687454f * r + 0.041668389f)) * r2 + (0.16666521f * r + 0.49999994f);
    return scale_by_power(1.0f + (r + r2 * q), n_and_whole);
}

INLINE Floats vector_exp(Floats x) {
    const float LOG2_E = 1.44269504f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;   // LN2_HIGH n is exact
    x = smaller(broadcast(89.0f), x);     // inf from 88.73 on
    x = larger(broadcast(-105.0f), x);   // 0 below -103.97
    Floats n_and_whole = x * LOG2_E + WHOLE, n = n_and_whole - WHOLE;
    return exp_of_rest(n_and_whole, x - n * LN2_HIGH - n * LN2_LOW);
}

INLINE Floats vector_exp2(Floats x) {
    x = smaller(broadcast(129.0f), x);     // inf from 128 on
    x = larger(broadcast(-151.0f), x);   // 0 up to -150
    Floats n_and_whole = x + WHOLE;
    return exp_of_rest(n_and_whole, (x - (n_and_whole - WHOLE)) * 0.69314718f);
}

#endif
