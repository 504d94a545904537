#include "microkernel.h"

#include "../internal.h"

const float NO_START[NR] = {0.0f};
const Ahead NOTHING_AHEAD = {
    .panel = NO_START,
    .row = NO_START,
    .lines = INT64_MAX,
    .interval = INT64_MAX / 2,
};

enum { VECTORS = NR / LANES };

typedef Floats Step(Floats sum, float a, Floats b);

/* rows and step are constants wherever this is inlined, so that `sum` is kept in registers. */
INLINE void multiply_step(Step *step, int rows, Floats sum[MR][VECTORS], const float *a, const float *b) {
    Floats column[VECTORS];
    UNROLL
    for (int j = 0; j < VECTORS; j++) column[j] = load(b + j * LANES);
    UNROLL
    for (int i = 0; i < rows; i++) {
        UNROLL
        for (int j = 0; j < VECTORS; j++) sum[i][j] = step(sum[i][j], a[i], column[j]);
    }
}

INLINE void compute_rows(Step *step, int rows, float *c, int64_t c_stride, const float *from, int64_t from_stride,
                         const float *a, const float *b, int64_t depth, const Ahead *ahead) {
    Floats sum[MR][VECTORS];
    UNROLL
    for (int i = 0; i < rows; i++) {
        __builtin_prefetch(c + i * c_stride, 1);
        __builtin_prefetch(c + i * c_stride + NR - 1, 1);
        UNROLL
        for (int j = 0; j < VECTORS; j++) sum[i][j] = (Floats){0};
    }
    const float *panel = ahead->panel;
    const float *row = ahead->row;
    int64_t line = ahead->line;
    for (int64_t k = 0; k < depth;) {
        int64_t end = depth;
        if (FETCH_AHEAD) {
            __builtin_prefetch(row + line * LINE, 0, 2);
            if (++line == ahead->lines) line = 0, row += ahead->stride;
            end = min64(k + ahead->interval, depth);
        }
        for (; k + STEPS <= end; k += STEPS, a += STEPS * MR, b += STEPS * NR) {
            if (FETCH_AHEAD) {
                __builtin_prefetch(panel, 0, 2);
                panel += STEPS * ahead->panel_step;
            }
            UNROLL
            for (int s = 0; s < STEPS; s++) multiply_step(step, rows, sum, a + s * MR, b + s * NR);
        }
        for (; k < end; k++, a += MR, b += NR) multiply_step(step, rows, sum, a, b);
    }
    UNROLL
    for (int i = 0; i < rows; i++) {
        UNROLL
        for (int j = 0; j < VECTORS; j++) {
            store(c + i * c_stride + j * LANES, load(from + i * from_stride + j * LANES) + sum[i][j]);
        }
    }
}

/* One copy of the loop for each number of rows: the last panel of a matrix costs what its rows cost. */
#define CASE(n)                                                                                                        \
    case n: compute_rows(STEP, n, c, c_stride, from, from_stride, a, b, depth, ahead); break;

#if defined(SIMD_AVX512)
    #define CASES                                                                                                      \
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#elif defined(__ARM_NEON)
    #define CASES CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#elif defined(SIMD_AVX2)
    #define CASES CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#else
    #define CASES CASE(1) CASE(2) CASE(3) CASE(4)
#endif

void microkernel_f32(float *c, int64_t c_stride, const float *from, int64_t from_stride, const float *a, const float *b,
                     int64_t depth, int64_t rows, const Ahead *ahead) {
    #define STEP step_f32
    switch (rows) { CASES }
    #undef STEP
}

void microkernel_bf16(float *c, int64_t c_stride, const float *from, int64_t from_stride, const float *a,
                      const float *b, int64_t depth, int64_t rows, const Ahead *ahead) {
#if defined(HAVE_BF16_PAIRS)
    #define STEP step_bf16
    switch (rows) { CASES }
    #undef STEP
#else
    microkernel_f32(c, c_stride, from, from_stride, a, b, depth, rows, ahead);
#endif
}
