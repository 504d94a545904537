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

int64_t panel_pair(PanelType type);   // how many k one element of a panel holds

/* All i over depth values of k, that is depth / panel_pair(type), rounded up, elements. Panels follow one another:
 * that of i begins i × elements floats from the first one. */
void pack_rows(PanelType type, float *panels, Operand a, int64_t rows, int64_t depth);
void pack_columns(PanelType type, float *panels, Operand b, int64_t columns, int64_t depth);

#endif
