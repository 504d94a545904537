/* Multi-head self-attention in blocks (after Dao et al. 2022): csrc/layers/attention.c from packed panels. With
 * row t of queries q, and rows u of keys k and values v:
 *
 *   forward    s_ut = scale k_u·q_t  (causal: u ≤ t)     P_ut = exp(s_ut − lse_t)     lse_t = log Σ_u exp(s_ut)
 *              y_t = Σ_u m_ut P_ut v_u                      m: dropout's factor, 1 without dropout
 *   backward   dP_ut = v_u·dy_t      D_t = dy_t·y_t      dS_ut = scale P_ut (m_ut dP_ut − D_t)
 *              dq_t = Σ_u dS_ut k_u      dk_u = Σ_t dS_ut q_t      dv_u = Σ_t m_ut P_ut dy_t
 *
 * Scores stand with a key a row and a query a column, so that NR queries are a panel of the micro-kernel: softmax needs
 * no sum across lanes, and P and dS multiply values and keys from where they were computed. The keys go by in blocks of
 * KEYS under a block of QUERIES. Tiles in which every key comes after every query are never computed.
 *
 * In bfloat16 q, k, v and dy are rounded as they are packed, m P and dS once they are computed; s, softmax, D and dS itself
 * stay in float32.
 *
 * qkv: (B,T,3,NH,HS)   y: (B,T,NH,HS)   lse: (B,NH,T)
 */
#include <math.h>
#include <string.h>

#include "../internal.h"
#include "../threads.h"
#include "dropout_mask.h"
#include "fast.h"
#include "pack.h"
#include "shares.h"
#include "vector_math.h"
#include "workspace.h"

enum {
    PANELS = DIVIDES_WORK(512 / NR, 2),
    QUERIES = PANELS * NR,   // in a block: many, because keys and values are packed again for each
    KEYS = DIVIDES_WORK(128 / MR, 2) * MR,
    SMALL = DIVIDES_WORK(1 << 16, 0),
};

typedef struct {
    PanelType type;
    const float *q, *k, *v;   // rows of this head, stride floats apart
    int64_t stride, T, HS;
    int64_t depth;              // elements that a panel over HS has
    float scale;                // of the scores
    int causal;
    int64_t probability_row;    // of query 0 in P as (B·NH·T, T), by which dropout counts
    const Dropout *dropout;     // or NULL
} Head;

static Head head_of(PanelType type, const float *qkv, int64_t b, int64_t h, int64_t T, int64_t NH, int64_t HS,
                    float scale, int causal, const Dropout *dropout) {
    int64_t C = NH * HS;
    const float *q = qkv + b * T * 3 * C + h * HS;
    return (Head){type,
                  q,
                  q + C,
                  q + 2 * C,
                  3 * C,
                  T,
                  HS,
                  divide_up(HS, panel_pair(type)),
                  scale,
                  causal,
                  (b * NH + h) * T,
                  dropout && dropout->p > 0.0f ? dropout : NULL};
}

static int threads_for(int64_t B, int64_t T, int64_t NH, int64_t HS) {
    return B * NH * T * T * HS > SMALL ? omp_get_max_threads() : 1;
}

static int64_t round_up(int64_t n, int64_t unit) {
    return divide_up(n, unit) * unit;
}

/* c (+)= a b for two panels of so many elements */
static void multiply_panels(const Head *head, float *c, int64_t c_stride, int accumulate, const float *a,
                            const float *b, int64_t depth, int64_t rows) {
    Microkernel *microkernel = head->type == PANEL_BF16 ? microkernel_bf16 : microkernel_f32;
    microkernel(c, c_stride, accumulate ? c : NO_START, accumulate ? c_stride : 0, a, b, depth, rows, &NOTHING_AHEAD);
}

/* Rows of x as a panel's i, HS being what is summed over. */
static void pack_row_panels(const Head *head, float *panels, const float *x, int64_t stride, int64_t rows) {
    pack_rows(head->type, panels, (Operand){x, stride, 1}, rows, head->HS);
}

static void pack_column_panels(const Head *head, float *panels, const float *x, int64_t stride, int64_t rows) {
    pack_columns(head->type, panels, (Operand){x, stride, 1}, rows, head->HS);
}

/* Channels of x as a panel's i, the rows being what is summed over. */
static void pack_channels_as_rows(const Head *head, float *panels, const float *x, int64_t stride, int64_t rows) {
    pack_rows(head->type, panels, (Operand){x, stride, 0}, head->HS, rows);
}

static void pack_channels_as_columns(const Head *head, float *panels, const float *x, int64_t stride, int64_t rows) {
    pack_columns(head->type, panels, (Operand){x, stride, 0}, head->HS, rows);
}

/* tile (keys,NR) = row panels of keys times a column panel, summed over HS */
static void multiply_keys(const Head *head, float *tile, const float *row_panels, const float *column_panel,
                          int64_t keys) {
    for (int64_t i = 0; i < keys; i += MR) {
        multiply_panels(head, tile + i * NR, NR, 0, row_panels + i * head->depth, column_panel, head->depth,
                        min64(MR, keys - i));
    }
}

/* sums (HS,NR) (+)= channels of a block of keys times tile, of which the first n keys count. In float32 a tile is a panel as
 * it is; pairs: place for one of another type. */
static void multiply_channels(const Head *head, float *sums, int accumulate, const float *channel_panels, int64_t keys,
                              const float *tile, int64_t n, float *pairs) {
    int64_t pair = panel_pair(head->type), depth = divide_up(keys, pair);
    if (head->type != PANEL_F32) {
        pack_columns(head->type, pairs, (Operand){tile, NR, 0}, NR, n);
        tile = pairs;
    }
    for (int64_t c = 0; c < head->HS; c += MR) {
        multiply_panels(head, sums + c * NR, NR, accumulate, channel_panels + c * depth, tile, divide_up(n, pair),
                        min64(MR, head->HS - c));
    }
}

/* y_t = column t of sums (HS,NR), for so many queries */
static void store_columns(float *y, int64_t stride, const float *sums, int64_t HS, int64_t queries) {
    for (int64_t t = 0; t < queries; t += LANES) {
        for (int64_t c = 0; c < HS; c += LANES) {
            Floats block[LANES];
            for (int i = 0; i < LANES; i++) block[i] = load(sums + (c + i) * NR + t);
            transpose(block);
            for (int i = 0; i < LANES && t + i < queries; i++) {
                store_first(y + (t + i) * stride + c, block[i], HS - c);
            }
        }
    }
}

/* Queries up to `end` look at the keys before this one. */
static int64_t end_of_keys(const Head *head, int64_t end) {
    return head->causal ? end : head->T;
}

/* Keys that at least one of NR queries, from `query` on, may look at, of a block of keys from `key` on. */
static int64_t visible_keys(const Head *head, int64_t query, int64_t key, int64_t keys) {
    return head->causal ? min64(keys, min64(query + NR, head->T) - key) : keys;
}

/* Of so many keys from `key` on, those that all of LANES queries from `query` on may look at, and those that one may. */
typedef struct {
    int64_t all, any;
} Seen;

static Seen keys_seen(const Head *head, int64_t query, int64_t key, int64_t keys) {
    if (!head->causal) return (Seen){keys, keys};
    int64_t first = query + 1 - key;   // that query's own
    return (Seen){max64(min64(first, keys), 0), max64(min64(first + LANES - 1, keys), 0)};
}

/* −inf, or what is given, where a key comes after the query of its lane */
INLINE Floats mask_future(Floats score, Words query, int64_t key, float masked) {
    return choose((Ints)(query < (uint32_t)key), broadcast(masked), score);
}

/* factors (keys,NR): those of dropout for keys from `key` on and queries from `query` on. In P as (B·NH·T, T) the
 * elements of one lane lie side by side, and a counter has four of them; where the first one is its counter's second,
 * third or fourth, four elements come from two successive counters. */
static void draw_factors(float *factors, const Head *head, int64_t query, int64_t key, int64_t keys) {
    for (int j = 0; j < NR; j += LANES) {
        Words low, high, phase;
        for (int lane = 0; lane < LANES; lane++) {
            uint64_t element = (uint64_t)((head->probability_row + query + j + lane) * head->T + key);
            low[lane] = (uint32_t)(element / 4);
            high[lane] = (uint32_t)(element / 4 >> 32);
            phase[lane] = (uint32_t)(element % 4);
        }
        Words word[8];   // of the counter and the next one
        philox_words(word + 4, low, high, head->dropout);
        for (int64_t i = 0; i < keys; i += 4) {
            for (int w = 0; w < 4; w++) word[w] = word[w + 4];
            low += 1u;
            high -= (Words)(low == 0u);   // a true comparison is −1
            philox_words(word + 4, low, high, head->dropout);
            for (int w = 0; w < 4 && i + w < keys; w++) {
                Words chosen = word[w];
                for (uint32_t p = 1; p < 4; p++)
                    chosen = (Words)choose((Ints)(phase == p), (Floats)word[w + p], (Floats)chosen);
                store(factors + (i + w) * NR + j, dropout_factors(chosen, head->dropout));
            }
        }
    }
}

/* A thread's memory: sizes in floats. */
typedef struct {
    int64_t queries;    // panels of QUERIES rows
    int64_t keys;       // panels of KEYS rows
    int64_t sums;       // (HS,NR) for each panel of queries
    int64_t tile;       // (KEYS,NR)
    int64_t pairs;      // (⌈KEYS/2⌉,NR): a tile in bfloat16
} Sizes;

static Sizes sizes_of(int64_t HS) {
    int64_t channels = round_up(round_up(round_up(HS, NR), MR), LANES);
    return (Sizes){QUERIES * channels, KEYS * channels, QUERIES * channels, KEYS * NR, divide_up(KEYS, 2) * NR};
}

/* ---- forward ---- */

/* x *= factor for HS rows of NR columns */
static void scale_columns(float *x, Floats factor, int64_t HS) {
    for (int64_t c = 0; c < HS; c++) store(x + c * NR, load(x + c * NR) * factor);
}

/* The scores of one panel turned into P relative to the largest score so far; sum and the earlier outputs follow. */
static void softmax(const Head *head, float *scores, float *largest, float *sum, float *outputs, int64_t query,
                    int64_t key, int64_t keys, float *factors) {
    for (int j = 0; j < NR; j += LANES) {
        Words queries = lane_numbers() + (uint32_t)(query + j);
        Seen seen = keys_seen(head, query + j, key, keys);
        Floats before = load(largest + j), now = before, total = {0};
        int64_t i;
        for (i = 0; i < seen.any; i++) {
            Floats s = load(scores + i * NR + j);
            if (i >= seen.all) s = mask_future(s, queries, key + i, -INFINITY);
            now = larger(now, s);
        }
        for (i = 0; i < seen.any; i++) {
            Floats p = vector_exp((load(scores + i * NR + j) - now) * head->scale);
            if (i >= seen.all) p = mask_future(p, queries, key + i, 0.0f);
            total += p;
            store(scores + i * NR + j, p);
        }
        for (; i < keys; i++) store(scores + i * NR + j, (Floats){0});
        store(largest + j, now);
        if (key == 0) {   // there is nothing earlier
            store(sum + j, total);
        } else if (any(now > before)) {
            Floats shrink = vector_exp((before - now) * head->scale);
            store(sum + j, load(sum + j) * shrink + total);
            scale_columns(outputs + j, shrink, head->HS);
        } else {
            store(sum + j, load(sum + j) + total);
        }
    }
    if (head->dropout) {
        draw_factors(factors, head, query, key, keys);
        for (int64_t i = 0; i < keys * NR; i += LANES) store(scores + i, load(scores + i) * load(factors + i));
    }
}

static int64_t forward_size(int64_t HS) {
    Sizes s = sizes_of(HS);
    return s.queries + 2 * s.keys + s.sums + 2 * s.tile + s.pairs + 2 * QUERIES;
}

static void forward_block(const Head *head, float *y, int64_t y_stride, float *lse, int64_t first, float *memory) {
    Sizes sizes = sizes_of(head->HS);
    float *q = memory, *k = q + sizes.queries, *v = k + sizes.keys, *outputs = v + sizes.keys;
    float *scores = outputs + sizes.sums, *factors = scores + sizes.tile;
    float *pairs = factors + sizes.tile, *largest = pairs + sizes.pairs, *sum = largest + QUERIES;
    int64_t queries = min64(QUERIES, head->T - first), end = end_of_keys(head, first + queries), stride = head->stride;

    pack_column_panels(head, q, head->q + first * stride, stride, queries);
    for (int64_t t = 0; t < QUERIES; t++) largest[t] = -INFINITY;

    for (int64_t key = 0; key < end; key += KEYS) {
        int64_t keys = min64(KEYS, end - key);
        pack_row_panels(head, k, head->k + key * stride, stride, keys);
        pack_channels_as_rows(head, v, head->v + key * stride, stride, keys);
        for (int64_t t = 0; t < queries; t += NR) {
            int64_t visible = visible_keys(head, first + t, key, keys);
            if (visible <= 0) continue;
            float *out = outputs + t * head->HS;
            multiply_keys(head, scores, k, q + t * head->depth, visible);
            softmax(head, scores, largest + t, sum + t, out, first + t, key, visible, factors);
            multiply_channels(head, out, key > 0, v, keys, scores, visible, pairs);
        }
    }

    for (int64_t t = 0; t < queries; t += NR) {
        float *out = outputs + t * head->HS;
        for (int j = 0; j < NR; j += LANES) scale_columns(out + j, 1.0f / load(sum + t + j), head->HS);
        store_columns(y + t * y_stride, y_stride, out, head->HS, min64(NR, queries - t));
    }
    for (int64_t t = 0; t < queries; t++) lse[t] = largest[t] * head->scale + logf(sum[t]);
}

static int forward_in_blocks(PanelType type, float *y, float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH,
                             int64_t HS, float scale, int causal, const Dropout *dropout) {
    int64_t size = round_up(forward_size(HS), 16), blocks = divide_up(T, QUERIES);
    int threads = threads_for(B, T, NH, HS);
    float *workspace = workspace_acquire(threads * size);
    if (!workspace) return 0;
    Share shares[threads];
    share_out(shares, threads, B * NH * blocks);
    #pragma omp parallel num_threads(threads)
    for (Portion item; (item = take_portion(shares, threads, 1)).count > 0;) {
        int64_t first = (blocks - 1 - item.first % blocks) * QUERIES;   // the largest of a head's blocks first
        int64_t b = item.first / blocks / NH, h = item.first / blocks % NH;
        Head head = head_of(type, qkv, b, h, T, NH, HS, scale, causal, dropout);
        forward_block(&head, y + (b * T + first) * NH * HS + h * HS, NH * HS, lse + (b * NH + h) * T + first, first,
                      workspace + omp_get_thread_num() * size);
    }
    workspace_release(workspace);
    return 1;
}

/* ---- backward ---- */

/* scores -> m P, dp -> dS for one panel; zeros in the rows that no query sees, to keys_padded */
static void softmax_backward(const Head *head, float *scores, float *dp, const float *lse, const float *D,
                             int64_t query, int64_t key, int64_t keys, int64_t keys_padded, float *factors) {
    if (head->dropout) draw_factors(factors, head, query, key, keys);
    for (int j = 0; j < NR; j += LANES) {
        Words queries = lane_numbers() + (uint32_t)(query + j);
        Seen seen = keys_seen(head, query + j, key, keys);
        Floats lse_t = load(lse + j), D_t = load(D + j);
        int64_t i;
        for (i = 0; i < seen.any; i++) {
            int64_t at = i * NR + j;
            Floats p = vector_exp(load(scores + at) * head->scale - lse_t), dp_i = load(dp + at);
            if (i >= seen.all) p = mask_future(p, queries, key + i, 0.0f);
            Floats p_kept = p;
            if (head->dropout) {
                dp_i *= load(factors + at);
                p_kept *= load(factors + at);
            }
            store(scores + at, p_kept);
            store(dp + at, p * (dp_i - D_t) * head->scale);
        }
        for (; i < keys_padded; i++) {
            store(scores + i * NR + j, (Floats){0});
            store(dp + i * NR + j, (Floats){0});
        }
    }
}

/* dx_u += Σ_t tile_ut x_t for some rows u, over the queries from first_query on. tiles: (KEYS,NR) for each panel of
 * queries; x: packed by channels */
static void accumulate_keys(const Head *head, float *dx, const float *tiles, const float *x, int64_t row, int64_t rows,
                            int64_t first_query, int64_t queries, float *packed) {
    int64_t pair = panel_pair(head->type), depth = divide_up(queries - first_query, pair);
    for (int64_t t = first_query; t < queries; t += NR) {
        pack_rows(head->type, packed + (t - first_query) / pair * MR, (Operand){tiles + t * KEYS + row * NR, NR, 1},
                  rows, min64(NR, queries - t));
    }
    for (int64_t c = 0; c < head->HS; c += NR) {
        const float *panel = x + c * divide_up(queries, pair) + first_query / pair * NR;
        float *dxc = dx + row * head->stride + c;
        if (c + NR <= head->HS) {
            multiply_panels(head, dxc, head->stride, 1, packed, panel, depth, rows);
            continue;
        }
        float tile[MR * NR];
        multiply_panels(head, tile, NR, 0, packed, panel, depth, rows);
        for (int64_t i = 0; i < rows; i++) {
            for (int64_t j = 0; c + j < head->HS; j++) dxc[i * head->stride + j] += tile[i * NR + j];
        }
    }
}

static int64_t backward_size(int64_t HS) {
    Sizes s = sizes_of(HS);
    return 4 * s.queries + 3 * s.keys + s.sums + 2 * PANELS * s.tile + s.tile + s.pairs + 2 * QUERIES + MR * QUERIES;
}

static void zero_rows(const Head *head, float *dx, int64_t rows) {
    for (int64_t t = 0; t < rows; t++) memset(dx + t * head->stride, 0, (size_t)head->HS * sizeof *dx);
}

/* All of one head; dq, dk, dv like head's q, k, v. */
static void backward_head(const Head *head, float *dq, float *dk, float *dv, const float *dy, const float *y,
                          int64_t y_stride, const float *lse, float *memory) {
    Sizes sizes = sizes_of(head->HS);
    float *q = memory, *dy_panels = q + sizes.queries, *q_channels = dy_panels + sizes.queries,
          *dy_channels = q_channels + sizes.queries;
    float *k = dy_channels + sizes.queries, *v = k + sizes.keys, *k_channels = v + sizes.keys,
          *dq_sums = k_channels + sizes.keys;
    float *p = dq_sums + sizes.sums, *ds = p + PANELS * sizes.tile, *factors = ds + PANELS * sizes.tile;
    float *pairs = factors + sizes.tile, *lse_block = pairs + sizes.pairs, *D = lse_block + QUERIES,
          *transposed = D + QUERIES;
    int64_t stride = head->stride, HS = head->HS;

    for (int64_t first = 0; first < head->T; first += QUERIES) {
        int64_t queries = min64(QUERIES, head->T - first), end = end_of_keys(head, first + queries);
        const float *q_block = head->q + first * stride, *dy_block = dy + first * y_stride;
        if (head->causal || first == 0) {   // keys that no earlier query has seen
            zero_rows(head, dk + first * stride, end - first);
            zero_rows(head, dv + first * stride, end - first);
        }
        pack_column_panels(head, q, q_block, stride, queries);
        pack_column_panels(head, dy_panels, dy_block, y_stride, queries);
        pack_channels_as_columns(head, q_channels, q_block, stride, queries);
        pack_channels_as_columns(head, dy_channels, dy_block, y_stride, queries);
        for (int64_t t = 0; t < round_up(queries, NR); t++) {
            Floats sum = {0};
            for (int64_t c = 0; c < HS && t < queries; c += LANES) {
                int64_t at = (first + t) * y_stride + c;
                Floats dy_t = load_first(dy + at, HS - c);   // as dP has it
                if (head->type == PANEL_BF16) dy_t = round_bf16(dy_t);
                sum += dy_t * load_first(y + at, HS - c);
            }
            D[t] = sum_lanes(sum);
            lse_block[t] = t < queries ? lse[first + t] : INFINITY;   // P = 0 where there is no query
        }

        for (int64_t key = 0; key < end; key += KEYS) {
            int64_t keys = min64(KEYS, end - key),
                    first_query[KEYS / MR];   // of the first panel that sees a row panel's keys
            pack_row_panels(head, k, head->k + key * stride, stride, keys);
            pack_row_panels(head, v, head->v + key * stride, stride, keys);
            pack_channels_as_rows(head, k_channels, head->k + key * stride, stride, keys);
            for (int64_t t = round_up(queries, NR) - NR; t >= 0; t -= NR) {
                int64_t visible = visible_keys(head, first + t, key, keys);
                if (visible <= 0) break;
                float *p_tile = p + t * KEYS, *ds_tile = ds + t * KEYS;
                multiply_keys(head, p_tile, k, q + t * head->depth, visible);
                multiply_keys(head, ds_tile, v, dy_panels + t * head->depth, visible);
                softmax_backward(head, p_tile, ds_tile, lse_block + t, D + t, first + t, key, visible,
                                 min64(round_up(visible, MR), keys), factors);
                multiply_channels(head, dq_sums + t * HS, key > 0, k_channels, keys, ds_tile, visible, pairs);
                for (int64_t row = 0; row < visible; row += MR) first_query[row / MR] = t;
            }
            for (int64_t row = 0; row < keys; row += MR) {
                int64_t rows = min64(MR, keys - row), from = first_query[row / MR];
                accumulate_keys(head, dv + key * stride, p, dy_channels, row, rows, from, queries, transposed);
                accumulate_keys(head, dk + key * stride, ds, q_channels, row, rows, from, queries, transposed);
            }
        }
        for (int64_t t = 0; t < queries; t += NR) {
            store_columns(dq + (first + t) * stride, stride, dq_sums + t * HS, HS, min64(NR, queries - t));
        }
    }
}

static int backward_in_blocks(PanelType type, float *dqkv, const float *dy, const float *y, const float *lse,
                              const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal,
                              const Dropout *dropout) {
    int64_t size = round_up(backward_size(HS), 16);
    int threads = threads_for(B, T, NH, HS);
    float *workspace = workspace_acquire(threads * size);
    if (!workspace) return 0;
    Share shares[threads];
    share_out(shares, threads, B * NH);
    #pragma omp parallel num_threads(threads)
    for (Portion item; (item = take_portion(shares, threads, 1)).count > 0;) {
        int64_t b = item.first / NH, h = item.first % NH;
        Head head = head_of(type, qkv, b, h, T, NH, HS, scale, causal, dropout);
        int64_t at = b * T * NH * HS + h * HS;
        float *dq = dqkv + (head.q - qkv), *dk = dqkv + (head.k - qkv), *dv = dqkv + (head.v - qkv);
        backward_head(&head, dq, dk, dv, dy + at, y + at, NH * HS, lse + item.first * T,
                      workspace + omp_get_thread_num() * size);
    }
    workspace_release(workspace);
    return 1;
}

/* ---- probabilities ---- */

/* P of NR queries of one head, from scores that are made as in the forward pass, so that its rows sum to 1. */
static void probabilities_block(const Head *head, float *p, const float *lse, int64_t first, float *memory) {
    Sizes sizes = sizes_of(head->HS);
    float *q = memory, *k = q + sizes.queries, *tile = k + sizes.keys;
    int64_t queries = min64(NR, head->T - first);
    pack_column_panels(head, q, head->q + first * head->stride, head->stride, queries);
    for (int64_t key = 0; key < head->T; key += KEYS) {
        int64_t keys = min64(KEYS, head->T - key);
        pack_row_panels(head, k, head->k + key * head->stride, head->stride, keys);
        multiply_keys(head, tile, k, q, keys);
        for (int j = 0; j < NR; j += LANES) {
            Words last = lane_numbers() + (uint32_t)(head->causal ? first + j : head->T);   // key that is seen
            Floats lse_t = load_first(lse + first + j, queries - j);
            for (int64_t i = 0; i < keys; i++) {
                Floats s = load(tile + i * NR + j);
                store(tile + i * NR + j, mask_future(vector_exp(s * head->scale - lse_t), last, key + i, 0.0f));
            }
        }
        store_columns(p + first * head->T + key, head->T, tile, keys, queries);
    }
}

static void probabilities(PanelType type, float *p, const float *lse, const float *qkv, int64_t B, int64_t T,
                          int64_t NH, int64_t HS, float scale, int causal) {
    Sizes sizes = sizes_of(HS);
    int64_t size = sizes.queries + sizes.keys + round_up(KEYS, LANES) * NR;
    float *workspace = workspace_acquire(omp_get_max_threads() * size);
    if (!workspace) {
        attention_probabilities(p, lse, qkv, B, T, NH, HS, scale, causal);
        return;
    }
    #pragma omp parallel for
    for (int64_t bh = 0; bh < B * NH; bh++) {
        Head head = head_of(type, qkv, bh / NH, bh % NH, T, NH, HS, scale, causal, NULL);
        for (int64_t first = 0; first < T; first += NR) {
            probabilities_block(&head, p + bh * T * T, lse + bh * T, first, workspace + omp_get_thread_num() * size);
        }
    }
    workspace_release(workspace);
}

/* ---- by type ---- */

static void forward(PanelType type, float *y, float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH,
                    int64_t HS, float scale, int causal, const Dropout *dropout) {
    if (!forward_in_blocks(type, y, lse, qkv, B, T, NH, HS, scale, causal, dropout))
        attention_forward(y, lse, qkv, B, T, NH, HS, scale, causal, dropout);
}

static void backward(PanelType type, float *dqkv, const float *dy, const float *y, const float *lse, const float *qkv,
                     int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal, const Dropout *dropout) {
    if (!backward_in_blocks(type, dqkv, dy, y, lse, qkv, B, T, NH, HS, scale, causal, dropout))
        attention_backward(dqkv, dy, y, lse, qkv, B, T, NH, HS, scale, causal, dropout);
}

/* Rounding costs time, which only products of pairs repay. */
static PanelType bf16_type(void) {
    return panel_pair(PANEL_BF16) == 2 ? PANEL_BF16 : PANEL_F32;
}

void fast_attention_forward(float *y, float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                            float scale, int causal, const Dropout *dropout) {
    forward(PANEL_F32, y, lse, qkv, B, T, NH, HS, scale, causal, dropout);
}

void fast_attention_forward_bf16(float *y, float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                                 float scale, int causal, const Dropout *dropout) {
    forward(bf16_type(), y, lse, qkv, B, T, NH, HS, scale, causal, dropout);
}

void fast_attention_backward(float *dqkv, const float *dy, const float *y, const float *lse, const float *qkv,
                             int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal,
                             const Dropout *dropout) {
    backward(PANEL_F32, dqkv, dy, y, lse, qkv, B, T, NH, HS, scale, causal, dropout);
}

void fast_attention_backward_bf16(float *dqkv, const float *dy, const float *y, const float *lse, const float *qkv,
                                  int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal,
                                  const Dropout *dropout) {
    backward(bf16_type(), dqkv, dy, y, lse, qkv, B, T, NH, HS, scale, causal, dropout);
}

void fast_attention_probabilities(float *p, const float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH,
                                  int64_t HS, float scale, int causal) {
    probabilities(PANEL_F32, p, lse, qkv, B, T, NH, HS, scale, causal);
}

void fast_attention_probabilities_bf16(float *p, const float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH,
                                       int64_t HS, float scale, int causal) {
    probabilities(bf16_type(), p, lse, qkv, B, T, NH, HS, scale, causal);
}
