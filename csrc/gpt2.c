/* GPT-2, forward and backward (Radford et al. 2019).
 *
 *   x = wte[token] + wpe[position]
 *   L times    x = x + attention(LayerNorm(x))
 *              x = x + feed-forward(LayerNorm(x))
 *   logits = LayerNorm(x) headᵀ      head = wte unless it has its own
 *
 * A model with its LayerNorms after the residual connections has the blocks of post_norm.c, and no LayerNorm behind them.
 * Each pass over a block reads from top to bottom; the layers themselves are in layers/ and fast/. Inputs and outputs are
 * named in tensors.c; `a` holds activations, `d` their gradients, `w` weights, `dw` the weights' gradients.
 */
#include "attention_scale.h"
#include "block.h"

static void embedding_pass(GPT2 *m) {
    const Kernels *k = m->kernels;
    int64_t C = m->config.n_embd;
    EmbeddingWeights w = embedding_weights(&m->weights, m->parameters);
    EmbeddingActivations a = embedding_activations(&m->activation_table, m->activations);

    k->embedding_forward(a.embd, m->tokens, w.wte, m->sinusoidal ? m->sinusoidal : w.wpe, m->B, m->T, C);
    if (a.drop) {
        Dropout dropout = dropout_at(m, m->config.embd_pdrop, SITE_EMBEDDING, 0);
        k->dropout_forward(a.drop, a.embd, m->B * m->T * C, &dropout);
    }
}

static void block_forward(GPT2 *m, int64_t layer) {
    const Kernels *k = m->kernels;
    const GPT2Config *c = &m->config;
    int64_t B = m->B, T = m->T, N = B * T, C = c->n_embd, F = c->n_inner, NH = c->n_head;
    int causal = is_causal(c);
    BlockDropouts drop = block_dropouts(m, layer);
    BlockWeights w = block_weights(&m->weights, m->parameters, layer);
    BlockActivations a = block_activations(&m->activation_table, m->activations, layer);
    const float *x = block_input(&m->activation_table, m->activations, layer);

    k->layernorm_forward(a.ln_1, a.ln_1_mean, a.ln_1_rstd, x, w.ln_1_w, w.ln_1_b, N, C, c->layer_norm_epsilon);
    k->linear_forward(a.qkv, a.ln_1, w.c_attn_w, w.c_attn_b, N, C, 3 * C);
    turn(m, &a);
    k->attention_forward(a.heads, a.lse, attended(&a), B, T, NH, C / NH, attention_scale(c, layer), causal,
                         drop.attention.p > 0.0f ? &drop.attention : NULL);
    k->linear_forward(a.attn_proj, a.heads, w.attn_proj_w, w.attn_proj_b, N, C, C);
    if (a.attn_drop) k->dropout_forward(a.attn_drop, a.attn_proj, N * C, &drop.attention_branch);
    k->residual_forward(a.resid_mid, x, a.attn_drop ? a.attn_drop : a.attn_proj, N * C);

    k->layernorm_forward(a.ln_2, a.ln_2_mean, a.ln_2_rstd, a.resid_mid, w.ln_2_w, w.ln_2_b, N, C,
                         c->layer_norm_epsilon);
    k->linear_forward(a.fc, a.ln_2, w.c_fc_w, w.c_fc_b, N, C, F);
    m->activation.forward(a.act, a.fc, N * F);
    k->linear_forward(a.mlp_proj, a.act, w.mlp_proj_w, w.mlp_proj_b, N, F, C);
    if (a.mlp_drop) k->dropout_forward(a.mlp_drop, a.mlp_proj, N * C, &drop.feed_forward_branch);
    k->residual_forward(a.resid_post, a.resid_mid, a.mlp_drop ? a.mlp_drop : a.mlp_proj, N * C);
}

/* Puts what the backward pass of a block reads, and the memory does not hold, back in its place. */
static void block_recompute(GPT2 *m, int64_t layer) {
    const Kernels *k = m->kernels;
    int64_t N = m->B * m->T, C = m->config.n_embd;
    float eps = m->config.layer_norm_epsilon;
    BlockWeights w = block_weights(&m->weights, m->parameters, layer);
    BlockActivations a = block_activations(&m->activation_table, m->activations, layer);
    const float *x = block_input(&m->activation_table, m->activations, layer);

    if (m->options.recompute == PYGPT_RECOMPUTE_BLOCK) {
        block_forward(m, layer);
    } else if (m->options.recompute == PYGPT_RECOMPUTE_CHEAP) {
        k->layernorm_forward(a.ln_1, a.ln_1_mean, a.ln_1_rstd, x, w.ln_1_w, w.ln_1_b, N, C, eps);
        turn(m, &a);
        k->layernorm_forward(a.ln_2, a.ln_2_mean, a.ln_2_rstd, a.resid_mid, w.ln_2_w, w.ln_2_b, N, C, eps);
        m->activation.forward(a.act, a.fc, N * m->config.n_inner);
    }
}

static void block_backward(GPT2 *m, int64_t layer) {
    const Kernels *k = m->kernels;
    const GPT2Config *c = &m->config;
    int64_t B = m->B, T = m->T, N = B * T, C = c->n_embd, F = c->n_inner, NH = c->n_head;
    int causal = is_causal(c);
    BlockDropouts drop = block_dropouts(m, layer);
    BlockWeights w = block_weights(&m->weights, m->parameters, layer);
    BlockWeights dw = block_weights(&m->weights, m->gradients, layer);
    BlockActivations a = block_activations(&m->activation_table, m->activations, layer);
    BlockActivations d = block_activations(&m->activation_gradient_table, m->activation_gradients, layer);
    const float *x = block_input(&m->activation_table, m->activations, layer);
    float *dx = block_input(&m->activation_gradient_table, m->activation_gradients, layer);

    float *d_mlp_branch = d.mlp_drop ? d.mlp_drop : d.mlp_proj,
          *d_attn_branch = d.attn_drop ? d.attn_drop : d.attn_proj;

    k->residual_backward(d.resid_mid, d_mlp_branch, d.resid_post, N * C);
    if (d.mlp_drop) k->dropout_backward(d.mlp_proj, d.mlp_drop, N * C, &drop.feed_forward_branch);
    k->linear_backward(d.act, dw.mlp_proj_w, dw.mlp_proj_b, d.mlp_proj, a.act, w.mlp_proj_w, N, F, C);
    m->activation.backward(d.fc, d.act, a.fc, N * F);
    k->linear_backward(d.ln_2, dw.c_fc_w, dw.c_fc_b, d.fc, a.ln_2, w.c_fc_w, N, C, F);
    k->layernorm_backward(d.resid_mid, dw.ln_2_w, dw.ln_2_b, d.ln_2, a.resid_mid, w.ln_2_w, a.ln_2_mean, a.ln_2_rstd, N,
                          C);

    k->residual_backward(dx, d_attn_branch, d.resid_mid, N * C);
    if (d.attn_drop) k->dropout_backward(d.attn_proj, d.attn_drop, N * C, &drop.attention_branch);
    k->linear_backward(d.heads, dw.attn_proj_w, dw.attn_proj_b, d.attn_proj, a.heads, w.attn_proj_w, N, C, C);
    k->attention_backward(attended(&d), d.heads, a.heads, a.lse, attended(&a), B, T, NH, C / NH,
                          attention_scale(c, layer), causal, drop.attention.p > 0.0f ? &drop.attention : NULL);
    if (d.rotary) k->rotary_backward(d.qkv, d.rotary, B, T, NH, C / NH);
    k->linear_backward(d.ln_1, dw.c_attn_w, dw.c_attn_b, d.qkv, a.ln_1, w.c_attn_w, N, C, 3 * C);
    k->layernorm_backward(dx, dw.ln_1_w, dw.ln_1_b, d.ln_1, x, w.ln_1_w, a.ln_1_mean, a.ln_1_rstd, N, C);
}

static void embedding_backward_pass(GPT2 *m) {
    const Kernels *k = m->kernels;
    int64_t C = m->config.n_embd, n = m->B * m->T * C;
    EmbeddingWeights dw = embedding_weights(&m->weights, m->gradients);
    EmbeddingActivations d = embedding_activations(&m->activation_gradient_table, m->activation_gradients);

    if (d.drop) {
        Dropout dropout = dropout_at(m, m->config.embd_pdrop, SITE_EMBEDDING, 0);
        k->dropout_backward(d.embd, d.drop, n, &dropout);
    }
    k->embedding_backward(dw.wte, dw.wpe, d.embd, m->tokens, m->B, m->T, C);
}

/* Everything up to the head. */
static void body_forward(GPT2 *m) {
    int64_t C = m->config.n_embd;
    embedding_pass(m);
    for (int64_t layer = 0; layer < m->config.n_layer; layer++)
        is_post_norm(&m->config) ? post_norm_forward(m, layer) : block_forward(m, layer);

    FinalWeights w = final_weights(&m->weights, m->parameters);
    FinalActivations a = final_activations(&m->activation_table, m->activations);
    const float *x = block_input(&m->activation_table, m->activations, m->config.n_layer);
    if (a.ln_f)
        m->kernels->layernorm_forward(a.ln_f, a.ln_f_mean, a.ln_f_rstd, x, w.ln_f_w, w.ln_f_b, m->B * m->T, C,
                                      m->config.layer_norm_epsilon);
}

static float mean_loss(const GPT2 *m) {
    const float *losses = final_activations(&m->activation_table, m->activations).losses;
    double sum = 0.0;
    for (int64_t n = 0; n < m->B * m->T; n++) sum += losses[n];   // those of negative targets are 0
    return m->counted ? (float)(sum / (double)m->counted) : 0.0f;
}

/* For threads that use the gradients of one part while others are computed. */
static void finish_part(GPT2 *m) {
    __atomic_fetch_add(&m->finished, 1, __ATOMIC_RELEASE);
}

int64_t gpt2_finished(const GPT2 *m) {
    return __atomic_load_n(&m->finished, __ATOMIC_ACQUIRE);
}

/* Everything from the losses back to the parameters. */
static void whole_backward(GPT2 *m, float scale) {
    int64_t N = m->B * m->T, C = m->config.n_embd, L = m->config.n_layer;
    const float *head = head_weights(&m->weights, m->parameters);
    float *dhead = head_weights(&m->weights, m->gradients);
    FinalWeights w = final_weights(&m->weights, m->parameters), dw = final_weights(&m->weights, m->gradients);
    FinalActivations a = final_activations(&m->activation_table, m->activations);
    FinalActivations d = final_activations(&m->activation_gradient_table, m->activation_gradients);
    const float *x = block_input(&m->activation_table, m->activations, L);
    float *dx = block_input(&m->activation_gradient_table, m->activation_gradients, L);

    for (int64_t n = 0; n < N; n++) d.losses[n] = m->counted ? scale / (float)m->counted : 0.0f;
    classifier_backward(m->kernels, a.losses, head_input(&m->activation_gradient_table, m->activation_gradients), dhead,
                        d.losses, head_input(&m->activation_table, m->activations), head, m->targets, m->logits,
                        head_rows(&m->config, N), N, C, m->config.vocab_size);
    if (d.ln_f) {
        zero(dx, N * C);
        m->kernels->layernorm_backward(dx, dw.ln_f_w, dw.ln_f_b, d.ln_f, x, w.ln_f_w, a.ln_f_mean, a.ln_f_rstd, N, C);
    }
    finish_part(m);
    for (int64_t layer = L - 1; layer >= 0; layer--) {
        if (is_post_norm(&m->config)) {
            post_norm_backward(m, layer);
        } else {
            block_recompute(m, layer);
            block_backward(m, layer);
        }
        finish_part(m);
    }
    embedding_backward_pass(m);
    finish_part(m);
    m->went_back = 1;
    m->summed_loss += (double)scale * mean_loss(m);
}

static int check_tokens(const GPT2 *m, const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T) {
    int64_t V = m->config.vocab_size;
    for (int64_t n = 0; n < B * T; n++) {
        if (tokens[n] < 0 || tokens[n] >= V) return fail_token(tokens[n], n, T, V);
        if (targets && targets[n] >= V) return fail_target(targets[n], n, T, V);
    }
    return PYGPT_OK;
}

/* Checks the arguments, makes room, and keeps what the backward pass will ask for. */
static int begin(GPT2 *m, const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T, const Dropout *dropout) {
    int status = check_tokens_shape(&m->config, B, T);
    if (status == PYGPT_OK) status = check_tokens(m, tokens, targets, B, T);
    if (status == PYGPT_OK) status = reserve_forward(m, B, T);
    if (status != PYGPT_OK) return status;
    m->B = B;
    m->T = T;
    m->has_targets = targets != NULL;
    m->counted = 0;
    for (int64_t n = 0; n < B * T; n++) {
        m->tokens[n] = tokens[n];
        m->targets[n] = targets ? targets[n] : -1;
        m->counted += m->targets[n] >= 0;
    }
    m->training = dropout != NULL;
    if (dropout) m->dropout = *dropout;
    return PYGPT_OK;
}

int gpt2_forward(GPT2 *m, float *loss, const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T,
                 const Dropout *dropout) {
    USE(m);
    int status = begin(m, tokens, targets, B, T, dropout);
    if (status != PYGPT_OK) return status;
    body_forward(m);
    if (targets) {
        FinalActivations a = final_activations(&m->activation_table, m->activations);
        const float *head = head_weights(&m->weights, m->parameters);
        classifier_forward(m->kernels, a.losses, head_input(&m->activation_table, m->activations), head, m->targets,
                           m->logits, head_rows(&m->config, B * T), B * T, m->config.n_embd, m->config.vocab_size);
        if (loss) *loss = mean_loss(m);
    }
    return PYGPT_OK;
}

static int has_loss(const GPT2 *m) {
    return m->B && m->has_targets ? PYGPT_OK : fail_no_loss();
}

int gpt2_backward(GPT2 *m, float scale) {
    USE(m);
    int status = has_loss(m);
    if (status == PYGPT_OK) status = reserve_backward(m);
    if (status == PYGPT_OK) whole_backward(m, scale);
    return status;
}

int gpt2_forward_backward(GPT2 *m, float *loss, const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T,
                          const Dropout *dropout, float scale) {
    USE(m);
    if (!targets) return fail_no_loss();
    int status = begin(m, tokens, targets, B, T, dropout);
    if (status == PYGPT_OK) status = reserve_backward(m);
    if (status != PYGPT_OK) {
        m->B = m->T = 0;   // the activations of this batch were not computed
        return status;
    }
    body_forward(m);
    whole_backward(m, scale);
    if (loss) *loss = mean_loss(m);
    return PYGPT_OK;
}

int gpt2_logits(GPT2 *m, float *logits, int64_t first, int64_t count) {
    USE(m);
    int64_t C = m->config.n_embd, V = m->config.vocab_size;
    int status = check_logits(first, count, m->B * m->T);
    if (status != PYGPT_OK) return status;
    const float *x = head_input(&m->activation_table, m->activations);
    const float *head = head_weights(&m->weights, m->parameters);
    m->kernels->matmul(logits, x + first * C, head, count, V, C, 0, 1, 0);
    return PYGPT_OK;
}

int gpt2_shape(GPT2 *m, int64_t *B, int64_t *T) {
    USE(m);
    *B = m->B;
    *T = m->T;
    return PYGPT_OK;
}

int gpt2_attention(GPT2 *m, float *p, int64_t layer, int64_t size) {
    USE(m);
    const GPT2Config *c = &m->config;
    int status = check_attention(c, &m->options, layer, m->B, m->T, size);
    if (status != PYGPT_OK) return status;
    BlockActivations a = block_activations(&m->activation_table, m->activations, layer);
    turn(m, &a);
    m->kernels->attention_probabilities(p, a.lse, attended(&a), m->B, m->T, c->n_head, c->n_embd / c->n_head,
                                        attention_scale(c, layer), is_causal(c));
    return PYGPT_OK;
}
