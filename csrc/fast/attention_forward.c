/* Multi-head self-attention in blocks, forward (after Dao et al. 2022): csrc/layers/attention.c from packed panels. With
 * row t of queries q, and rows u of keys k and values v:
 *
 *   s_ut = scale k_u·q_t  (causal: u ≤ t)     P_ut = exp(s_ut − lse_t)     lse_t = log Σ_u exp(s_ut)
 *   y_t = Σ_u m_ut P_ut v_u                      m: dropout's factor, 1 without dropout
 *
 * qkv: (B,T,3,NH,HS)   y: (B,T,NH,HS)   lse: (B,NH,T)
 */
#include <math.h>

#include "../threads.h"
#include "attention_tiles.h"
#include "fast.h"
#include "shares.h"
#include "vector_math.h"
#include "workspace.h"

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
    Sizes s = attention_sizes(HS);
    return s.queries + 2 * s.keys + s.sums + 2 * s.tile + s.pairs + 2 * QUERIES;
}

static void forward_block(const Head *head, float *y, int64_t y_stride, float *lse, int64_t first, float *memory) {
    Sizes sizes = attention_sizes(head->HS);
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
    int threads = attention_threads(B, T, NH, HS);
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

static void forward(PanelType type, float *y, float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH,
                    int64_t HS, float scale, int causal, const Dropout *dropout) {
    if (!forward_in_blocks(type, y, lse, qkv, B, T, NH, HS, scale, causal, dropout))
        attention_forward(y, lse, qkv, B, T, NH, HS, scale, causal, dropout);
}

void fast_attention_forward(float *y, float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                            float scale, int causal, const Dropout *dropout) {
    forward(PANEL_F32, y, lse, qkv, B, T, NH, HS, scale, causal, dropout);
}

void fast_attention_forward_bf16(float *y, float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                                 float scale, int causal, const Dropout *dropout) {
    forward(bf16_attention_type(), y, lse, qkv, B, T, NH, HS, scale, causal, dropout);
}
