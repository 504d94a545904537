/* The probabilities of attention, P: (B,NH,T,T), from scores that are made as in attention_forward.c, so that rows sum to 1. */
#include "../threads.h"
#include "attention_tiles.h"
#include "fast.h"
#include "vector_math.h"
#include "workspace.h"

/* P of NR queries of one head. */
static void probabilities_block(const Head *head, float *p, const float *lse, int64_t first, float *memory) {
    Sizes sizes = attention_sizes(head->HS);
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
    Sizes sizes = attention_sizes(HS);
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

void fast_attention_probabilities(float *p, const float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH,
                                  int64_t HS, float scale, int causal) {
    probabilities(PANEL_F32, p, lse, qkv, B, T, NH, HS, scale, causal);
}

void fast_attention_probabilities_bf16(float *p, const float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH,
                                       int64_t HS, float scale, int causal) {
    probabilities(bf16_attention_type(), p, lse, qkv, B, T, NH, HS, scale, causal);
}
