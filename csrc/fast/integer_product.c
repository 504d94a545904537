/* Products with weights of eight or four bits and inputs of eight: sums of integers within a group, of floats over the groups.
 *
 *   y_n = b_n + Σ_groups s_n sx (Σ_k (o + q_kn) qx_k − o Σ_k qx_k)      o = 128 or 8
 *
 * As floats, such weights would come from memory faster than they could be converted.
 */
#include "integer_product.h"

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

INLINE Words read_bytes(const unsigned char *from) {
    Words bytes;
    __builtin_prefetch(from + AHEAD);
    memcpy(&bytes, from, sizeof bytes);
    return bytes;
}

/* The weights of a group of inputs, and one vector of outputs from `from` on: o + q of four inputs in each word. */
INLINE void read_weights(int type, Words q[8], const unsigned char *from) {
    if (type == PYGPT_INT8) {
        UNROLL
        for (int i = 0; i < 8; i++) q[i] = read_bytes(from + 4 * NR * i);
    } else {
        UNROLL
        for (int i = 0; i < 4; i++) {
            Words both = read_bytes(from + 4 * NR * i);
            q[2 * i] = both & 0x0F0F0F0Fu;
            q[2 * i + 1] = both >> 4 & 0x0F0F0F0Fu;
        }
    }
}

INLINE Ints dot_group(int type, const Words q[8], const QuantisedInputs *x) {
    return type == PYGPT_INT8 ? dot_bytes(q, x->q) - 128 * x->sum : dot_nibbles(q, x->q) - 8 * x->sum;
}

/* Some vectors of a panel's outputs from vector j0 on, and so many rows, of which the groups follow each other at x. */
INLINE void multiply(int type, int rows, int vectors, float *y, const QuantisedInputs *x, const PackedMatrix *w,
                     const float *b, int64_t n, int j0) {
    int64_t groups = divide_up(w->K, GROUP), bytes = packed_group_bytes(type, NR);
    const unsigned char *group = packed_panel(w, n / NR);
    Floats sum[ROWS][VECTORS];
    UNROLL
    for (int i = 0; i < rows; i++) {
        UNROLL
        for (int j = 0; j < vectors; j++) sum[i][j] = (Floats){0};
    }
    for (int64_t g = 0; g < groups; g++, group += bytes) {
        UNROLL
        for (int j = 0; j < vectors; j++) {
            Floats scale = load_bf16(group + 2 * (j0 + j) * LANES);
            Words q[8];
            read_weights(type, q, group + 2 * NR + 4 * (j0 + j) * LANES);
            UNROLL
            for (int i = 0; i < rows; i++) {
                const QuantisedInputs *in = x + i * groups + g;
                sum[i][j] += __builtin_convertvector(dot_group(type, q, in), Floats) * (scale * in->scale);
            }
        }
    }
    UNROLL
    for (int j = 0; j < vectors; j++) {
        int64_t at = n + (j0 + j) * LANES, left = w->N - at;
        Floats start = b ? load_first(b + at, left) : (Floats){0};
        UNROLL
        for (int i = 0; i < rows; i++) store_first(y + i * w->N + at, start + sum[i][j], left);
    }
}

INLINE void multiply_panel(int type, float *y, const QuantisedInputs *x, const PackedMatrix *w, const float *b,
                           int64_t rows, int64_t n) {
    int64_t groups = divide_up(w->K, GROUP);
    for (int64_t here; rows > 0; rows -= here, y += here * w->N, x += here * groups) {
        here = rows >= ROWS ? ROWS : min64(rows, SOME);
        switch (here) {   // where there are registers for their sums, all vectors at once: in the order of memory
        case 1: multiply(type, 1, VECTORS, y, x, w, b, n, 0); break;
        case 2: multiply(type, 2, VECTORS, y, x, w, b, n, 0); break;
        case 3: multiply(type, 3, VECTORS, y, x, w, b, n, 0); break;
#if defined(SIMD_AVX512)
        case SOME: multiply(type, SOME, VECTORS, y, x, w, b, n, 0); break;
#endif
        default:
            for (int j = 0; j < VECTORS; j++) multiply(type, ROWS, 1, y, x, w, b, n, j);
        }
    }
}

static void multiply_int8_panel(float *y, const QuantisedInputs *x, const PackedMatrix *w, const float *b, int64_t rows,
                                int64_t n) {
    multiply_panel(PYGPT_INT8, y, x, w, b, rows, n);
}

static void multiply_int4_panel(float *y, const QuantisedInputs *x, const PackedMatrix *w, const float *b, int64_t rows,
                                int64_t n) {
    multiply_panel(PYGPT_INT4, y, x, w, b, rows, n);
}

void integer_product(const Team *team, float *y, const float *x, const PackedMatrix *w, const float *b, int64_t rows,
                     float *inputs, int shared) {
    int64_t groups = divide_up(w->K, GROUP);
    QuantisedInputs *quantised = (QuantisedInputs *)inputs;
    Range mine = shared ? range_of(team, rows) : (Range){0, rows};
    for (int64_t r = mine.first; r < mine.end; r++) quantise_row(quantised + r * groups, x + r * w->K, w->K);
    if (shared) meet(team);
    Range columns = columns_of(team, w);
    for (int64_t n = columns.first; n < columns.end; n += NR)
        (w->type == PYGPT_INT8 ? multiply_int8_panel : multiply_int4_panel)(y, quantised, w, b, rows, n);
}
