/* The threads of a parallel region that meet many times for each token. OpenMP's own barrier may put threads to sleep, and
 * costs more than what is done between two meetings: here they wait awake, unless there are more of them than processors. */
#ifndef PYGPT_TEAM_H
#define PYGPT_TEAM_H

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

enum { TRIES = 1 << 10 };   // before a waiting thread gives its processor to others

typedef struct {
    atomic_int arrived;
    char apart[60];   // those who wait read another line than those who arrive write
    atomic_int meetings;
} Meeting;

typedef struct {
    Meeting *meeting;   // of all; begins as zero
    int number, threads;
} Team;

/* What every thread wrote before is there for all of them afterwards. */
static inline void meet(const Team *team) {
    Meeting *m = team->meeting;
    int before = atomic_load(&m->meetings);
    if (atomic_fetch_add(&m->arrived, 1) + 1 == team->threads) {
        atomic_store(&m->arrived, 0);
        atomic_store(&m->meetings, before + 1);
        return;
    }
    for (int tries = 0; atomic_load_explicit(&m->meetings, memory_order_acquire) == before; tries++) {
        if (tries < TRIES) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else {
            sched_yield();
        }
    }
}

/* This thread's part of 0 ... count - 1. */
typedef struct {
    int64_t first, end;
} Range;

static inline Range range_of(const Team *team, int64_t count) {
    return (Range){count * team->number / team->threads, count * (team->number + 1) / team->threads};
}

#endif
