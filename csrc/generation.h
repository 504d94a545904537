/* The two layers that generation has of its own, plain in layers/ and fast in fast/. */
#ifndef PYGPT_GENERATION_H
#define PYGPT_GENERATION_H

#include "packed.h"
#include "team.h"

/* y = x w + b for so many rows; b may be NULL. y: (rows,N), of which each thread writes the columns of its panels. x: (rows,K).
 * All threads of a team call it, with the same arguments but for `own`, and meet before y is read. */
typedef void PackedProduct(const Team *team, float *y, const float *x, const PackedMatrix *w, const float *b,
                           int64_t rows, float *shared, float *own);

/* Queries of consecutive positions of one sequence, and one head: query i looks at the first count + i keys. */
typedef struct {
    float *y;   // (queries,HS), rows y_stride apart
    const float *q;   // (queries,HS), rows q_stride apart
    int64_t y_stride, q_stride, queries, count, HS;
    int cache;   // whether keys and values are floats or bfloat16
    void *keys, *values;   // cached_numbers() each, in the order in which these kernels read them
    float scale;   // of the scores, such that the softmax is one of powers of two
} CachedHead;

/* y_i = Σ_u P_u v_u / Σ_u P_u, P_u = 2^(scale q_i·k_u − m), u < count + i, with a whole number m ≥ max scale q_i·k_u. q and P are
 * rounded where the cache is bfloat16. */
typedef void CachedAttention(const CachedHead *head, float *scratch);

/* Keeps the key and the value of a position. k, v: (HS) */
typedef void CacheRow(const CachedHead *head, int64_t position, const float *k, const float *v);

typedef struct {
    PackedProduct *product;
    CachedAttention *attention;
    int64_t width;   // of panels
    int64_t few_rows;   // so many, or fewer, need no scratch in common
    int64_t queries;   // of attention at once, at most
    int64_t (*cached_numbers)(int cache, int64_t positions, int64_t HS);   // that a head's keys take, or its values
    CacheRow *cache_row;
    int64_t (*shared_floats)(int64_t rows, int64_t K);   // scratch of a product; the largest K
    int64_t (*own_floats)(int64_t K);
    int64_t (*attention_floats)(int64_t positions, int64_t HS);   // scratch of attention
} GenerationKernels;

extern const GenerationKernels plain_generation, fast_generation;

/* The columns whose panels are a thread's. */
static inline Range columns_of(const Team *team, const PackedMatrix *w) {
    Range panels = range_of(team, packed_panels(w));
    return (Range){panels.first * w->width, min64(panels.end * w->width, w->N)};
}

#endif
