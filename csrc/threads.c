/* How many threads OpenMP takes, and what becomes of them where the process forks. */
#include "threads.h"

#include <stdatomic.h>

#include "pygpt.h"

static atomic_int chosen;   // 0: as OpenMP began

void use_threads(void) {
    int threads = atomic_load(&chosen);
    if (threads) omp_set_num_threads(threads);
}

void pygpt_set_threads(int threads) {
    atomic_store(&chosen, threads > 0 ? threads : 1);
    use_threads();
}

int pygpt_threads(void) {
    use_threads();
    return omp_get_max_threads();
}

#if defined(_OPENMP)

    #include <pthread.h>

/* Of a team only the thread that forks exists in the child, and GNU OpenMP would wait there for the others for ever. So they
 * end before, and parent and child make new ones when they need them. LLVM's OpenMP does so by itself. */
static void end_threads(void) {
    omp_pause_resource_all(omp_pause_soft);
}

__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(end_threads, NULL, NULL);
}

#endif
