/* Attention to the keys and values of a cache, csrc/layers/generation.c in vectors, in blocks of keys with a running softmax:
 *
 *   s_u = q·k_u                 keys beside each other in the lanes, i ascending in the sums
 *   P_u = exp(scale (s_u − m))   m: the largest s so far; sum and y so far are multiplied by exp(scale (m before − m))
 *   y += P_u v_u                channels beside each other, u ascending
 *
 * MR queries share what is read of the cache, or one has it for itself. A block begins at the same key whatever comes together,
 * and what a query does not look at is not even multiplied by zero: each y is the same sum, in the same order.
 */
#include "cached_attention.h"

#include <math.h>

#include "../internal.h"
#include "pack.h"
#include "vector_math.h"

enum {
    KEYS = DIVIDES_WORK(256 / NR, 1) * NR,   // in a block
    VECTORS = NR / LANES,
    ALONE = 4,   // panels of keys, or vectors of channels, for one query: the sum of one alone would be waited for
};

/* (queries): of each, what is known after some blocks. */
typedef struct {
    float *scores;   // (queries,KEYS), which become P
    float *y;   // (queries,y_stride)
    float *sum;   // (queries,LANES): of P, lane by lane
    float *largest;
} Softmax;

/* The first n lanes of what is at number i of the cache. */
INLINE Floats load_cached(int cache, const void *numbers, int64_t i, int64_t n) {
    if (cache == PYGPT_FLOAT32) return load_first((const float *)numbers + i, n);
    const uint16_t *from = (const uint16_t *)numbers + i;
    if (n >= LANES) return load_bf16(from);
    uint16_t halves[LANES] = {0};
    if (n > 0) memcpy(halves, from, (size_t)n * sizeof *from);
    return load_bf16(halves);
}

/* ---- scores ---- */

/* rows, panels and the type of the cache are constants wherever these are inlined, so that the sums are in registers. Panels of
 * keys from the one at key u on. q: (HS,rows) */
INLINE void score_panels(int cache, int rows, int panels, float *scores, const float *q, const CachedHead *head,
                         int64_t u) {
    int64_t HS = head->HS;
    Floats sum[MR][ALONE * VECTORS];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int j = 0; j < panels * VECTORS; j++) sum[r][j] = (Floats){0};
    }
    for (int64_t i = 0; i < HS; i++) {
        Floats k[ALONE * VECTORS];
        UNROLL
        for (int j = 0; j < panels * VECTORS; j++)
            k[j] = load_cached(cache, head->keys, u * HS + (j / VECTORS * HS + i) * NR + j % VECTORS * LANES, LANES);
        UNROLL
        for (int r = 0; r < rows; r++) {
            UNROLL
            for (int j = 0; j < panels * VECTORS; j++) sum[r][j] += broadcast(q[i * rows + r]) * k[j];
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int j = 0; j < panels * VECTORS; j++) store(scores + r * KEYS + j * LANES, sum[r][j]);
    }
}

/* Of a block of keys from u on; those up to the end of a panel, too. */
INLINE void score_block(int cache, int rows, float *scores, const float *q, const CachedHead *head, int64_t u,
                        int64_t keys) {
    int panels = rows == 1 ? ALONE : 1;
    int64_t k = 0;
    for (; k + panels * NR <= keys; k += panels * NR) score_panels(cache, rows, panels, scores + k, q, head, u + k);
    for (; k < keys; k += NR) score_panels(cache, rows, 1, scores + k, q, head, u + k);
}

/* ---- values ---- */

/* Vectors of channels from i on, `channels` channels in all. y and p: of the first row; p: at key u. */
INLINE void add_vectors(int cache, int rows, int vectors, float *y, int64_t y_stride, const float *p,
                        const CachedHead *head, int64_t u, int64_t keys, int64_t i, int64_t channels) {
    Floats sum[MR][ALONE];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int j = 0; j < vectors; j++) sum[r][j] = load(y + r * y_stride + i + j * LANES);
    }
    for (int64_t k = 0; k < keys; k++) {
        Floats v[ALONE];
        UNROLL
        for (int j = 0; j < vectors; j++)
            v[j] = load_cached(cache, head->values, (u + k) * head->HS + i + j * LANES, channels - j * LANES);
        UNROLL
        for (int r = 0; r < rows; r++) {
            UNROLL
            for (int j = 0; j < vectors; j++) sum[r][j] += broadcast(p[r * KEYS + k]) * v[j];
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int j = 0; j < vectors; j++) store(y + r * y_stride + i + j * LANES, sum[r][j]);
    }
}

INLINE void add_values(int cache, int rows, float *y, int64_t y_stride, const float *p, const CachedHead *head,
                       int64_t u, int64_t keys) {
    int vectors = rows == 1 ? ALONE : VECTORS;
    int64_t i = 0;
    for (; i + vectors * LANES <= head->HS; i += vectors * LANES)
        add_vectors(cache, rows, vectors, y, y_stride, p, head, u, keys, i, vectors * LANES);
    for (; i < head->HS; i += LANES) add_vectors(cache, rows, 1, y, y_stride, p, head, u, keys, i, head->HS - i);
}

/* ---- softmax ---- */

/* The scores of query r and some keys become P. */
static void exponentials(const Softmax *s, int64_t r, int64_t y_stride, int64_t keys, float scale) {
    float *scores = s->scores + r * KEYS, *y = s->y + r * y_stride;
    for (int64_t u = keys; u < divide_up(keys, LANES) * LANES; u++) scores[u] = -INFINITY;
    Floats largest = broadcast(s->largest[r]);
    for (int64_t u = 0; u < keys; u += LANES) largest = larger(load(scores + u), largest);
    float now = max_lanes(largest);
    Floats sum = load(s->sum + r * LANES);
    if (now > s->largest[r]) {
        Floats shrink = vector_exp(broadcast((s->largest[r] - now) * scale));
        sum *= shrink;
        for (int64_t i = 0; i < y_stride; i += LANES) store(y + i, load(y + i) * shrink);
        s->largest[r] = now;
    }
    for (int64_t u = 0; u < keys; u += LANES) {
        Floats p = vector_exp((load(scores + u) - now) * scale);
        store(scores + u, p);
        sum += p;
    }
    store(s->sum + r * LANES, sum);
}

/* ---- all of it ---- */

static int64_t whole_vectors(int64_t HS) {
    return divide_up(HS, LANES) * LANES;
}

/* Fewer queries than rows: what is computed for the others is not used. */
INLINE void attend_queries(int cache, int rows, const CachedHead *head, float *scratch) {
    int64_t HS = head->HS, y_stride = whole_vectors(HS), end = head->count + head->queries - 1;
    Softmax s = {.scores = scratch};
    s.y = s.scores + rows * KEYS;
    s.sum = s.y + rows * y_stride;
    s.largest = s.sum + rows * LANES;
    const float *q = head->q;
    if (rows > 1) {
        float *packed = s.largest + rows;
        pack_rows(PANEL_F32, packed, (Operand){q, head->q_stride, 1}, head->queries, HS);
        q = packed;
    }
    for (int64_t i = 0; i < rows * y_stride; i++) s.y[i] = 0.0f;
    for (int64_t i = 0; i < rows * LANES; i++) s.sum[i] = 0.0f;
    for (int64_t r = 0; r < rows; r++) s.largest[r] = -INFINITY;

    for (int64_t u = 0; u < end; u += KEYS) {
        int64_t keys = min64(KEYS, end - u), all = max64(min64(KEYS, head->count - u), 0);
        score_block(cache, rows, s.scores, q, head, u, keys);
        for (int64_t r = 0; r < head->queries; r++) {
            int64_t seen = min64(KEYS, head->count + r - u);
            if (seen > 0) exponentials(&s, r, y_stride, seen, head->scale);
        }
        add_values(cache, rows, s.y, y_stride, s.scores, head, u, all);
        for (int64_t r = 1; r < head->queries && all < keys; r++) {   // keys that not all queries look at
            int64_t seen = min64(KEYS, head->count + r - u);
            add_values(cache, 1, s.y + r * y_stride, y_stride, s.scores + r * KEYS + all, head, u + all, seen - all);
        }
    }

    for (int64_t r = 0; r < head->queries; r++) {
        float factor = 1.0f / sum_lanes(load(s.sum + r * LANES));
        for (int64_t i = 0; i < HS; i += LANES)
            store_first(head->y + r * head->y_stride + i, factor * load(s.y + r * y_stride + i), HS - i);
    }
}

/* One function for each: in one for all, the compiler would run out of registers. */
static void attend_one_f32(const CachedHead *head, float *scratch) {
    attend_queries(PYGPT_FLOAT32, 1, head, scratch);
}

static void attend_one_bf16(const CachedHead *head, float *scratch) {
    attend_queries(PYGPT_BFLOAT16, 1, head, scratch);
}

static void attend_many_f32(const CachedHead *head, float *scratch) {
    attend_queries(PYGPT_FLOAT32, MR, head, scratch);
}

static void attend_many_bf16(const CachedHead *head, float *scratch) {
    attend_queries(PYGPT_BFLOAT16, MR, head, scratch);
}

void fast_cached_attention(const CachedHead *head, float *scratch) {
    if (4 * head->queries > MR) {   // fewer are faster one by one
        (head->cache == PYGPT_FLOAT32 ? attend_many_f32 : attend_many_bf16)(head, scratch);
        return;
    }
    CachedHead one = *head;
    for (one.queries = 1; one.count < head->count + head->queries; one.count++) {
        (head->cache == PYGPT_FLOAT32 ? attend_one_f32 : attend_one_bf16)(&one, scratch);
        one.y += one.y_stride;
        one.q += one.q_stride;
    }
}

int64_t fast_cached_attention_floats(int64_t positions, int64_t HS) {
    (void)positions;
    return MR * (KEYS + whole_vectors(HS) + LANES + 1 + HS);
}
