/* Attention of one query to the keys and values of a cache, csrc/layers/generation.c in vectors. */
#include <math.h>

#include "../internal.h"
#include "fast.h"
#include "vector_math.h"

enum {
    KEYS = 4,      // at once: the sum of one alone would be waited for
    STRIP = 4,     // vectors of y that are summed in registers while the values go by
};

/* The first n lanes of what is at number i of the cache. */
INLINE Floats load_cached(int cache, const void *rows, int64_t i, int64_t n) {
    if (cache == PYGPT_FLOAT32) return load_first((const float *)rows + i, n);
    const uint16_t *from = (const uint16_t *)rows + i;
    if (n >= LANES) return load_bf16(from);
    uint16_t halves[LANES] = {0};
    if (n > 0) memcpy(halves, from, (size_t)n * sizeof *from);
    return load_bf16(halves);
}

/* scores[u] = scale q·k_u for so many keys from u on. */
INLINE void score(int cache, int keys, float *scores, const float *q, const void *rows, int64_t u, int64_t HS,
                  float scale) {
    Floats sum[KEYS];
    UNROLL
    for (int j = 0; j < keys; j++) sum[j] = (Floats){0};
    for (int64_t i = 0; i < HS; i += LANES) {
        Floats qi = load_first(q + i, HS - i);
        UNROLL
        for (int j = 0; j < keys; j++) sum[j] += qi * load_cached(cache, rows, (u + j) * HS + i, HS - i);
    }
    UNROLL
    for (int j = 0; j < keys; j++) scores[u + j] = scale * sum_lanes(sum[j]);
}

/* y = Σ_u scores_u v_u, some vectors of it. */
INLINE void add_values(int cache, int vectors, float *y, const float *scores, const void *rows, int64_t count,
                       int64_t HS, int64_t first, float factor) {
    Floats sum[STRIP];
    UNROLL
    for (int j = 0; j < vectors; j++) sum[j] = (Floats){0};
    for (int64_t u = 0; u < count; u++) {
        Floats p = broadcast(scores[u]);
        UNROLL
        for (int j = 0; j < vectors; j++) {
            int64_t i = first + j * LANES;
            sum[j] += p * load_cached(cache, rows, u * HS + i, HS - i);
        }
    }
    UNROLL
    for (int j = 0; j < vectors; j++) {
        int64_t i = first + j * LANES;
        store_first(y + i, factor * sum[j], HS - i);
    }
}

/* scores become exp(scores − their maximum), whose sum is returned. */
static float exponentials(float *scores, int64_t count) {
    Floats largest = broadcast(-INFINITY), sum = {0};
    for (int64_t u = 0; u < count; u += LANES) {
        if (count - u < LANES) {
            for (int64_t v = count; v < u + LANES; v++) scores[v] = -INFINITY;
        }
        largest = larger(load(scores + u), largest);
    }
    float most = max_lanes(largest);
    for (int64_t u = 0; u < count; u += LANES) {
        Floats p = vector_exp(load(scores + u) - most);
        store(scores + u, p);
        sum += p;
    }
    return sum_lanes(sum);
}

INLINE void attend_to(int cache, float *y, const float *q, const void *keys, const void *values, int64_t count,
                      int64_t HS, float scale, float *scores) {
    int64_t u = 0;
    for (; u + KEYS <= count; u += KEYS) score(cache, KEYS, scores, q, keys, u, HS, scale);
    for (; u < count; u++) score(cache, 1, scores, q, keys, u, HS, scale);
    float factor = 1.0f / exponentials(scores, count);
    int64_t i = 0;
    for (; i + STRIP * LANES <= HS; i += STRIP * LANES)
        add_values(cache, STRIP, y, scores, values, count, HS, i, factor);
    for (; i < HS; i += LANES) add_values(cache, 1, y, scores, values, count, HS, i, factor);
}

void fast_cached_attention(float *y, const float *q, const void *keys, const void *values, int cache, int64_t count,
                           int64_t HS, float scale, float *scores) {
    if (cache == PYGPT_FLOAT32)
        attend_to(PYGPT_FLOAT32, y, q, keys, values, count, HS, scale, scores);
    else
        attend_to(PYGPT_BFLOAT16, y, q, keys, values, count, HS, scale, scores);
}
