/* Packing: operands of a matrix product copied into panels, in the order in which the micro-kernel reads them.
 *
 *   panel[k][i] = operand(first + i, k)      i < width
 *
 * i is a row of the left operand (width MR) or a column of the right one (width NR); what lies beyond the operand's
 * end is zero. Transpositions happen here, a block of LANES × LANES in registers at a time, and so does the rounding
 * to bfloat16: an element of a panel is then the pair of k and k + 1 where the processor multiplies pairs, and a rounded
 * float elsewhere.
 */
#ifndef PYGPT_PACK_H
#define PYGPT_PACK_H

#include "../pygpt.h"
#include "microkernel.h"

/* operand(i, k) = k_contiguous ? x[i·stride + k] : x[k·stride + i] */
typedef struct {
    const float *x;
    int64_t stride;
    int k_contiguous;
} Operand;

static inline Operand operand_from(Operand o, int64_t i, int64_t k) {
    o.x += o.k_contiguous ? i * o.stride + k : k * o.stride + i;
    return o;
}

typedef enum { PANEL_F32, PANEL_BF16 } PanelType;

/* For numbers of a format of pygpt.h. */
static inline PanelType panel_type(int format) {
    return format == PYGPT_BFLOAT16 ? PANEL_BF16 : PANEL_F32;
}

int64_t panel_pair(PanelType type);   // how many k one element of a panel holds

/* All i over depth values of k, that is depth / panel_pair(type), rounded up, elements. Panels follow one another:
 * that of i begins i × elements floats from the first one. */
void pack_rows(PanelType type, float *panels, Operand a, int64_t rows, int64_t depth);
void pack_columns(PanelType type, float *panels, Operand b, int64_t columns, int64_t depth);

/* One row by itself, so many values, as so many elements; what is beyond the values is zero. */
void pack_row(PanelType type, float *to, const float *x, int64_t values, int64_t elements);

/* ---- for the files that are compiled for products of bfloat16, where there are any (CMakeLists.txt) ---- */

/* panel_pair() as a constant. */
INLINE int64_t pair_of(PanelType type) {
    return type == PANEL_BF16 ? BF16_PAIR : 1;
}

/* LANES elements of a panel from consecutive values of k: `second` comes after `first`, where two are needed. */
INLINE Floats elements_of(PanelType type, Floats first, Floats second) {
#if defined(HAVE_BF16_PAIRS)
    if (type == PANEL_BF16) return (Floats)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#endif
    (void)second;
    return type == PANEL_BF16 ? round_bf16(first) : first;
}

#endif
