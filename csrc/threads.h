/* OpenMP's questions, and what is true without it: there is one thread. */
#ifndef PYGPT_THREADS_H
#define PYGPT_THREADS_H

#if defined(_OPENMP)
    #include <omp.h>
#else
static inline void omp_set_num_threads(int threads) {
    (void)threads;
}

static inline int omp_get_max_threads(void) {
    return 1;
}

static inline int omp_get_num_threads(void) {
    return 1;
}

static inline int omp_get_thread_num(void) {
    return 0;
}
#endif

/* OpenMP counts for each thread of the host program by itself: gives the calling one the number that was chosen for all. */
void use_threads(void);

#endif
