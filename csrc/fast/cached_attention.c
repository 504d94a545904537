/* Attention to the keys and values of a cache, csrc/layers/generation.c in vectors, in blocks of keys with a running softmax:
 *
 *   s_u = q·k_u                 keys beside each other in the lanes, i ascending in the sums
 *   P_u = 2^(scale s_u − m)     m: the largest scale s so far, rounded up; sum and y so far are multiplied by 2^(m before − m)
 *   y += P_u v_u                channels beside each other, u ascending
 *
 * Keys lie in panels of NR, (elements,NR) each, values as (elements,HS). An element is a number, but where the processor
 * multiplies pairs of bfloat16, and the cache is in bfloat16, two: channels i and i + 1 of a key, or positions u and u + 1 of a
 * channel. A query that looks at the first of two positions only takes zero for the other's value. With such a cache q and P are
 * rounded as well.
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
    float *scores;   // (queries,KEYS), which become P, as elements that values are multiplied by
    float *y;   // (queries,y_stride)
    float *sum;   // (queries,LANES): of P, lane by lane
    float *largest;   // m
} Softmax;

/* ---- the cache ---- */

int64_t fast_cached_numbers(int cache, int64_t positions, int64_t HS) {
    int64_t pair = pair_of(panel_type(cache));
    return checked_mul(divide_up(positions, NR) * NR, divide_up(HS, pair) * pair);
}

/* LANES numbers rounded to bfloat16, or n and zeros. A NaN stays one, as computed ones have a bit in the half that stays. */
INLINE void to_halves(uint32_t half[LANES], const float *x, int64_t n) {
    Words bits = (Words)round_bf16(load_first(x, n)) >> 16;
    memcpy(half, &bits, sizeof bits);
}

void fast_cache_row(const CachedHead *head, int64_t u, const float *k, const float *v) {
    int64_t HS = head->HS;
    if (head->cache == PYGPT_FLOAT32) {
        float *key = (float *)head->keys + u / NR * NR * HS + u % NR, *value = (float *)head->values + u * HS;
        for (int64_t i = 0; i < HS; i++) key[i * NR] = k[i];
        for (int64_t i = 0; i < HS; i++) value[i] = v[i];
        return;
    }
    enum { PAIR = BF16_PAIR };
    int64_t channels = divide_up(HS, PAIR) * PAIR;
    uint16_t *key = (uint16_t *)head->keys + u / NR * NR * channels + u % NR * PAIR;
    uint16_t *value = (uint16_t *)head->values + u / PAIR * PAIR * HS + u % PAIR;
    for (int64_t i = 0; i < HS; i += LANES) {
        uint32_t half_k[LANES], half_v[LANES];
        to_halves(half_k, k + i, HS - i);
        to_halves(half_v, v + i, HS - i);
        for (int64_t j = i; j < min64(i + LANES, HS); j++) {
            key[j / PAIR * PAIR * NR + j % PAIR] = (uint16_t)half_k[j - i];
            value[j * PAIR] = (uint16_t)half_v[j - i];
        }
    }
    if (HS < channels) key[HS / PAIR * PAIR * NR + 1] = 0;
}

/* The first n lanes of what is at element i of the cache. */
INLINE Floats load_cached(PanelType type, const void *elements, int64_t i, int64_t n) {
    if (type == PANEL_F32 || BF16_PAIR == 2) return load_first((const float *)elements + i, n);
    const uint16_t *from = (const uint16_t *)elements + i;
    if (n >= LANES) return load_bf16(from);
    uint16_t halves[LANES] = {0};
    if (n > 0) memcpy(halves, from, (size_t)n * sizeof *from);
    return load_bf16(halves);
}

INLINE Floats step_element(PanelType type, Floats sum, float a, Floats b) {
    return type == PANEL_F32 ? step_f32(sum, a, b) : step_bf16(sum, a, b);
}

/* ---- scores ---- */

/* type, rows and panels are constants wherever these are inlined, so that the sums are in registers. Panels of keys from the
 * one at key u on. q: (elements,rows) */
INLINE void score_panels(PanelType type, int rows, int panels, float *scores, const float *q, const CachedHead *head,
                         int64_t u) {
    int64_t elements = divide_up(head->HS, pair_of(type));
    Floats sum[MR][ALONE * VECTORS];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int j = 0; j < panels * VECTORS; j++) sum[r][j] = (Floats){0};
    }
    for (int64_t i = 0; i < elements; i++) {
        Floats k[ALONE * VECTORS];
        UNROLL
        for (int j = 0; j < panels * VECTORS; j++)
            k[j] = load_cached(type, head->keys, u * elements + (j / VECTORS * elements + i) * NR + j % VECTORS * LANES,
                               LANES);
        UNROLL
        for (int r = 0; r < rows; r++) {
            UNROLL
            for (int j = 0; j < panels * VECTORS; j++) sum[r][j] = step_element(type, sum[r][j], q[i * rows + r], k[j]);
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int j = 0; j < panels * VECTORS; j++) store(scores + r * KEYS + j * LANES, sum[r][j]);
    }
}

/* Of a block of keys from u on; those up to the end of a panel, too. */
INLINE void score_block(PanelType type, int rows, float *scores, const float *q, const CachedHead *head, int64_t u,
                        int64_t keys) {
    int panels = rows == 1 ? ALONE : 1;
    int64_t k = 0;
    for (; k + panels * NR <= keys; k += panels * NR) score_panels(type, rows, panels, scores + k, q, head, u + k);
    for (; k < keys; k += NR) score_panels(type, rows, 1, scores + k, q, head, u + k);
}

/* ---- values ---- */

/* The keys of one element, from key u on; half: of two keys only the first. */
INLINE void add_element(PanelType type, int rows, int vectors, Floats sum[MR][ALONE], const float *p,
                        const CachedHead *head, int64_t u, int64_t i, int64_t channels, int half) {
    int64_t at = u / pair_of(type) * head->HS + i;
    Floats v[ALONE];
    UNROLL
    for (int j = 0; j < vectors; j++) {
        v[j] = load_cached(type, head->values, at + j * LANES, channels - j * LANES);
        if (half) v[j] = (Floats)((Words)v[j] & 0xFFFFu);
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int j = 0; j < vectors; j++) sum[r][j] = step_element(type, sum[r][j], p[r * KEYS], v[j]);
    }
}

/* Vectors of channels from i on, `channels` channels in all. y and p: of the first row; p: at key u, the first of its element. */
INLINE void add_vectors(PanelType type, int rows, int vectors, float *y, int64_t y_stride, const float *p,
                        const CachedHead *head, int64_t u, int64_t keys, int64_t i, int64_t channels) {
    Floats sum[MR][ALONE];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int j = 0; j < vectors; j++) sum[r][j] = load(y + r * y_stride + i + j * LANES);
    }
    int64_t pair = pair_of(type), k = 0;
    for (; k + pair <= keys; k += pair)
        add_element(type, rows, vectors, sum, p + k / pair, head, u + k, i, channels, 0);
    if (rows == 1 && k < keys) add_element(type, 1, vectors, sum, p + k / pair, head, u + k, i, channels, 1);
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int j = 0; j < vectors; j++) store(y + r * y_stride + i + j * LANES, sum[r][j]);
    }
}

/* For many rows, keys of whole elements. */
INLINE void add_values(PanelType type, int rows, float *y, int64_t y_stride, const float *p, const CachedHead *head,
                       int64_t u, int64_t keys) {
    int vectors = rows == 1 ? ALONE : VECTORS;
    int64_t i = 0;
    for (; i + vectors * LANES <= head->HS; i += vectors * LANES)
        add_vectors(type, rows, vectors, y, y_stride, p, head, u, keys, i, vectors * LANES);
    for (; i < head->HS; i += LANES) add_vectors(type, rows, 1, y, y_stride, p, head, u, keys, i, head->HS - i);
}

/* ---- softmax ---- */

/* The scores of query r and some keys become P. */
INLINE void exponentials(PanelType type, const Softmax *s, int64_t r, int64_t y_stride, int64_t keys, float scale) {
    float *scores = s->scores + r * KEYS, *y = s->y + r * y_stride;
    int64_t pair = pair_of(type), at_once = pair * LANES;
    for (int64_t u = keys; u < divide_up(keys, at_once) * at_once; u++) scores[u] = -INFINITY;
    Floats largest = broadcast(-INFINITY);
    for (int64_t u = 0; u < keys; u += LANES) largest = larger(load(scores + u), largest);
    float now = ceilf(max_lanes(largest) * scale);
    Floats sum = load(s->sum + r * LANES);
    if (now > s->largest[r]) {
        Floats shrink = vector_exp2(broadcast(s->largest[r] - now));
        sum *= shrink;
        for (int64_t i = 0; i < y_stride; i += LANES) store(y + i, load(y + i) * shrink);
        s->largest[r] = now;
    }
    now = s->largest[r];
    for (int64_t u = 0; u < keys; u += at_once) {
        Floats p[BF16_PAIR];
        UNROLL
        for (int i = 0; i < pair; i++) {
            p[i] = vector_exp2(load(scores + u + i * LANES) * scale - now);
            sum += p[i];
        }
        store(scores + u / pair, elements_of(type, p[0], p[pair - 1]));
    }
    store(s->sum + r * LANES, sum);
}

/* ---- all of it ---- */

static int64_t whole_vectors(int64_t HS) {
    return divide_up(HS, LANES) * LANES;
}

/* Fewer queries than rows: what is computed for the others is not used. */
INLINE void attend_queries(PanelType type, int rows, const CachedHead *head, float *scratch) {
    int64_t HS = head->HS, y_stride = whole_vectors(HS), end = head->count + head->queries - 1;
    int64_t pair = pair_of(type);
    Softmax s = {.scores = scratch};
    s.y = s.scores + rows * KEYS;
    s.sum = s.y + rows * y_stride;
    s.largest = s.sum + rows * LANES;
    float *q = s.largest + rows;
    if (rows > 1)
        pack_rows(type, q, (Operand){head->q, head->q_stride, 1}, head->queries, HS);
    else
        pack_row(type, q, head->q, HS, divide_up(HS, pair));
    for (int64_t i = 0; i < rows * y_stride; i++) s.y[i] = 0.0f;
    for (int64_t i = 0; i < rows * LANES; i++) s.sum[i] = 0.0f;
    for (int64_t r = 0; r < rows; r++) s.largest[r] = -INFINITY;

    for (int64_t u = 0; u < end; u += KEYS) {
        int64_t keys = min64(KEYS, end - u), all = max64(min64(KEYS, head->count - u), 0);
        if (rows > 1) all -= all % pair;
        score_block(type, rows, s.scores, q, head, u, keys);
        for (int64_t r = 0; r < head->queries; r++) {
            int64_t seen = min64(KEYS, head->count + r - u);
            if (seen > 0) exponentials(type, &s, r, y_stride, seen, head->scale);
        }
        add_values(type, rows, s.y, y_stride, s.scores, head, u, all);
        for (int64_t r = 0; r < head->queries && all < keys; r++) {   // keys that not all queries look at
            int64_t seen = min64(KEYS, head->count + r - u);
            if (seen > all)
                add_values(type, 1, s.y + r * y_stride, y_stride, s.scores + r * KEYS + all / pair, head, u + all,
                           seen - all);
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
    attend_queries(PANEL_F32, 1, head, scratch);
}

static void attend_one_bf16(const CachedHead *head, float *scratch) {
    attend_queries(PANEL_BF16, 1, head, scratch);
}

static void attend_many_f32(const CachedHead *head, float *scratch) {
    attend_queries(PANEL_F32, MR, head, scratch);
}

static void attend_many_bf16(const CachedHead *head, float *scratch) {
    attend_queries(PANEL_BF16, MR, head, scratch);
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
