/* The micro-kernel: the only part of a matrix product that knows the instruction set.
 *
 *   c_ij = from_ij + Σ_k a_ki b_kj          i < rows ≤ MR      j < NR      k < depth
 *
 * a and b are packed panels, a[k][MR] and b[k][NR], so that both are read in the order in which they lie. `from` is
 * what the sum is added to: c itself, a bias (stride 0), or nothing, NO_START (stride 0). The sum stays in registers
 * until the end, and runs over k in ascending order, so that its bits do not depend on where in a tile an element lies.
 * Meanwhile what is used next is fetched into the second-level cache, where FETCH_AHEAD says so.
 *
 * In bfloat16, an element of a panel is a pair of values, those of k and k + 1 (pack.h).
 */
#ifndef PYGPT_MICROKERNEL_H
#define PYGPT_MICROKERNEL_H

#include "simd.h"

/* MR × NR sums, the columns of b and one broadcast element of a fill the register file: 32 registers with AVX-512 and
 * NEON, 16 elsewhere. MR is at most LANES or a multiple of it, and NR a multiple, as packing wants it.
 *
 * With AVX2 a step of k is 12 multiply-adds, and the instructions around them show, most of all where two threads share
 * a core: so STEPS of k are written out one after the other, and nothing is fetched ahead. */
#if defined(SIMD_AVX512)
enum { MR = 14, NR = 32, STEPS = 1, FETCH_AHEAD = 1 };
#elif defined(SIMD_AVX2)
enum { MR = 6, NR = 16, STEPS = 4, FETCH_AHEAD = 0 };
#elif defined(__ARM_NEON)
enum { MR = 12, NR = 8, STEPS = 1, FETCH_AHEAD = 1 };
#else
enum { MR = 4, NR = 12, STEPS = 1, FETCH_AHEAD = 1 };
#endif

extern const float NO_START[NR];   // zeros

enum { LINE = 64 / sizeof(float) };   // floats in a cache line

/* What is fetched: a panel, so many floats for each k; and a line of a matrix every so many k, row after row. */
typedef struct {
    const float *panel;
    int64_t panel_step;
    const float *row;   // with so many lines, the next row being stride floats away
    int64_t lines, stride;
    int64_t line;       // the first to be fetched
    int64_t interval;
} Ahead;

extern const Ahead NOTHING_AHEAD;

typedef void Microkernel(float *c, int64_t c_stride, const float *from, int64_t from_stride, const float *a,
                         const float *b, int64_t depth, int64_t rows, const Ahead *ahead);

Microkernel microkernel_f32;
Microkernel microkernel_bf16;   // a and b hold pairs of bfloat16 where HAVE_BF16_PAIRS, otherwise rounded floats

#if defined(__AVX512BF16__) && defined(SIMD_AVX512)
    #define HAVE_BF16_PAIRS
enum { BF16_PAIR = 2 };   // values in one element
#else
enum { BF16_PAIR = 1 };
#endif

/* sum += a b, a being one element for all lanes */
INLINE Floats step_f32(Floats sum, float a, Floats b) {
    return sum + broadcast(a) * b;
}

INLINE Floats step_bf16(Floats sum, float a, Floats b) {
#if defined(HAVE_BF16_PAIRS)
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)broadcast(a), (__m512bh)b);
#else
    return step_f32(sum, a, b);
#endif
}

#endif
