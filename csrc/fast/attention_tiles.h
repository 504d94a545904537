/* What attention's passes have in common: the parts of a head as panels of the micro-kernel, and their products, tile by tile.
 *
 * Scores stand with a key a row and a query a column, so that NR queries are a panel of the micro-kernel: softmax needs
 * no sum across lanes, and P and dS multiply values and keys from where they were computed. The keys go by in blocks of
 * KEYS under a block of QUERIES. Tiles in which every key comes after every query are never computed.
 *
 * In bfloat16 q, k, v and dy are rounded as they are packed, m P and dS once they are computed; s, softmax, D and dS itself
 * stay in float32.
 */
#ifndef PYGPT_ATTENTION_TILES_H
#define PYGPT_ATTENTION_TILES_H

#include "../internal.h"
#include "pack.h"
#include "simd.h"

enum {
    PANELS = DIVIDES_WORK(512 / NR, 2),
    QUERIES = PANELS * NR,   // in a block: many, because keys and values are packed again for each
    KEYS = DIVIDES_WORK(128 / MR, 2) * MR,
};

typedef struct {
    PanelType type;
    const float *q, *k, *v;   // rows of this head, stride floats apart
    int64_t stride, T, HS;
    int64_t depth;   // elements that a panel over HS has
    float scale;   // of the scores
    int causal;
    int64_t probability_row;   // of query 0 in P as (B·NH·T, T), by which dropout counts
    const Dropout *dropout;   // or NULL
} Head;

Head head_of(PanelType type, const float *qkv, int64_t b, int64_t h, int64_t T, int64_t NH, int64_t HS, float scale,
             int causal, const Dropout *dropout);

/* bfloat16 where it is worth the rounding: where the processor has products of pairs. */
PanelType bf16_attention_type(void);

int attention_threads(int64_t B, int64_t T, int64_t NH, int64_t HS);

static inline int64_t round_up(int64_t n, int64_t unit) {
    return divide_up(n, unit) * unit;
}

/* ---- packing: rows of x as a panel's i, HS being what is summed over; or channels of x, and its rows are summed over ---- */

void pack_row_panels(const Head *head, float *panels, const float *x, int64_t stride, int64_t rows);
void pack_column_panels(const Head *head, float *panels, const float *x, int64_t stride, int64_t rows);
void pack_channels_as_rows(const Head *head, float *panels, const float *x, int64_t stride, int64_t rows);
void pack_channels_as_columns(const Head *head, float *panels, const float *x, int64_t stride, int64_t rows);

/* ---- products ---- */

/* c (+)= a b for two panels of so many elements */
void multiply_panels(const Head *head, float *c, int64_t c_stride, int accumulate, const float *a, const float *b,
                     int64_t depth, int64_t rows);

/* tile (keys,NR) = row panels of keys times a column panel, summed over HS */
void multiply_keys(const Head *head, float *tile, const float *row_panels, const float *column_panel, int64_t keys);

/* sums (HS,NR) (+)= channels of a block of keys times tile, of which the first n keys count. In float32 a tile is a panel as
 * it is; pairs: place for one of another type. */
void multiply_channels(const Head *head, float *sums, int accumulate, const float *channel_panels, int64_t keys,
                       const float *tile, int64_t n, float *pairs);

/* y_t = column t of sums (HS,NR), for so many queries */
void store_columns(float *y, int64_t stride, const float *sums, int64_t HS, int64_t queries);

/* ---- which keys a query looks at ---- */

/* Queries up to `end` look at the keys before this one. */
static inline int64_t end_of_keys(const Head *head, int64_t end) {
    return head->causal ? end : head->T;
}

/* Keys that at least one of NR queries, from `query` on, may look at, of a block of keys from `key` on. */
static inline int64_t visible_keys(const Head *head, int64_t query, int64_t key, int64_t keys) {
    return head->causal ? min64(keys, min64(query + NR, head->T) - key) : keys;
}

/* Of so many keys from `key` on, those that all of LANES queries from `query` on may look at, and those that one may. */
typedef struct {
    int64_t all, any;
} Seen;

static inline Seen keys_seen(const Head *head, int64_t query, int64_t key, int64_t keys) {
    if (!head->causal) return (Seen){keys, keys};
    int64_t first = query + 1 - key;   // that query's own
    return (Seen){max64(min64(first, keys), 0), max64(min64(first + LANES - 1, keys), 0)};
}

/* −inf, or what is given, where a key comes after the query of its lane */
INLINE Floats mask_future(Floats score, Words query, int64_t key, float masked) {
    return choose((Ints)(query < (uint32_t)key), broadcast(masked), score);
}

/* ---- dropout ---- */

/* factors (keys,NR): those of dropout for keys from `key` on and queries from `query` on. */
void draw_factors(float *factors, const Head *head, int64_t query, int64_t key, int64_t keys);

/* ---- memory ---- */

/* A thread's: sizes in floats. */
typedef struct {
    int64_t queries;   // panels of QUERIES rows
    int64_t keys;   // panels of KEYS rows
    int64_t sums;   // (HS,NR) for each panel of queries
    int64_t tile;   // (KEYS,NR)
    int64_t pairs;   // (⌈KEYS/2⌉,NR): a tile in bfloat16
} Sizes;

Sizes attention_sizes(int64_t HS);

#endif
