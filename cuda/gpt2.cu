/* GPT-2, forward and backward (Radford et al. 2019), on the device.
 *
 *   x = wte[token] + wpe[position]
 *   L times    x = x + attention(LayerNorm(x))
 *              x = x + feed-forward(LayerNorm(x))
 *   logits = LayerNorm(x) wteᵀ
 *
 * The text is that of csrc/gpt2.c. What differs: a residual connection is one call with the LayerNorm behind it, so a
 * block ends with the LayerNorm that the next one begins with; gradients of activations are written, not added to, so
 * nothing is zeroed before, and the gradient of a residual branch is that of the stream, without a copy. `a` holds
 * activations, `d` their gradients, `w` weights, `dw` the weights' gradients.
 *
 * Nothing here waits for the device before a pass is complete. Tokens are checked there, and the answer is read
 * together with the loss. A pass that repeats the sizes of the one before is captured into a CUDA graph and from then
 * on launched as a whole.
 */
#include "model.cuh"

#include "layers/elements.cuh"
#include "layers/sums.cuh"

enum {
    SITE_EMBEDDING = 0,
    SITE_ATTENTION = 1,
    SITE_ATTENTION_BRANCH = 2,
    SITE_FEED_FORWARD_BRANCH = 3,
    SITES_PER_BLOCK = 3
};

static const size_t MOST_GRAPHS = 16;

/* ---- what a pass needs beside layers ---- */

/* Replaces what is outside the vocabulary, tokens by 0 and targets by none, and notes the first, unless an earlier
 * pass has left one that was not read yet. Counts the targets. One block. */
static __global__ void __launch_bounds__(1024)
    begin_pass(PassState *state, int32_t *tokens, int32_t *targets, bool has_targets, int64_t N, int64_t T, int64_t V,
               DropoutDraw draw, float scale, bool unread) {
    SHARED(long long, firsts, [32]);
    SHARED(long long, counts, [32]);
    SHARED(long long, bad, [1]);
    long long first = INT64_MAX, counted = 0;
    int32_t value = 0;
    for (int64_t n = threadIdx.x; n < N; n += 1024) {
        if (tokens[n] < 0 || tokens[n] >= V) {
            if (first == INT64_MAX) first = 2 * n, value = tokens[n];
            tokens[n] = 0;
        }
        if (has_targets && targets[n] >= V) {
            if (first == INT64_MAX) first = 2 * n + 1, value = targets[n];
            targets[n] = -1;
        }
        if (!has_targets) targets[n] = -1;
        counted += targets[n] >= 0;
    }
    long long least = first;
    for (int delta = 16; delta > 0; delta /= 2) {
        least = min(least, __shfl_xor_sync(0xffffffffu, least, delta));
        counted += __shfl_xor_sync(0xffffffffu, counted, delta);
    }
    if (threadIdx.x % 32 == 0) firsts[threadIdx.x / 32] = least, counts[threadIdx.x / 32] = counted;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < 32; warp++) least = min(least, firsts[warp]), counted += counts[warp];
        bad[0] = least;
        state->draw = draw;
        state->scale = scale;
        state->loss = 0;
        state->counted = counted;
        if (unread && state->bad >= 0) {
            bad[0] = INT64_MAX;   // the earlier one stays
        } else {
            state->bad = least == INT64_MAX ? -1 : least;
            state->bad_length = T;
        }
    }
    __syncthreads();
    if (first != INT64_MAX && first == bad[0]) state->bad_value = value;
}

static __global__ void set_scale(PassState *state, float scale) {
    state->scale = scale;
}

/* Of the mean over the targets; 0 where the pass is not valid, so that it leaves the gradients of the weights as they
 * are. */
static __global__ void __launch_bounds__(256) loss_gradients(float *dlosses, const PassState *state, int64_t N) {
    const int64_t n = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    const bool valid = state->bad < 0 && state->counted > 0;
    if (n < N) dlosses[n] = valid ? state->scale / static_cast<float>(state->counted) : 0.0f;
}

/* One block. The losses of negative targets are 0. */
static __global__ void __launch_bounds__(1024) mean_loss(PassState *state, const float *losses, int64_t N) {
    double sum = 0;
    for (int64_t n = threadIdx.x; n < N; n += 1024) sum += static_cast<double>(losses[n]);
    sum = block_sum_double(sum);
    if (threadIdx.x == 0)
        state->loss = state->counted ? static_cast<float>(sum / static_cast<double>(state->counted)) : 0.0f;
}

static DropoutMask dropout_at(const GPT2 *m, float p, int site, int64_t layer) {
    return dropout_mask(m->training ? p : 0.0f, static_cast<uint32_t>(site + layer * SITES_PER_BLOCK), &m->state->draw);
}

static EmbeddingWeights embedding_weights(const GPT2 *m) {
    return embedding_weights(&m->copied_weights, static_cast<float *>(m->copy));
}
static BlockWeights block_weights(const GPT2 *m, int64_t layer) {
    return block_weights(&m->copied_weights, static_cast<float *>(m->copy), layer);
}
static FinalWeights final_weights(const GPT2 *m) {
    return final_weights(&m->copied_weights, static_cast<float *>(m->copy));
}
static BlockActivations block_activations(const GPT2 *m, int64_t layer) {
    return block_activations(&m->activation_layout, m->activations, layer);
}
static FinalActivations final_activations(const GPT2 *m) {
    return final_activations(&m->activation_layout, m->activations);
}

/* The residual stream as it enters a block: what the block before, or the embedding, left. */
static float *block_input(const GPT2 *m, const TensorTable *layout, float *buffer, int64_t layer) {
    if (layer > 0) return block_activations(layout, buffer, layer - 1).resid_post;
    EmbeddingActivations embedding = embedding_activations(layout, buffer);
    return m->config.embd_pdrop > 0.0f ? embedding.drop : embedding.embd;
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

    embedding_forward(m->queue, a.embd, m->tokens, w.wte, w.wpe, m->B, m->T, C);
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
    DropoutMask in_attention = dropout_at(m, c->attn_pdrop, SITE_ATTENTION, layer);
    DropoutMask on_attention = dropout_at(m, c->resid_pdrop, SITE_ATTENTION_BRANCH, layer);
    DropoutMask on_feed_forward = dropout_at(m, c->resid_pdrop, SITE_FEED_FORWARD_BRANCH, layer);
    BlockWeights w = block_weights(m, layer);
    BlockActivations a = block_activations(m, layer);
    const float *x = block_input(m, &m->activation_layout, m->activations, layer);

    linear_forward(q, a.qkv, a.ln_1, w.c_attn_w, w.c_attn_b, N, C, 3 * C);
    attention_forward(q, a.heads, a.lse, a.qkv, B, T, NH, C / NH, in_attention);
    linear_forward(q, a.attn_proj, a.heads, w.attn_proj_w, w.attn_proj_b, N, C, C);
    if (a.attn_drop) dropout_forward(q, a.attn_drop, a.attn_proj, N * C, on_attention);
    residual_layernorm_forward(q, a.resid_mid, a.ln_2, a.ln_2_mean, a.ln_2_rstd, x,
                               a.attn_drop ? a.attn_drop : a.attn_proj, w.ln_2_w, w.ln_2_b, N, C,
                               c->layer_norm_epsilon);

    if (m->options.recompute == PYGPT_RECOMPUTE_CHEAP) {   // by the kernel that block_recompute has: the same bits
        linear_forward(q, a.fc, a.ln_2, w.c_fc_w, w.c_fc_b, N, C, F);
        gelu_forward(q, a.act, a.fc, N * F);
    } else {
        linear_gelu_forward(q, a.fc, a.act, a.ln_2, w.c_fc_w, w.c_fc_b, N, C, F);
    }
    linear_forward(q, a.mlp_proj, a.act, w.mlp_proj_w, w.mlp_proj_b, N, F, C);
    if (a.mlp_drop) dropout_forward(q, a.mlp_drop, a.mlp_proj, N * C, on_feed_forward);
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
    const float *x = block_input(m, &m->activation_layout, m->activations, layer);
    Norm n = norm_before(m, layer);
    layernorm_forward(m->queue, n.y, n.mean, n.rstd, x, n.w, n.b, m->B * m->T, m->config.n_embd,
                      m->config.layer_norm_epsilon);
}

/* Everything up to the head. */
static void body_forward(GPT2 *m) {
    embedding_pass(m);
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
        layernorm_forward(m->queue, a.ln_2, a.ln_2_mean, a.ln_2_rstd, a.resid_mid, w.ln_2_w, w.ln_2_b, N, C,
                          m->config.layer_norm_epsilon);
        gelu_forward(m->queue, a.act, a.fc, N * m->config.n_inner);
    }
}

static void block_backward(GPT2 *m, int64_t layer) {
    Queue &q = m->queue;
    const GPT2Config *c = &m->config;
    int64_t B = m->B, T = m->T, N = B * T, C = c->n_embd, F = c->n_inner, NH = c->n_head;
    DropoutMask in_attention = dropout_at(m, c->attn_pdrop, SITE_ATTENTION, layer);
    DropoutMask on_attention = dropout_at(m, c->resid_pdrop, SITE_ATTENTION_BRANCH, layer);
    DropoutMask on_feed_forward = dropout_at(m, c->resid_pdrop, SITE_FEED_FORWARD_BRANCH, layer);
    BlockWeights w = block_weights(m, layer);
    BlockWeights dw = block_weights(&m->weights, m->gradients, layer);
    BlockActivations a = block_activations(m, layer);
    BlockActivations d = block_activations(&m->activation_gradient_layout, m->activation_gradients, layer);
    const float *x = block_input(m, &m->activation_layout, m->activations, layer);
    float *dx = block_input(m, &m->activation_gradient_layout, m->activation_gradients, layer);

    /* the branch's gradient, d.mlp_drop or without dropout d.mlp_proj, is d.resid_post: the same memory */
    if (d.mlp_drop) dropout_backward(q, d.mlp_proj, d.mlp_drop, N * C, on_feed_forward);
    gelu_linear_backward(q, d.fc, d.act, dw.mlp_proj_w, dw.mlp_proj_b, d.mlp_proj, a.fc, a.act, w.mlp_proj_w, N, F, C);
    linear_backward(q, d.ln_2, dw.c_fc_w, dw.c_fc_b, d.fc, a.ln_2, w.c_fc_w, N, C, F);
    layernorm_backward(q, d.resid_mid, dw.ln_2_w, dw.ln_2_b, d.resid_post, d.ln_2, a.resid_mid, w.ln_2_w, a.ln_2_mean,
                       a.ln_2_rstd, N, C);

    /* likewise d.attn_drop or d.attn_proj is d.resid_mid */
    if (d.attn_drop) dropout_backward(q, d.attn_proj, d.attn_drop, N * C, on_attention);
    linear_backward(q, d.heads, dw.attn_proj_w, dw.attn_proj_b, d.attn_proj, a.heads, w.attn_proj_w, N, C, C);
    attention_backward(q, d.qkv, d.heads, a.heads, a.lse, a.qkv, B, T, NH, C / NH, in_attention);
    linear_backward(q, d.ln_1, dw.c_attn_w, dw.c_attn_b, d.qkv, a.ln_1, w.c_attn_w, N, C, 3 * C);
    layernorm_backward(q, dx, dw.ln_1_w, dw.ln_1_b, d.resid_mid, d.ln_1, x, w.ln_1_w, a.ln_1_mean, a.ln_1_rstd, N, C);
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

/* Everything from the losses back to the parameters. */
static void whole_backward(GPT2 *m) {
    Queue &q = m->queue;
    int64_t N = m->B * m->T, C = m->config.n_embd, L = m->config.n_layer, V = m->config.vocab_size;
    EmbeddingWeights dw_embedding = embedding_weights(&m->weights, m->gradients);
    FinalWeights w = final_weights(m), dw = final_weights(&m->weights, m->gradients);
    FinalActivations a = final_activations(m);
    FinalActivations d = final_activations(&m->activation_gradient_layout, m->activation_gradients);
    const float *x = block_input(m, &m->activation_layout, m->activations, L);
    float *dx = block_input(m, &m->activation_gradient_layout, m->activation_gradients, L);

    ENQUEUE(q, loss_gradients, blocks_for(N, 256), 256, 0, d.losses, m->state, N);
    classifier_backward(q, a.losses, d.ln_f, dw_embedding.wte, d.losses, a.ln_f, embedding_weights(m).wte, m->targets,
                        m->logits, min64(m->rows, N), N, C, V, padded_vocabulary(m->config));
    layernorm_backward(q, dx, dw.ln_f_w, dw.ln_f_b, nullptr, d.ln_f, x, w.ln_f_w, a.ln_f_mean, a.ln_f_rstd, N, C);
    for (int64_t layer = L - 1; layer >= 0; layer--) {
        block_recompute(m, layer);
        block_backward(m, layer);
    }
    embedding_backward_pass(m);
}

void *activation_gradient_of_gelu(GPT2 *m, int64_t layer) {
    int64_t N = m->B * m->T, C = m->config.n_embd, F = m->config.n_inner;
    BlockActivations d = block_activations(&m->activation_gradient_layout, m->activation_gradients, layer);
    void *dact = scratch(m->queue, static_cast<size_t>(N * F) * element_size(m->queue.type));
    linear_backward(m->queue, dact, nullptr, nullptr, d.mlp_proj, nullptr, block_weights(m, layer).mlp_proj_w, N, F, C);
    return dact;
}

/* ---- passes ---- */

static void enqueue_pass(GPT2 *m, Pass pass) {
    int64_t N = m->B * m->T;
    float *losses = final_activations(m).losses;
    body_forward(m);
    if (pass == Pass::loss) {
        classifier_forward(m->queue, losses, final_activations(m).ln_f, embedding_weights(m).wte, m->targets, m->logits,
                           min64(m->rows, N), N, m->config.n_embd, m->config.vocab_size, padded_vocabulary(m->config));
    }
    if (pass == Pass::gradients) whole_backward(m);
    if (pass != Pass::forward) ENQUEUE(m->queue, mean_loss, 1, 1024, 0, m->state, losses, N);
}

void forget_graphs(GPT2 *m) {
    for (const auto &entry : m->graphs) cudaGraphExecDestroy(entry.second);
    m->graphs.clear();
}

/* Captures the pass; NULL if CUDA would not have it. */
static cudaGraphExec_t capture(GPT2 *m, Pass pass) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t captured = nullptr;
    cudaError_t error = cudaStreamBeginCapture(m->queue.stream, cudaStreamCaptureModeThreadLocal);
    if (error == cudaSuccess) {
        enqueue_pass(m, pass);
        error = cudaStreamEndCapture(m->queue.stream, &graph);
    }
    if (error == cudaSuccess && m->queue.error == cudaSuccess) error = cudaGraphInstantiate(&captured, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (error != cudaSuccess || m->queue.error != cudaSuccess) {
        cudaGetLastError();
        m->queue.error = cudaSuccess;
        return nullptr;
    }
    return captured;
}

/* Each kernel by itself the first time, because then products are timed and scratch memory grows, and from the second
 * time in a row on as a graph. */
static void run(GPT2 *m, Pass pass) {
    const GraphKey key{m->B, m->T, pass, m->training};
    const int64_t replaced = m->replaced + m->queue.replaced;
    if (replaced != m->graphs_replaced || m->graphs.size() >= MOST_GRAPHS) forget_graphs(m);
    const bool repeated = key == m->latest && replaced == m->graphs_replaced;
    m->graphs_replaced = replaced;
    m->latest = key;

    auto found = m->graphs.find(key);
    if (m->use_graphs && repeated && found == m->graphs.end()) {
        if (cudaGraphExec_t captured = capture(m, pass)) {
            found = m->graphs.emplace(key, captured).first;
        } else {
            m->use_graphs = false;
        }
    }
    if (found != m->graphs.end()) {
        note(m->queue, cudaGraphLaunch(found->second, m->queue.stream), "a captured pass");
    } else {
        enqueue_pass(m, pass);
    }
}

/* Checks the arguments, makes room, and starts the copy of the tokens. */
static int begin(GPT2 *m, const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T, const Dropout *dropout,
                 Pass pass, float scale) {
    long long positions = m->config.n_positions;
    if (B < 1 || T < 1 || T > positions || checked_mul(B, T) < 0) {
        return fail(PYGPT_ERROR_ARGUMENT,
                    "tokens have shape (%lld, %lld), expected (B, T) with B >= 1 and 1 <= T <= %lld", (long long)B,
                    (long long)T, positions);
    }
    int status = reserve_forward(m, B, T, pass == Pass::gradients);
    if (status == PYGPT_OK && pass == Pass::gradients) status = reserve_backward(m);
    if (status != PYGPT_OK) return status;
    m->B = B;
    m->T = T;
    m->training = dropout != NULL;
    m->has_targets = targets != NULL;
    const bool unread = m->unread;
    m->unread = true;

    Queue &q = m->queue;
    const DropoutDraw draw = {dropout ? dropout->seed : 0, dropout ? dropout->step : 0};
    const size_t bytes = static_cast<size_t>(B * T) * sizeof *tokens;
    note(q, cudaMemcpyAsync(m->tokens, tokens, bytes, cudaMemcpyHostToDevice, q.stream), "the copy of the tokens");
    if (targets)
        note(q, cudaMemcpyAsync(m->targets, targets, bytes, cudaMemcpyHostToDevice, q.stream),
             "the copy of the targets");
    ENQUEUE(q, begin_pass, 1, 1024, 0, m->state, m->tokens, m->targets, targets != NULL, B * T, T, m->config.vocab_size,
            draw, scale, unread);
    return PYGPT_OK;
}

int read_state(GPT2 *m) {
    Queue &q = m->queue;
    if (q.error == cudaSuccess)
        note(q, cudaMemcpyAsync(m->read_state, m->state, sizeof *m->state, cudaMemcpyDeviceToHost, q.stream), "a pass");
    if (q.error == cudaSuccess) note(q, cudaStreamSynchronize(q.stream), "a pass");
    m->unread = q.error != cudaSuccess;
    return queue_status(q);
}

int check_pass(GPT2 *m) {
    if (!m->unread) return PYGPT_OK;
    int status = read_state(m);
    const PassState *s = m->read_state;
    if (status == PYGPT_OK && s->bad >= 0) {
        long long row = s->bad / 2 / s->bad_length, position = s->bad / 2 % s->bad_length, V = m->config.vocab_size;
        status = s->bad % 2 == 0
                     ? fail(PYGPT_ERROR_ARGUMENT, "token %d at row %lld, position %lld, expected 0 ... %lld",
                            s->bad_value, row, position, V - 1)
                     : fail(PYGPT_ERROR_ARGUMENT, "target %d at row %lld, position %lld, expected at most %lld",
                            s->bad_value, row, position, V - 1);
    }
    if (status != PYGPT_OK) m->B = 0;   // there is no pass to go back from
    return status;
}

static int no_loss() {
    return fail(PYGPT_ERROR_ARGUMENT, "the backward pass needs a forward pass with at least one target before it");
}

/* A pass up to the reading of its loss, which is left out if the caller does not want it: then the caller's next
 * question to the device finds what was wrong. */
static int whole_pass(GPT2 *m, float *loss, Pass pass) {
    run(m, pass);
    if (!loss) return queue_status(m->queue);
    int status = check_pass(m);
    if (status == PYGPT_OK && pass != Pass::forward) *loss = m->read_state->loss;
    return status;
}

int gpt2_forward(GPT2 *m, float *loss, const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T,
                 const Dropout *dropout) {
    Pass pass = targets ? Pass::loss : Pass::forward;
    int status = begin(m, tokens, targets, B, T, dropout, pass, 1.0f);
    return status == PYGPT_OK ? whole_pass(m, loss, pass) : status;
}

int gpt2_backward(GPT2 *m, float scale) {
    if (!m->B || !m->has_targets) return no_loss();
    int status = check_pass(m);
    if (status == PYGPT_OK && m->read_state->counted == 0) status = no_loss();
    if (status == PYGPT_OK) status = reserve_backward(m);
    if (status != PYGPT_OK) return status;
    ENQUEUE(m->queue, set_scale, 1, 1, 0, m->state, scale);
    whole_backward(m);
    m->went_back = true;
    m->weights_changed = false;
    return queue_status(m->queue);
}

int gpt2_forward_backward(GPT2 *m, float *loss, const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T,
                          const Dropout *dropout, float scale) {
    if (!targets) return no_loss();
    int status = begin(m, tokens, targets, B, T, dropout, Pass::gradients, scale);
    if (status == PYGPT_OK) status = whole_pass(m, loss, Pass::gradients);
    m->went_back = status == PYGPT_OK;
    m->weights_changed = false;
    if (status == PYGPT_OK && loss && m->read_state->counted == 0) return no_loss();
    return status;
}

int gpt2_logits(GPT2 *m, float *logits, int64_t first, int64_t count) {
    int64_t N = m->B * m->T, C = m->config.n_embd, V = m->config.vocab_size, Vp = padded_vocabulary(m->config);
    if (!m->B || first < 0 || count < 0 || first > N - count) {
        return fail(PYGPT_ERROR_ARGUMENT,
                    "%lld rows of the logits from row %lld on were asked for, but the latest forward pass has %lld",
                    (long long)count, (long long)first, (long long)N);
    }
    int status = check_pass(m);
    if (status != PYGPT_OK) return status;
    const size_t size = element_size(m->queue.type);
    const char *ln_f = reinterpret_cast<const char *>(final_activations(m).ln_f);
    for (int64_t n = first; n < first + count && m->queue.error == cudaSuccess; n += m->rows) {
        int64_t rows = min64(m->rows, first + count - n);
        float *host = logits + (n - first) * V;
        head_logits(m->queue, m->logits, ln_f + static_cast<size_t>(n * C) * size, embedding_weights(m).wte, rows, C,
                    Vp);
        download_rows(m->queue, host, m->logits, rows, V, Vp);
    }
    return queue_status(m->queue);
}

int gpt2_attention(GPT2 *m, float *p, int64_t layer) {
    const GPT2Config *c = &m->config;
    if (!m->B || layer < 0 || layer >= c->n_layer) {
        return fail(PYGPT_ERROR_ARGUMENT,
                    "attention of layer %lld was asked for, expected 0 ... %lld after a forward pass", (long long)layer,
                    (long long)(c->n_layer - 1));
    }
    if (m->options.recompute == PYGPT_RECOMPUTE_BLOCK) {
        return fail(PYGPT_ERROR_ARGUMENT,
                    "attention probabilities need recompute \"none\" or \"cheap\", this model has \"block\"");
    }
    int status = check_pass(m);
    if (status != PYGPT_OK) return status;
    BlockActivations a = block_activations(m, layer);
    int64_t T = m->T, NH = c->n_head, C = c->n_embd, size = NH * T * T;
    float *of_sequence = static_cast<float *>(scratch(m->queue, static_cast<size_t>(size) * sizeof *p));
    for (int64_t b = 0; b < m->B && m->queue.error == cudaSuccess; b++) {
        const char *qkv =
            reinterpret_cast<const char *>(a.qkv) + static_cast<size_t>(b * T * 3 * C) * element_size(m->queue.type);
        attention_probabilities(m->queue, of_sequence, a.lse + b * NH * T, qkv, 1, T, NH, C / NH);
        download(m->queue, p + b * size, of_sequence, DataType::float32, size);
    }
    return queue_status(m->queue);
}
