/* A block whose LayerNorms come after the residual connections, as in the first GPT (Radford et al. 2018) and in the Transformer
 * (Vaswani et al. 2017, section 3.1).
 *
 *   x = LayerNorm(x + attention(x))
 *   x = LayerNorm(x + feed-forward(x))
 *
 * So a branch's input is also what goes past it, and its gradient is the sum of both ways. The text is otherwise that of
 * the block in gpt2.c.
 */
#include "attention_scale.h"
#include "block.h"

void post_norm_forward(GPT2 *m, int64_t layer) {
    const Kernels *k = m->kernels;
    const GPT2Config *c = &m->config;
    int64_t B = m->B, T = m->T, N = B * T, C = c->n_embd, F = c->n_inner, NH = c->n_head;
    BlockDropouts drop = block_dropouts(m, layer);
    BlockWeights w = block_weights(&m->weights, m->parameters, layer);
    BlockActivations a = block_activations(&m->activation_table, m->activations, layer);
    const float *x = block_input(&m->activation_table, m->activations, layer);

    k->linear_forward(a.qkv, x, w.c_attn_w, w.c_attn_b, N, C, 3 * C);
    turn(m, &a);
    k->attention_forward(a.heads, a.lse, attended(&a), B, T, NH, C / NH, attention_scale(c, layer), is_causal(c),
                         drop.attention.p > 0.0f ? &drop.attention : NULL);
    k->linear_forward(a.attn_proj, a.heads, w.attn_proj_w, w.attn_proj_b, N, C, C);
    if (a.attn_drop) k->dropout_forward(a.attn_drop, a.attn_proj, N * C, &drop.attention_branch);
    k->residual_forward(a.resid_mid, x, a.attn_drop ? a.attn_drop : a.attn_proj, N * C);
    k->layernorm_forward(a.ln_1, a.ln_1_mean, a.ln_1_rstd, a.resid_mid, w.ln_1_w, w.ln_1_b, N, C,
                         c->layer_norm_epsilon);

    k->linear_forward(a.fc, a.ln_1, w.c_fc_w, w.c_fc_b, N, C, F);
    m->activation.forward(a.act, a.fc, N * F);
    k->linear_forward(a.mlp_proj, a.act, w.mlp_proj_w, w.mlp_proj_b, N, F, C);
    if (a.mlp_drop) k->dropout_forward(a.mlp_drop, a.mlp_proj, N * C, &drop.feed_forward_branch);
    k->residual_forward(a.resid_post, a.ln_1, a.mlp_drop ? a.mlp_drop : a.mlp_proj, N * C);
    k->layernorm_forward(a.ln_2, a.ln_2_mean, a.ln_2_rstd, a.resid_post, w.ln_2_w, w.ln_2_b, N, C,
                         c->layer_norm_epsilon);
}

/* Puts what the backward pass reads, and the memory does not hold, back in its place. */
static void recompute(GPT2 *m, int64_t layer) {
    int64_t N = m->B * m->T;
    BlockWeights w = block_weights(&m->weights, m->parameters, layer);
    BlockActivations a = block_activations(&m->activation_table, m->activations, layer);

    if (m->options.recompute == PYGPT_RECOMPUTE_BLOCK) {
        post_norm_forward(m, layer);
    } else if (m->options.recompute == PYGPT_RECOMPUTE_CHEAP) {
        turn(m, &a);
        m->kernels->layernorm_forward(a.ln_1, a.ln_1_mean, a.ln_1_rstd, a.resid_mid, w.ln_1_w, w.ln_1_b, N,
                                      m->config.n_embd, m->config.layer_norm_epsilon);
        m->activation.forward(a.act, a.fc, N * m->config.n_inner);
    }
}

static void copy_gradient(float *to, const float *from, int64_t n) {
    #pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) to[i] = from[i];
}

void post_norm_backward(GPT2 *m, int64_t layer) {
    const Kernels *k = m->kernels;
    const GPT2Config *c = &m->config;
    int64_t B = m->B, T = m->T, N = B * T, C = c->n_embd, F = c->n_inner, NH = c->n_head;
    BlockDropouts drop = block_dropouts(m, layer);
    BlockWeights w = block_weights(&m->weights, m->parameters, layer);
    BlockWeights dw = block_weights(&m->weights, m->gradients, layer);
    BlockActivations a = block_activations(&m->activation_table, m->activations, layer);
    BlockActivations d = block_activations(&m->activation_gradient_table, m->activation_gradients, layer);
    const float *x = block_input(&m->activation_table, m->activations, layer);
    float *dx = block_input(&m->activation_gradient_table, m->activation_gradients, layer);

    recompute(m, layer);
    zero(d.resid_post, N * C);
    k->layernorm_backward(d.resid_post, dw.ln_2_w, dw.ln_2_b, d.ln_2, a.resid_post, w.ln_2_w, a.ln_2_mean, a.ln_2_rstd,
                          N, C);
    copy_gradient(d.mlp_drop ? d.mlp_drop : d.mlp_proj, d.resid_post, N * C);
    if (d.mlp_drop) k->dropout_backward(d.mlp_proj, d.mlp_drop, N * C, &drop.feed_forward_branch);
    k->linear_backward(d.act, dw.mlp_proj_w, dw.mlp_proj_b, d.mlp_proj, a.act, w.mlp_proj_w, N, F, C);
    m->activation.backward(d.fc, d.act, a.fc, N * F);
    k->linear_backward(d.ln_1, dw.c_fc_w, dw.c_fc_b, d.fc, a.ln_1, w.c_fc_w, N, C, F);
    k->residual_forward(d.ln_1, d.ln_1, d.resid_post, N * C);   // the sum of both ways

    zero(d.resid_mid, N * C);
    k->layernorm_backward(d.resid_mid, dw.ln_1_w, dw.ln_1_b, d.ln_1, a.resid_mid, w.ln_1_w, a.ln_1_mean, a.ln_1_rstd, N,
                          C);
    copy_gradient(d.attn_drop ? d.attn_drop : d.attn_proj, d.resid_mid, N * C);
    if (d.attn_drop) k->dropout_backward(d.attn_proj, d.attn_drop, N * C, &drop.attention_branch);
    k->linear_backward(d.heads, dw.attn_proj_w, dw.attn_proj_b, d.attn_proj, a.heads, w.attn_proj_w, N, C, C);
    k->attention_backward(attended(&d), d.heads, a.heads, a.lse, attended(&a), B, T, NH, C / NH,
                          attention_scale(c, layer), is_causal(c), drop.attention.p > 0.0f ? &drop.attention : NULL);
    if (d.rotary) k->rotary_backward(d.qkv, d.rotary, B, T, NH, C / NH);
    k->linear_backward(dx, dw.c_attn_w, dw.c_attn_b, d.qkv, x, w.c_attn_w, N, C, 3 * C);
    k->residual_forward(dx, dx, d.resid_mid, N * C);
}
