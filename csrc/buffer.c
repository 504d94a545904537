/* Large float buffers with several owners: the model, and every array that Python has handed out over them. */
#if defined(__linux__)
    #define _DEFAULT_SOURCE   // for madvise
    #include <sys/mman.h>
#endif

#include <stdatomic.h>
#include <stdlib.h>

#include "internal.h"

enum { ALIGNMENT = 64, HUGE_PAGE = 2 << 20 };   // a cache line, and the widest vector; what Linux calls huge

static size_t alignment_for(size_t bytes) {
    return bytes < 2 * HUGE_PAGE ? ALIGNMENT : HUGE_PAGE;
}

void *allocate_aligned(size_t bytes) {
    size_t alignment = alignment_for(bytes);
    if (bytes > SIZE_MAX - alignment) return NULL;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    void *memory = aligned_alloc(alignment, bytes);
#if defined(__linux__)
    if (memory && alignment == HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);   // a wish: without it all works
#endif
    return memory;
}

/* Stands in the cache line before the data. */
typedef struct {
    atomic_int owners;
} Header;

static Header *header(float *data) {
    return (Header *)((char *)data - ALIGNMENT);
}

/* With the header. */
static int64_t bytes_of(int64_t count) {
    return checked_add(checked_mul(count, sizeof(float)), ALIGNMENT);
}

int64_t buffer_bytes(int64_t count) {
    int64_t bytes = bytes_of(count), alignment = (int64_t)alignment_for((size_t)bytes);
    return bytes < 0 ? -1 : checked_mul(divide_up(bytes, alignment), alignment);
}

float *buffer_allocate(int64_t count) {
    int64_t bytes = bytes_of(count);
    if (bytes < 0 || (uint64_t)bytes > SIZE_MAX) return NULL;
    char *start = allocate_aligned((size_t)bytes);
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
