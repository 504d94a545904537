/* A nonlinearity over n numbers, in vectors: y = f(x), and dx = df(dy, x). */
#ifndef PYGPT_NONLINEARITY_H
#define PYGPT_NONLINEARITY_H

#include "../internal.h"
#include "fast.h"
#include "simd.h"

enum { NONLINEARITY_SMALL = DIVIDES_WORK(1 << 13, 0) };

/* A macro, because a parallel region would call a function that it is given, instead of being compiled with it. */
#define FAST_NONLINEARITY(name, f, df)                                                                                 \
    void fast_##name##_forward(float *y, const float *x, int64_t n) {                                                  \
        int64_t whole = n / LANES * LANES, rest = n - whole;                                                           \
        _Pragma("omp parallel for if (n > NONLINEARITY_SMALL)") for (int64_t i = 0; i < whole; i += LANES)             \
            store(y + i, f(load(x + i)));                                                                              \
        store_first(y + whole, f(load_first(x + whole, rest)), rest);                                                  \
    }                                                                                                                  \
    void fast_##name##_backward(float *dx, const float *dy, const float *x, int64_t n) {                               \
        int64_t whole = n / LANES * LANES, rest = n - whole;                                                           \
        _Pragma("omp parallel for if (n > NONLINEARITY_SMALL)") for (int64_t i = 0; i < whole; i += LANES)             \
            store(dx + i, df(load(dy + i), load(x + i)));                                                              \
        store_first(dx + whole, df(load_first(dy + whole, rest), load_first(x + whole, rest)), rest);                  \
    }

#endif
