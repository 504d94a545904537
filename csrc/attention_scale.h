/* By what the scores of attention are multiplied, as scale_attn_weights and scale_attn_by_inverse_layer_idx say. */
#ifndef PYGPT_ATTENTION_SCALE_H
#define PYGPT_ATTENTION_SCALE_H

#include <math.h>

#include "pygpt.h"

static inline float attention_scale(const GPT2Config *config, int64_t layer) {
    double HS = (double)(config->n_embd / config->n_head);
    double scale = config->scale_attn_weights == PYGPT_UNSCALED ? 1.0 : 1.0 / sqrt(HS);
    double divisor = config->scale_attn_by_inverse_layer_idx == PYGPT_INVERSE_LAYER ? (double)(layer + 1) : 1.0;
    return (float)(scale / divisor);
}

/* For a softmax of powers of two: exp(s) = 2^(s log2 e). */
static inline float attention_scale_of_powers(const GPT2Config *config, int64_t layer) {
    return attention_scale(config, layer) * 1.4426950408889634f;
}

#endif
