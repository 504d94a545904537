/* Packing: operands of a matrix product copied into panels, in the order in which the micro-kernel reads them.
 *
 *   panel[k][lane] = operand(first + lane, k)      lane < width
 *
 * A lane is a row of the left operand (width MR) or a column of the right one (width NR); lanes beyond the operand's
 * end are zero. Transpositions happen here, a block of LANES × LANES in registers at a time, and so does the rounding
 * to bfloat16: an element of a panel is then the pair of k and k + 1 where the processor multiplies pairs, and a rounded
 * float elsewhere.
 */
#ifndef PYGPT_PACK_H
#define PYGPT_PACK_H

#include "microkernel.h"

/* operand(lane, k) = k_contiguous ? x[lane·stride + k] : x[k·stride + lane] */
typedef struct {
    const float *x;
    int64_t stride;
    int k_contiguous;
} Operand;

static inline Operand operand_from(Operand o, int64_t lane, int64_t k) {
    o.x += o.k_contiguous ? lane * o.stride + k : k * o.stride + lane;
    return o;
}

typedef enum { PANEL_F32, PANEL_BF16 } PanelType;

/* How many k one element of a panel holds. */
static inline int64_t panel_pair(PanelType type) {
#if defined(HAVE_BF16_PAIRS)
    return type == PANEL_BF16 ? 2 : 1;
#else
    (void)type;
    return 1;
#endif
}

/* All lanes over depth values of k, that is depth / panel_pair(type), rounded up, elements. Panels follow one another:
 * that of a lane begins lane × elements floats from the first one. */
void pack_rows(PanelType type, float *panels, Operand a, int64_t rows, int64_t depth);
void pack_columns(PanelType type, float *panels, Operand b, int64_t columns, int64_t depth);

#endif
