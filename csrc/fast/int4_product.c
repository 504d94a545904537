/* Products with weights of four bits and inputs of eight: sums of integers within a group, of floats over the groups.
 *
 *   y_n = b_n + Σ_groups s_n sx (Σ_k (8 + q_kn) qx_k − 8 Σ_k qx_k)
 *
 * As floats, weights of four bits would come from memory faster than they could be converted.
 */
#include "int4_product.h"

#include <math.h>

#include "../internal.h"
#include "microkernel.h"
#include "vector_math.h"

/* ROWS at once share the unpacking of the weights: as many as there are registers for. */
#if defined(SIMD_AVX512)
enum { ROWS = 12 };
#else
enum { ROWS = 4 };
#endif

enum { SOME = 4, VECTORS = NR / LANES, AHEAD = 2048 };

/* quantise_inputs() in vectors. */
static void quantise_row(QuantisedInputs *to, const float *x, int64_t K) {
    for (; K > 0; x += GROUP, K -= GROUP, to++) {
        Floats largest = {0};
        Ints nan = {0};
        for (int k = 0; k < GROUP; k += LANES) {
            Floats xk = load_first(x + k, K - k);
            largest = larger((Floats)((Words)xk & 0x7FFFFFFF), largest);
            nan |= xk != xk;
        }
        to->scale = (any(nan) ? NAN : max_lanes(largest)) / 127.0f;
        Ints sum = {0};
        for (int k = 0; k < GROUP; k += LANES) {
            Floats q = load_first(x + k, K - k) / to->scale;
            q = to->scale > 0.0f ? q : (Floats){0};   // 0 / 0
            Ints whole = (Ints)(q + WHOLE) - (Ints)broadcast(WHOLE);
            sum += whole;
            for (int i = 0; i < LANES; i++) to->q[k + i] = (int8_t)whole[i];
        }
        to->sum = 0;
        for (int i = 0; i < LANES; i++) to->sum += sum[i];
    }
}

/* One vector of outputs, so many rows, of which the groups follow each other at x. */
INLINE void multiply_int4(int rows, float *y, const QuantisedInputs *x, const PackedMatrix *w, const float *b,
                          int64_t n, int j) {
    int64_t groups = divide_up(w->K, GROUP), bytes = packed_group_bytes(PYGPT_INT4, NR);
    const unsigned char *group = packed_panel(w, n / NR);
    Floats sum[ROWS];
    UNROLL
    for (int i = 0; i < rows; i++) sum[i] = (Floats){0};
    for (int64_t g = 0; g < groups; g++, group += bytes) {
        Floats scale = load_bf16(group + 2 * j * LANES);
        Words q[8];
        UNROLL
        for (int i = 0; i < 4; i++) {
            Words both;
            const unsigned char *from = group + 2 * NR + 4 * (i * NR + j * LANES);
            __builtin_prefetch(from + AHEAD);
            memcpy(&both, from, sizeof both);
            q[2 * i] = both & 0x0F0F0F0Fu;
            q[2 * i + 1] = both >> 4 & 0x0F0F0F0Fu;
        }
        UNROLL
        for (int i = 0; i < rows; i++) {
            const QuantisedInputs *in = x + i * groups + g;
            Ints dot = dot_bytes(q, in->q) - 8 * in->sum;
            sum[i] += __builtin_convertvector(dot, Floats) * (scale * in->scale);
        }
    }
    int64_t at = n + j * LANES, left = w->N - at;
    Floats start = b ? load_first(b + at, left) : (Floats){0};
    UNROLL
    for (int i = 0; i < rows; i++) store_first(y + i * w->N + at, start + sum[i], left);
}

static void multiply_int4_panel(float *y, const QuantisedInputs *x, const PackedMatrix *w, const float *b, int64_t rows,
                                int64_t n) {
    int64_t groups = divide_up(w->K, GROUP);
    for (int64_t here; rows > 0; rows -= here, y += here * w->N, x += here * groups) {
        here = rows >= ROWS ? ROWS : min64(rows, SOME);
        for (int j = 0; j < VECTORS; j++) {
            switch (here) {
            case 1: multiply_int4(1, y, x, w, b, n, j); break;
            case 2: multiply_int4(2, y, x, w, b, n, j); break;
            case 3: multiply_int4(3, y, x, w, b, n, j); break;
#if defined(SIMD_AVX512)
            case SOME: multiply_int4(SOME, y, x, w, b, n, j); break;
#endif
            default: multiply_int4(ROWS, y, x, w, b, n, j);
            }
        }
    }
}

void int4_product(const Team *team, float *y, const float *x, const PackedMatrix *w, const float *b, int64_t rows,
                  float *inputs, int shared) {
    int64_t groups = divide_up(w->K, GROUP);
    QuantisedInputs *quantised = (QuantisedInputs *)inputs;
    Range mine = shared ? range_of(team, rows) : (Range){0, rows};
    for (int64_t r = mine.first; r < mine.end; r++) quantise_row(quantised + r * groups, x + r * w->K, w->K);
    if (shared) meet(team);
    Range columns = columns_of(team, w);
    for (int64_t n = columns.first; n < columns.end; n += NR) multiply_int4_panel(y, quantised, w, b, rows, n);
}
