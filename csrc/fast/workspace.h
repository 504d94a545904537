/* Memory for packed panels and the like: kept between calls, of a size that does not grow with the model. */
#ifndef PYGPT_WORKSPACE_H
#define PYGPT_WORKSPACE_H

#include <stdint.h>

#if defined(_OPENMP)
    #include <omp.h>
#endif

/* At least count floats, aligned to a cache line, for the caller alone until given back; NULL if there is no memory. */
float *workspace_acquire(int64_t count);
void workspace_release(float *workspace);

/* How many threads a parallel region may have, how many this one has, and which of them this one is. */
static inline int max_threads(void) {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

static inline int team_size(void) {
#if defined(_OPENMP)
    return omp_get_num_threads();
#else
    return 1;
#endif
}

static inline int thread_number(void) {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

#endif
