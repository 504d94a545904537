/* The product with weights of four bits; see generation.h. */
#ifndef PYGPT_INT4_PRODUCT_H
#define PYGPT_INT4_PRODUCT_H

#include "../generation.h"

/* inputs: scratch for the rows in eight bits, 10 floats for each 32 of K; of all threads, if it is shared. */
void int4_product(const Team *team, float *y, const float *x, const PackedMatrix *w, const float *b, int64_t rows,
                  float *inputs, int shared);

#endif
