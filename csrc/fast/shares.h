/* Items of work shared among threads. Each thread begins with an equal share and goes through it in order, so that from
 * layer to layer it meets the rows that it has in its own cache; one that is ready takes from the end of what another
 * has left.
 */
#ifndef PYGPT_SHARES_H
#define PYGPT_SHARES_H

#include "../internal.h"
#include "../threads.h"

typedef struct {
    int64_t next, end;
} Share;

typedef struct {
    int64_t first, count;   // count 0: nothing is left
    int64_t following;   // items of the thread's own share that come next
} Portion;

static inline void share_out(Share *shares, int64_t threads, int64_t count) {
    for (int64_t t = 0; t < threads; t++) shares[t] = (Share){count * t / threads, count * (t + 1) / threads};
}

/* Half of what is left of a share, but at most `most` items: the last portions are small, and no thread waits long. */
static inline Portion take_portion(Share *shares, int64_t threads, int64_t most) {
    Portion taken = {0};
    #pragma omp critical(shares)
    {
        Share *own = shares + omp_get_thread_num(), *from = own;
        for (int64_t t = 0; t < threads && own->next == own->end; t++) {
            if (shares[t].end - shares[t].next > from->end - from->next) from = shares + t;
        }
        taken.count = min64(divide_up(from->end - from->next, 2), most);
        if (from == own) {
            taken.first = own->next;
            own->next += taken.count;
            taken.following = own->end - own->next;
        } else {
            from->end -= taken.count;
            taken.first = from->end;
        }
    }
    return taken;
}

#endif
