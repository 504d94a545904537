/* A block whose LayerNorms come after the residual connections, on the device: csrc/post_norm.c.
 *
 *   x = LayerNorm(x + attention(x))
 *   x = LayerNorm(x + feed-forward(x))
 *
 * What differs is as in gpt2.cu: a residual connection is one call with the LayerNorm behind it, and the gradient of a residual
 * branch is that of the sum, in the same memory.
 */
#include "block.cuh"

#include "../csrc/attention_scale.h"

void post_norm_forward(GPT2 *m, int64_t layer) {
    Queue &q = m->queue;
    const GPT2Config *c = &m->config;
    int64_t B = m->B, T = m->T, N = B * T, C = c->n_embd, F = c->n_inner, NH = c->n_head;
    BlockDropouts drop = block_dropouts(m, layer);
    BlockWeights w = block_weights(m, layer);
    BlockActivations a = block_activations(m, layer);
    const float *x = block_input(&m->activation_layout, m->activations, layer);

    linear_forward(q, a.qkv, x, w.c_attn_w, w.c_attn_b, N, C, 3 * C);
    turn(m, a);
    attention_forward(q, a.heads, a.lse, attended(a), B, T, NH, C / NH, attention_scale(c, layer), is_causal(c) != 0,
                      drop.attention);
    linear_forward(q, a.attn_proj, a.heads, w.attn_proj_w, w.attn_proj_b, N, C, C);
    if (a.attn_drop) dropout_forward(q, a.attn_drop, a.attn_proj, N * C, drop.attention_branch);
    residual_layernorm_forward(q, a.resid_mid, a.ln_1, a.ln_1_mean, a.ln_1_rstd, x,
                               a.attn_drop ? a.attn_drop : a.attn_proj, w.ln_1_w, w.ln_1_b, N, C,
                               c->layer_norm_epsilon);

    if (m->options.recompute == PYGPT_RECOMPUTE_CHEAP) {   // by the kernel that recompute() has: the same bits
        linear_forward(q, a.fc, a.ln_1, w.c_fc_w, w.c_fc_b, N, C, F);
        m->activation.forward(q, a.act, a.fc, N * F);
    } else {
        linear_activation_forward(q, m->activation, a.fc, a.act, a.ln_1, w.c_fc_w, w.c_fc_b, N, C, F);
    }
    linear_forward(q, a.mlp_proj, a.act, w.mlp_proj_w, w.mlp_proj_b, N, F, C);
    if (a.mlp_drop) dropout_forward(q, a.mlp_drop, a.mlp_proj, N * C, drop.feed_forward_branch);
    residual_layernorm_forward(q, a.resid_post, a.ln_2, a.ln_2_mean, a.ln_2_rstd, a.ln_1,
                               a.mlp_drop ? a.mlp_drop : a.mlp_proj, w.ln_2_w, w.ln_2_b, N, C, c->layer_norm_epsilon);
}

/* Puts what the backward pass reads, and the memory does not hold, back in its place. */
static void recompute(GPT2 *m, int64_t layer) {
    const int64_t N = m->B * m->T;
    BlockWeights w = block_weights(m, layer);
    BlockActivations a = block_activations(m, layer);

    if (m->options.recompute == PYGPT_RECOMPUTE_BLOCK) {
        post_norm_forward(m, layer);
    } else if (m->options.recompute == PYGPT_RECOMPUTE_CHEAP) {
        turn(m, a);
        layernorm_forward(m->queue, a.ln_1, a.ln_1_mean, a.ln_1_rstd, a.resid_mid, w.ln_1_w, w.ln_1_b, N,
                          m->config.n_embd, m->config.layer_norm_epsilon);
        m->activation.forward(m->queue, a.act, a.fc, N * m->config.n_inner);
    }
}

void post_norm_backward(GPT2 *m, int64_t layer) {
    Queue &q = m->queue;
    const GPT2Config *c = &m->config;
    int64_t B = m->B, T = m->T, N = B * T, C = c->n_embd, F = c->n_inner, NH = c->n_head;
    BlockDropouts drop = block_dropouts(m, layer);
    BlockWeights w = block_weights(m, layer);
    BlockWeights dw = block_weights(&m->weights, m->gradients, layer);
    BlockActivations a = block_activations(m, layer);
    BlockActivations d = block_activations(&m->activation_gradient_layout, m->activation_gradients, layer);
    const float *x = block_input(&m->activation_layout, m->activations, layer);
    float *dx = block_input(&m->activation_gradient_layout, m->activation_gradients, layer);

    recompute(m, layer);
    layernorm_backward(q, d.resid_post, dw.ln_2_w, dw.ln_2_b, nullptr, nullptr, d.ln_2, a.resid_post, w.ln_2_w,
                       a.ln_2_mean, a.ln_2_rstd, N, C);
    if (d.mlp_drop) dropout_backward(q, d.mlp_proj, d.mlp_drop, N * C, drop.feed_forward_branch);
    activation_linear_backward(q, m->activation, d.fc, d.act, dw.mlp_proj_w, dw.mlp_proj_b, d.mlp_proj, a.fc, a.act,
                               w.mlp_proj_w, N, F, C);
    linear_backward(q, d.ln_1, dw.c_fc_w, dw.c_fc_b, d.fc, a.ln_1, w.c_fc_w, N, C, F);
    residual_forward(q, d.ln_1, d.ln_1, d.resid_post, N * C);   // the sum of both ways

    layernorm_backward(q, d.resid_mid, dw.ln_1_w, dw.ln_1_b, nullptr, nullptr, d.ln_1, a.resid_mid, w.ln_1_w,
                       a.ln_1_mean, a.ln_1_rstd, N, C);
    if (d.attn_drop) dropout_backward(q, d.attn_proj, d.attn_drop, N * C, drop.attention_branch);
    linear_backward(q, d.heads, dw.attn_proj_w, dw.attn_proj_b, d.attn_proj, a.heads, w.attn_proj_w, N, C, C);
    attention_backward(q, attended(d), d.heads, a.heads, a.lse, attended(a), B, T, NH, C / NH,
                       attention_scale(c, layer), is_causal(c) != 0, drop.attention);
    if (d.rotary) rotary_backward(q, d.qkv, d.rotary, B, T, NH, C / NH);
    linear_backward(q, dx, dw.c_attn_w, dw.c_attn_b, d.qkv, x, w.c_attn_w, N, C, 3 * C);
    residual_forward(q, dx, dx, d.resid_mid, N * C);
}
