#include "use.h"

#include "internal.h"
#include "threads.h"

int begin_use(int **used, int *in_use, const char *what) {
    if (__atomic_exchange_n(in_use, 1, __ATOMIC_ACQUIRE)) {
        return fail(PYGPT_ERROR_ARGUMENT, "another thread is using this %s: one at a time can", what);
    }
    *used = in_use;
    use_threads();
    return PYGPT_OK;
}

void end_use(int **used) {
    if (*used) __atomic_store_n(*used, 0, __ATOMIC_RELEASE);
}
