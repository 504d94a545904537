/* The product with weights of eight or four bits; see generation.h. */
#ifndef PYGPT_INTEGER_PRODUCT_H
#define PYGPT_INTEGER_PRODUCT_H

#include "../generation.h"

/* inputs: scratch for the rows in eight bits, 10 floats for each 32 of K; of all threads, if it is shared. */
void integer_product(const Team *team, float *y, const float *x, const PackedMatrix *w, const float *b, int64_t rows,
                     float *inputs, int shared);

#endif
