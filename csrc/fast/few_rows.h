/* A product whose left operand has few rows, as in generation: bound by the reading of b, so nothing is packed. */
#ifndef PYGPT_FEW_ROWS_H
#define PYGPT_FEW_ROWS_H

#include "gemm.h"

enum { FEW_ROWS = 4 };

void multiply_few_rows(const Product *product);   // M <= FEW_ROWS, a.k_contiguous

#endif
