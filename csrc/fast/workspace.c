#include "workspace.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

#include "../internal.h"

/* The block that is kept while nobody uses it. Who finds the slot empty, because another Python thread works at the
 * same moment, allocates a block of his own; of two blocks given back, one is freed. */
typedef struct {
    int64_t count;
    char padding[56];   // so that what follows is aligned
    float floats[];
} Block;

static _Atomic(Block *) kept;

float *workspace_acquire(int64_t count) {
    Block *block = atomic_exchange(&kept, NULL);
    if (block && block->count >= count) return block->floats;
    free(block);
    block = allocate_aligned(sizeof(Block) + (size_t)count * sizeof(float));
    if (!block) return NULL;
    block->count = count;
    return block->floats;
}

void workspace_release(float *workspace) {
    Block *block = (Block *)((char *)workspace - offsetof(Block, floats));
    free(atomic_exchange(&kept, block));
}
