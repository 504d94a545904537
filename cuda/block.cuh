/* What the passes over a block need, those in gpt2.cu and those in post_norm.cu. */
#pragma once

#include "model.cuh"

#include "../csrc/sites.h"

void post_norm_forward(GPT2 *m, int64_t layer);
void post_norm_backward(GPT2 *m, int64_t layer);

inline DropoutMask dropout_at(const GPT2 *m, float p, int site, int64_t layer) {
    return dropout_mask(m->training ? p : 0.0f, dropout_site(site, layer), &m->state->draw);
}

struct BlockDropouts {
    DropoutMask attention, attention_branch, feed_forward_branch;
};

inline BlockDropouts block_dropouts(const GPT2 *m, int64_t layer) {
    return {dropout_at(m, m->config.attn_pdrop, SITE_ATTENTION, layer),
            dropout_at(m, m->config.resid_pdrop, SITE_ATTENTION_BRANCH, layer),
            dropout_at(m, m->config.resid_pdrop, SITE_FEED_FORWARD_BRANCH, layer)};
}

inline BlockWeights block_weights(const GPT2 *m, int64_t layer) {
    return block_weights(&m->copied_weights, static_cast<float *>(m->copy), layer);
}
inline BlockActivations block_activations(const GPT2 *m, int64_t layer) {
    return block_activations(&m->activation_layout, m->activations, layer);
}

/* The queries and keys turned by their positions, in a model that has it so. */
inline void turn(GPT2 *m, const BlockActivations &a) {
    const int64_t NH = m->config.n_head;
    if (a.rotary) rotary_forward(m->queue, a.rotary, a.qkv, m->B, m->T, NH, m->config.n_embd / NH);
}

/* The queries, keys and values that attention works on. */
inline float *attended(const BlockActivations &a) {
    return a.rotary ? a.rotary : a.qkv;
}
