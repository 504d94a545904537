/* The two layers that generation has of its own, plain in layers/ and fast in fast/. */
#ifndef PYGPT_GENERATION_H
#define PYGPT_GENERATION_H

#include "packed.h"
#include "team.h"

/* y = x w + b for so many rows; b may be NULL. y: (rows,N), of which each thread writes the columns of its panels. x: (rows,K).
 * All threads of a team call it, with the same arguments but for `own`, and meet before y is read. */
typedef void PackedProduct(const Team *team, float *y, const float *x, const PackedMatrix *w, const float *b,
                           int64_t rows, float *shared, float *own);

/* One row and head: y = Σ_u P_u v_u, P = softmax(scale q·k_u), u < count. y, q: (HS). keys, values: (count,HS), floats or
 * bfloat16, as `cache` says. scores: scratch for count floats, rounded up to a vector. */
typedef void CachedAttention(float *y, const float *q, const void *keys, const void *values, int cache, int64_t count,
                             int64_t HS, float scale, float *scores);

typedef struct {
    PackedProduct *product;
    CachedAttention *attention;
    int64_t width;   // of panels
    int64_t few_rows;   // so many, or fewer, need no scratch in common
    int64_t (*shared_floats)(int64_t rows, int64_t K);   // scratch of a product; the largest K
    int64_t (*own_floats)(int64_t K);
} GenerationKernels;

extern const GenerationKernels plain_generation, fast_generation;

/* The columns whose panels are a thread's. */
static inline Range columns_of(const Team *team, const PackedMatrix *w) {
    Range panels = range_of(team, packed_panels(w));
    return (Range){panels.first * w->width, min64(panels.end * w->width, w->N)};
}

#endif
