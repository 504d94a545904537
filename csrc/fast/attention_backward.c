/* Multi-head self-attention in blocks, backward: the names of attention_forward.c, and
 *
 *   dP_ut = v_u·dy_t      D_t = dy_t·y_t      dS_ut = scale P_ut (m_ut dP_ut − D_t)
 *   dq_t = Σ_u dS_ut k_u      dk_u = Σ_t dS_ut q_t      dv_u = Σ_t m_ut P_ut dy_t
 */
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "attention_tiles.h"
#include "fast.h"
#include "shares.h"
#include "vector_math.h"
#include "workspace.h"

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
    Sizes s = attention_sizes(HS);
    return 4 * s.queries + 3 * s.keys + s.sums + 2 * PANELS * s.tile + s.tile + s.pairs + 2 * QUERIES + MR * QUERIES;
}

static void zero_rows(const Head *head, float *dx, int64_t rows) {
    for (int64_t t = 0; t < rows; t++) memset(dx + t * head->stride, 0, (size_t)head->HS * sizeof *dx);
}

/* All of one head; dq, dk, dv like head's q, k, v. */
static void backward_head(const Head *head, float *dq, float *dk, float *dv, const float *dy, const float *y,
                          int64_t y_stride, const float *lse, float *memory) {
    Sizes sizes = attention_sizes(head->HS);
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
    int threads = attention_threads(B, T, NH, HS);
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

static void backward(PanelType type, float *dqkv, const float *dy, const float *y, const float *lse, const float *qkv,
                     int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal, const Dropout *dropout) {
    if (!backward_in_blocks(type, dqkv, dy, y, lse, qkv, B, T, NH, HS, scale, causal, dropout))
        attention_backward(dqkv, dy, y, lse, qkv, B, T, NH, HS, scale, causal, dropout);
}

void fast_attention_backward(float *dqkv, const float *dy, const float *y, const float *lse, const float *qkv,
                             int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal,
                             const Dropout *dropout) {
    backward(PANEL_F32, dqkv, dy, y, lse, qkv, B, T, NH, HS, scale, causal, dropout);
}

void fast_attention_backward_bf16(float *dqkv, const float *dy, const float *y, const float *lse, const float *qkv,
                                  int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal,
                                  const Dropout *dropout) {
    backward(bf16_attention_type(), dqkv, dy, y, lse, qkv, B, T, NH, HS, scale, causal, dropout);
}
