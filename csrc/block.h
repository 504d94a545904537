/* What the passes over a block need, those in gpt2.c and those in post_norm.c. */
#ifndef PYGPT_BLOCK_H
#define PYGPT_BLOCK_H

#include "model.h"
#include "sites.h"

void post_norm_forward(GPT2 *m, int64_t layer);
void post_norm_backward(GPT2 *m, int64_t layer);

static inline Dropout dropout_at(const GPT2 *m, float p, int site, int64_t layer) {
    Dropout dropout = m->dropout;
    dropout.p = m->training ? p : 0.0f;
    dropout.site = dropout_site(site, layer);
    return dropout;
}

typedef struct {
    Dropout attention, attention_branch, feed_forward_branch;
} BlockDropouts;

static inline BlockDropouts block_dropouts(const GPT2 *m, int64_t layer) {
    return (BlockDropouts){dropout_at(m, m->config.attn_pdrop, SITE_ATTENTION, layer),
                           dropout_at(m, m->config.resid_pdrop, SITE_ATTENTION_BRANCH, layer),
                           dropout_at(m, m->config.resid_pdrop, SITE_FEED_FORWARD_BRANCH, layer)};
}

/* The queries and keys turned by their positions, in a model that has it so. */
static inline void turn(GPT2 *m, const BlockActivations *a) {
    int64_t NH = m->config.n_head;
    if (a->rotary) m->kernels->rotary_forward(a->rotary, a->qkv, m->B, m->T, NH, m->config.n_embd / NH);
}

/* The queries, keys and values that attention works on. */
static inline float *attended(const BlockActivations *a) {
    return a->rotary ? a->rotary : a->qkv;
}

/* For a LayerNorm that adds the only gradient its input has. */
static inline void zero(float *x, int64_t n) {
    #pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) x[i] = 0.0f;
}

#endif
