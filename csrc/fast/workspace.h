/* Memory for packed panels and the like: kept between calls, of a size that does not grow with the model. */
#ifndef PYGPT_WORKSPACE_H
#define PYGPT_WORKSPACE_H

#include <stdint.h>

/* At least count floats, aligned to a cache line, for the caller alone until given back; NULL if there is no memory. */
float *workspace_acquire(int64_t count);
void workspace_release(float *workspace);

#endif
