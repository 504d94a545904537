/* Access to a model's tensors by kind and number, the same in every library. What differs, and stays in each library:
 * where the tensors lie, and how values are copied there and back. */
#ifndef PYGPT_ACCESS_H
#define PYGPT_ACCESS_H

#include "tensors.h"

/* ---- in access.c ---- */

/* The flat buffer of a kind, once the latest pass is complete: that of gradients is made if it is not there yet, those of
 * moments are not, and NULL.  PYGPT_OK or an error. */
int find_buffer(GPT2 *model, float **buffer, int kind);
/* The same, with one tensor of the kind, which must have this size. Moments that are not in use are made to be written; to
 * be read, they are zero, and the buffer NULL. */
int find_tensor(GPT2 *model, Tensor *tensor, float **buffer, int kind, int64_t index, int64_t size, int to_write);

/* ---- in each library ---- */

typedef struct {
    const TensorTable *table;
    float *buffer;   // NULL where nothing is in it yet
    int64_t size;   // floats of it; of moments, those that are there
} Flat;

/* Of a kind that there is. */
Flat flat_of(const GPT2 *model, int kind);

/* Make sure of the memory; it begins as zeros. PYGPT_OK or an error. */
int reserve_gradients(GPT2 *model);
int reserve_moments(GPT2 *model, int kind, int64_t end);   // PYGPT_FIRST_MOMENT, or so many of PYGPT_SECOND_MOMENT

/* Waits for the latest pass if it is still under way. PYGPT_OK, or the error that was found in it. */
int check_pass(GPT2 *model);

#endif
