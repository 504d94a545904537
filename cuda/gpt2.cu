/* GPT-2, forward and backward (Radford et al. 2019), on the device.
 *
 *   x = wte[token] + wpe[position]
 *   L times    x = x + attention(LayerNorm(x))
 *              x = x + feed-forward(LayerNorm(x))
 *   logits = LayerNorm(x) headᵀ      head = wte unless it has its own
 *
 * The text is that of csrc/gpt2.c. What differs: a residual connection is one call with the LayerNorm behind it, so a
 * block ends with the LayerNorm that the next one begins with; gradients of activations are written, not added to, so
 * nothing is zeroed before, and the gradient of a residual branch is that of the stream, without a copy. `a` holds
 * activations, `d` their gradients, `w` weights, `dw` the weights' gradients.
 *
 * A model with its LayerNorms after the residual connections has the blocks of post_norm.cu, and no LayerNorm behind them.
 * How a pass begins and ends: pass.cu.
 */
#include "block.cuh"

#include "../csrc/attention_scale.h"
#include "layers/elements.cuh"
#include "layers/sums.cuh"

/* ---- what a pass needs beside layers ---- */

/* Of the mean over the targets; 0 where the pass is not valid, so that it leaves the gradients of the weights as they
 * are. */
static __global__ void __launch_bounds__(ELEMENT_THREADS)
    loss_gradients(float *dlosses, const PassState *state, int64_t N) {
    const int64_t n = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
    const bool valid = state->bad < 0 && state->counted > 0;
    if (n < N) dlosses[n] = valid ? state->scale / static_cast<float>(state->counted) : 0.0f;
}

/* One block. The losses of negative targets are 0. */
static __global__ void __launch_bounds__(SINGLE_BLOCK_THREADS)
    mean_loss(PassState *state, const float *losses, int64_t N, bool with_gradients) {
    double sum = 0;
    UNROLL_BY(8)
    for (int64_t n = threadIdx.x; n < N; n += SINGLE_BLOCK_THREADS) sum += static_cast<double>(losses[n]);
    sum = block_sum_double(sum);
    if (threadIdx.x == 0) {
        state->loss = state->counted ? static_cast<float>(sum / static_cast<double>(state->counted)) : 0.0f;
        if (with_gradients && state->bad < 0)
            state->summed_loss += static_cast<double>(state->scale) * static_cast<double>(state->loss);
    }
}

static EmbeddingWeights embedding_weights(const GPT2 *m) {
    return embedding_weights(&m->copied_weights, static_cast<float *>(m->copy));
}
static FinalWeights final_weights(const GPT2 *m) {
    return final_weights(&m->copied_weights, static_cast<float *>(m->copy));
}
static const float *head_weights(const GPT2 *m) {
    return head_weights(&m->copied_weights, static_cast<float *>(m->copy));
}
static FinalActivations final_activations(const GPT2 *m) {
    return final_activations(&m->activation_layout, m->activations);
}

static const float *head_input(const GPT2 *m) {
    return head_input(&m->activation_layout, m->activations);
}

/* The LayerNorm at the beginning of a block, or at the end of all. */
struct Norm {
    void *y;
    float *mean, *rstd;
    const void *w, *b;
};

static Norm norm_before(const GPT2 *m, int64_t layer) {
    if (layer == m->config.n_layer) {
        FinalWeights w = final_weights(m);
        FinalActivations a = final_activations(m);
        return {a.ln_f, a.ln_f_mean, a.ln_f_rstd, w.ln_f_w, w.ln_f_b};
    }
    BlockWeights w = block_weights(m, layer);
    BlockActivations a = block_activations(m, layer);
    return {a.ln_1, a.ln_1_mean, a.ln_1_rstd, w.ln_1_w, w.ln_1_b};
}

/* ---- forward ---- */

static void embedding_pass(GPT2 *m) {
    int64_t C = m->config.n_embd;
    EmbeddingWeights w = embedding_weights(m);
    EmbeddingActivations a = embedding_activations(&m->activation_layout, m->activations);

    embedding_forward(m->queue, a.embd, m->tokens, w.wte, m->sinusoidal ? m->sinusoidal : w.wpe, m->B, m->T, C);
    if (a.drop) {
        DropoutMask dropout = dropout_at(m, m->config.embd_pdrop, SITE_EMBEDDING, 0);
        dropout_forward(m->queue, a.drop, a.embd, m->B * m->T * C, dropout);
    }
}

/* From the output of ln_1 to that of the feed-forward branch. */
static void block_forward(GPT2 *m, int64_t layer) {
    Queue &q = m->queue;
    const GPT2Config *c = &m->config;
    int64_t B = m->B, T = m->T, N = B * T, C = c->n_embd, F = c->n_inner, NH = c->n_head;
    BlockDropouts drop = block_dropouts(m, layer);
    BlockWeights w = block_weights(m, layer);
    BlockActivations a = block_activations(m, layer);
    const float *x = block_input(&m->activation_layout, m->activations, layer);

    linear_forward(q, a.qkv, a.ln_1, w.c_attn_w, w.c_attn_b, N, C, 3 * C);
    turn(m, a);
    attention_forward(q, a.heads, a.lse, attended(a), B, T, NH, C / NH, attention_scale(c, layer), is_causal(c) != 0,
                      drop.attention);
    linear_forward(q, a.attn_proj, a.heads, w.attn_proj_w, w.attn_proj_b, N, C, C);
    if (a.attn_drop) dropout_forward(q, a.attn_drop, a.attn_proj, N * C, drop.attention_branch);
    residual_layernorm_forward(q, a.resid_mid, a.ln_2, a.ln_2_mean, a.ln_2_rstd, x,
                               a.attn_drop ? a.attn_drop : a.attn_proj, w.ln_2_w, w.ln_2_b, N, C,
                               c->layer_norm_epsilon);

    if (m->options.recompute == PYGPT_RECOMPUTE_CHEAP) {   // by the kernel that block_recompute has: the same bits
        linear_forward(q, a.fc, a.ln_2, w.c_fc_w, w.c_fc_b, N, C, F);
        m->activation.forward(q, a.act, a.fc, N * F);
    } else {
        linear_activation_forward(q, m->activation, a.fc, a.act, a.ln_2, w.c_fc_w, w.c_fc_b, N, C, F);
    }
    linear_forward(q, a.mlp_proj, a.act, w.mlp_proj_w, w.mlp_proj_b, N, F, C);
    if (a.mlp_drop) dropout_forward(q, a.mlp_drop, a.mlp_proj, N * C, drop.feed_forward_branch);
}

/* The residual stream behind a block, and the LayerNorm that follows. */
static void block_output(GPT2 *m, int64_t layer) {
    BlockActivations a = block_activations(m, layer);
    Norm next = norm_before(m, layer + 1);
    residual_layernorm_forward(m->queue, a.resid_post, next.y, next.mean, next.rstd, a.resid_mid,
                               a.mlp_drop ? a.mlp_drop : a.mlp_proj, next.w, next.b, m->B * m->T, m->config.n_embd,
                               m->config.layer_norm_epsilon);
}

static void first_norm(GPT2 *m, int64_t layer) {
    const float *x = block_input(&m->activation_layout, m->activations, layer);
    Norm n = norm_before(m, layer);
    layernorm_forward(m->queue, n.y, n.mean, n.rstd, x, n.w, n.b, m->B * m->T, m->config.n_embd,
                      m->config.layer_norm_epsilon);
}

/* Everything up to the head. */
static void body_forward(GPT2 *m) {
    embedding_pass(m);
    if (is_post_norm(&m->config)) {
        for (int64_t layer = 0; layer < m->config.n_layer; layer++) post_norm_forward(m, layer);
        return;
    }
    first_norm(m, 0);
    for (int64_t layer = 0; layer < m->config.n_layer; layer++) {
        block_forward(m, layer);
        block_output(m, layer);
    }
}

/* ---- backward ---- */

/* Puts what the backward pass of a block reads, and the memory does not hold, back in its place. */
static void block_recompute(GPT2 *m, int64_t layer) {
    int64_t N = m->B * m->T, C = m->config.n_embd;
    BlockWeights w = block_weights(m, layer);
    BlockActivations a = block_activations(m, layer);

    if (m->options.recompute == PYGPT_RECOMPUTE_BLOCK) {
        first_norm(m, layer);
        block_forward(m, layer);
    } else if (m->options.recompute == PYGPT_RECOMPUTE_CHEAP) {
        first_norm(m, layer);
        turn(m, a);
        layernorm_forward(m->queue, a.ln_2, a.ln_2_mean, a.ln_2_rstd, a.resid_mid, w.ln_2_w, w.ln_2_b, N, C,
                          m->config.layer_norm_epsilon);
        m->activation.forward(m->queue, a.act, a.fc, N * m->config.n_inner);
    }
}

static void block_backward(GPT2 *m, int64_t layer) {
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

    /* the branch's gradient, d.mlp_drop or without dropout d.mlp_proj, is d.resid_post: the same memory; and as the
     * LayerNorm reads that, it sums it for the bias of d.mlp_proj */
    if (d.mlp_drop) dropout_backward(q, d.mlp_proj, d.mlp_drop, N * C, drop.feed_forward_branch);
    activation_linear_backward(q, m->activation, d.fc, d.act, dw.mlp_proj_w, d.mlp_drop ? dw.mlp_proj_b : nullptr,
                               d.mlp_proj, a.fc, a.act, w.mlp_proj_w, N, F, C);
    linear_backward(q, d.ln_2, dw.c_fc_w, dw.c_fc_b, d.fc, a.ln_2, w.c_fc_w, N, C, F);
    layernorm_backward(q, d.resid_mid, dw.ln_2_w, dw.ln_2_b, d.mlp_drop ? nullptr : dw.mlp_proj_b, d.resid_post, d.ln_2,
                       a.resid_mid, w.ln_2_w, a.ln_2_mean, a.ln_2_rstd, N, C);

    /* likewise d.attn_drop or d.attn_proj is d.resid_mid */
    if (d.attn_drop) dropout_backward(q, d.attn_proj, d.attn_drop, N * C, drop.attention_branch);
    linear_backward(q, d.heads, dw.attn_proj_w, d.attn_drop ? dw.attn_proj_b : nullptr, d.attn_proj, a.heads,
                    w.attn_proj_w, N, C, C);
    attention_backward(q, attended(d), d.heads, a.heads, a.lse, attended(a), B, T, NH, C / NH,
                       attention_scale(c, layer), is_causal(c) != 0, drop.attention);
    if (d.rotary) rotary_backward(q, d.qkv, d.rotary, B, T, NH, C / NH);
    linear_backward(q, d.ln_1, dw.c_attn_w, dw.c_attn_b, d.qkv, a.ln_1, w.c_attn_w, N, C, 3 * C);
    layernorm_backward(q, dx, dw.ln_1_w, dw.ln_1_b, d.attn_drop ? nullptr : dw.attn_proj_b, d.resid_mid, d.ln_1, x,
                       w.ln_1_w, a.ln_1_mean, a.ln_1_rstd, N, C);
}

static void embedding_backward_pass(GPT2 *m) {
    int64_t C = m->config.n_embd;
    EmbeddingWeights dw = embedding_weights(&m->weights, m->gradients);
    EmbeddingActivations d = embedding_activations(&m->activation_gradient_layout, m->activation_gradients);

    if (d.drop) {
        DropoutMask dropout = dropout_at(m, m->config.embd_pdrop, SITE_EMBEDDING, 0);
        dropout_backward(m->queue, d.embd, d.drop, m->B * m->T * C, dropout);
    }
    embedding_backward(m->queue, dw.wte, dw.wpe, d.embd, m->tokens, m->B, m->T, C, m->config.vocab_size);
}

void whole_backward(GPT2 *m) {
    Queue &q = m->queue;
    int64_t N = m->B * m->T, C = m->config.n_embd, L = m->config.n_layer, V = m->config.vocab_size;
    float *dhead = head_weights(&m->weights, m->gradients);
    FinalWeights w = final_weights(m), dw = final_weights(&m->weights, m->gradients);
    FinalActivations a = final_activations(m);
    FinalActivations d = final_activations(&m->activation_gradient_layout, m->activation_gradients);
    const float *x = block_input(&m->activation_layout, m->activations, L);
    float *dx = block_input(&m->activation_gradient_layout, m->activation_gradients, L);

    ENQUEUE(q, loss_gradients, blocks_for(N, ELEMENT_THREADS), ELEMENT_THREADS, 0, d.losses, m->state, N);
    classifier_backward(q, a.losses, head_input(&m->activation_gradient_layout, m->activation_gradients), dhead,
                        d.losses, head_input(m), head_weights(m), m->targets, m->logits, head_rows(m->config, N), N, C,
                        V, padded_vocabulary(V));
    if (d.ln_f)
        layernorm_backward(q, dx, dw.ln_f_w, dw.ln_f_b, nullptr, nullptr, d.ln_f, x, w.ln_f_w, a.ln_f_mean, a.ln_f_rstd,
                           N, C);
    for (int64_t layer = L - 1; layer >= 0; layer--) {
        if (is_post_norm(&m->config)) {
            post_norm_backward(m, layer);
        } else {
            block_recompute(m, layer);
            block_backward(m, layer);
        }
    }
    embedding_backward_pass(m);
    ENQUEUE(q, mean_loss, 1, SINGLE_BLOCK_THREADS, 0, m->state, a.losses, N, true);
}

void *activation_gradient_of_gelu(GPT2 *m, int64_t layer) {
    int64_t N = m->B * m->T, C = m->config.n_embd, F = m->config.n_inner;
    BlockActivations d = block_activations(&m->activation_gradient_layout, m->activation_gradients, layer);
    void *dact = scratch(m->queue, static_cast<size_t>(N * F) * element_size(m->queue.type));
    linear_backward(m->queue, dact, nullptr, nullptr, d.mlp_proj, nullptr, block_weights(m, layer).mlp_proj_w, N, F, C);
    return dact;
}

/* ---- whole passes ---- */

void enqueue_pass(GPT2 *m, Pass pass) {
    int64_t N = m->B * m->T, V = m->config.vocab_size;
    FinalActivations a = final_activations(m);
    body_forward(m);
    if (pass == Pass::loss) {
        classifier_forward(m->queue, a.losses, head_input(m), head_weights(m), m->targets, m->logits,
                           head_rows(m->config, N), N, m->config.n_embd, V, padded_vocabulary(V));
        ENQUEUE(m->queue, mean_loss, 1, SINGLE_BLOCK_THREADS, 0, m->state, a.losses, N, false);
    }
    if (pass == Pass::gradients) whole_backward(m);
}

int gpt2_logits(GPT2 *m, float *logits, int64_t first, int64_t count) {
    USE(m);
    int64_t C = m->config.n_embd, V = m->config.vocab_size, Vp = padded_vocabulary(V);
    int status = check_logits(first, count, m->B * m->T);
    if (status == PYGPT_OK) status = check_pass(m);
    if (status != PYGPT_OK) return status;
    const size_t size = element_size(m->queue.type);
    const char *x = reinterpret_cast<const char *>(head_input(m));
    const int64_t most = head_rows(m->config, m->B * m->T);
    for (int64_t n = first; n < first + count && m->queue.error == cudaSuccess; n += most) {
        int64_t rows = min64(most, first + count - n);
        float *host = logits + (n - first) * V;
        head_logits(m->queue, m->logits, x + static_cast<size_t>(n * C) * size, head_weights(m), rows, C, Vp);
        download_rows(m->queue, host, m->logits, rows, V, Vp);
    }
    return queue_status(m->queue);
}

int gpt2_shape(GPT2 *m, int64_t *B, int64_t *T) {
    USE(m);
    *B = m->B;
    *T = m->T;
    return PYGPT_OK;
}

int gpt2_attention(GPT2 *m, float *p, int64_t layer, int64_t size) {
    USE(m);
    int status = check_attention(&m->config, &m->options, layer, m->B, m->T, size);
    if (status == PYGPT_OK) status = check_pass(m);
    if (status != PYGPT_OK) return status;
    BlockActivations a = block_activations(m, layer);
    int64_t T = m->T, NH = m->config.n_head, C = m->config.n_embd, of_one = NH * T * T;
    turn(m, a);
    float *of_sequence = static_cast<float *>(scratch(m->queue, static_cast<size_t>(of_one) * sizeof *p));
    for (int64_t b = 0; b < m->B && m->queue.error == cudaSuccess; b++) {
        const char *qkv = reinterpret_cast<const char *>(attended(a)) +
                          static_cast<size_t>(b * T * 3 * C) * element_size(m->queue.type);
        attention_probabilities(m->queue, of_sequence, a.lse + b * NH * T, qkv, 1, T, NH, C / NH,
                                attention_scale(&m->config, layer), is_causal(&m->config) != 0);
        download(m->queue, p + b * of_one, of_sequence, DataType::float32, of_one);
    }
    return queue_status(m->queue);
}
