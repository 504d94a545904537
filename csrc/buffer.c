/* Large float buffers with several owners: the model, and every array that Python has handed out over them. */
#include <stdatomic.h>
#include <stdlib.h>

#include "internal.h"

enum { ALIGNMENT = 64 };   // a cache line, and the widest vector

/* Stands in the cache line before the data. */
typedef struct {
    atomic_int owners;
} Header;

static Header *header(float *data) {
    return (Header *)((char *)data - ALIGNMENT);
}

float *buffer_allocate(int64_t count) {
    int64_t bytes = checked_add(checked_mul(count, sizeof(float)), 2 * ALIGNMENT);
    if (count < 0 || bytes < 0 || (uint64_t)bytes > SIZE_MAX) return NULL;
    char *start = aligned_alloc(ALIGNMENT, (size_t)(bytes / ALIGNMENT * ALIGNMENT));
    if (!start) return NULL;
    float *data = (float *)(start + ALIGNMENT);
    atomic_init(&header(data)->owners, 1);
    return data;
}

void buffer_retain(float *data) {
    if (data) atomic_fetch_add(&header(data)->owners, 1);
}

void pygpt_release(float *data) {
    if (data && atomic_fetch_sub(&header(data)->owners, 1) == 1) free(header(data));
}

int64_t checked_mul(int64_t a, int64_t b) {
    int64_t product;
    return a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product) ? -1 : product;
}

int64_t checked_add(int64_t a, int64_t b) {
    int64_t sum;
    return a < 0 || b < 0 || __builtin_add_overflow(a, b, &sum) ? -1 : sum;
}
