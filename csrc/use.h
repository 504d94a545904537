/* One thread at a time uses a model, or a generator. */
#ifndef PYGPT_USE_H
#define PYGPT_USE_H

#include "pygpt.h"

/* The first line of every function of pygpt.h that takes a model and returns an error code: the model is the caller's until
 * the function returns. */
#define USE(model) USE_WITH(in_use_of(model), "model")

/* The same for a generator. */
#define USE_GENERATOR(generator) USE_WITH(&(generator)->in_use, "generator")

/* in_use: where it is noted. */
#define USE_WITH(in_use, what)                                                                                         \
    __attribute__((cleanup(end_use))) int *used = NULL;                                                                \
    int use_status = begin_use(&used, in_use, what);                                                                   \
    if (use_status != PYGPT_OK) return use_status

int *in_use_of(GPT2 *model);   // 1 while a function uses it; in each library

/* *used = in_use, which becomes 1; an error about `what`, and *used stays NULL, if that is 1 already. */
int begin_use(int **used, int *in_use, const char *what);
void end_use(int **used);   // of NULL: nothing

#endif
