/* A pass from its arguments to its loss.
 *
 * Nothing waits for the device before a pass is complete: tokens are checked there, and the answer is read together
 * with the loss. */
#include "model.cuh"

/* Replaces what is outside the vocabulary, tokens by 0 and targets by none, and notes the first, unless an earlier
 * pass has left one that was not read yet. Counts the targets. One block; its first loop only reads, so that many reads
 * are under way at once. */
static __global__ void __launch_bounds__(SINGLE_BLOCK_THREADS)
    begin_pass(PassState *state, int32_t *tokens, int32_t *targets, int64_t N, int64_t T, int64_t V, DropoutDraw draw,
               float scale, bool unread) {
    SHARED(long long, firsts, [SINGLE_BLOCK_THREADS / 32]);
    SHARED(long long, counts, [SINGLE_BLOCK_THREADS / 32]);
    SHARED(long long, bad, [1]);
    long long first = INT64_MAX, counted = 0;
    UNROLL_BY(8)
    for (int64_t n = threadIdx.x; n < N; n += SINGLE_BLOCK_THREADS) {
        const int32_t token = tokens[n], target = targets[n];
        const bool bad_token = token < 0 || token >= V, bad_target = target >= V;
        if (first == INT64_MAX && (bad_token || bad_target)) first = 2 * n + !bad_token;
        counted += target >= 0 && !bad_target;
    }
    int32_t value = 0;
    if (first != INT64_MAX) {
        value = (first % 2 == 0 ? tokens : targets)[first / 2];
        for (int64_t n = threadIdx.x; n < N; n += SINGLE_BLOCK_THREADS) {
            if (tokens[n] < 0 || tokens[n] >= V) tokens[n] = 0;
            if (targets[n] >= V) targets[n] = -1;
        }
    }
    long long least = first;
    for (int delta = 16; delta > 0; delta /= 2) {
        least = min(least, __shfl_xor_sync(0xffffffffu, least, delta));
        counted += __shfl_xor_sync(0xffffffffu, counted, delta);
    }
    if (threadIdx.x % 32 == 0) firsts[threadIdx.x / 32] = least, counts[threadIdx.x / 32] = counted;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < SINGLE_BLOCK_THREADS / 32; warp++)
            least = min(least, firsts[warp]), counted += counts[warp];
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

/* Checks the arguments, makes room, and starts the copy of the tokens. */
static int begin(GPT2 *m, const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T, const Dropout *dropout,
                 Pass pass, float scale) {
    int status = check_tokens_shape(&m->config, B, T);
    if (status == PYGPT_OK) status = reserve_forward(m, B, T, pass == Pass::gradients);
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
    note(q,
         targets ? cudaMemcpyAsync(m->targets, targets, bytes, cudaMemcpyHostToDevice, q.stream)
                 : cudaMemsetAsync(m->targets, 0xff, bytes, q.stream),   // −1
         "the copy of the targets");
    ENQUEUE(q, begin_pass, 1, SINGLE_BLOCK_THREADS, 0, m->state, m->tokens, m->targets, B * T, T, m->config.vocab_size,
            draw, scale, unread);
    return PYGPT_OK;
}

/* Waits for the device, and reads the state of the latest pass. */
static int read_state(GPT2 *m) {
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
        status = s->bad % 2 == 0 ? fail_token(s->bad_value, s->bad / 2, s->bad_length, m->config.vocab_size)
                                 : fail_target(s->bad_value, s->bad / 2, s->bad_length, m->config.vocab_size);
    }
    if (status != PYGPT_OK) m->B = m->T = 0;   // there is no pass to go back from
    return status;
}

/* A pass up to the reading of its loss, which is left out if the caller does not want it: then the caller's next
 * question to the device finds what was wrong. */
static int whole_pass(GPT2 *m, float *loss, Pass pass) {
    run_pass(m, pass);
    if (!loss) return queue_status(m->queue);
    int status = check_pass(m);
    if (status == PYGPT_OK && pass != Pass::forward) *loss = m->read_state->loss;
    return status;
}

int gpt2_forward(GPT2 *m, float *loss, const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T,
                 const Dropout *dropout) {
    USE(m);
    Pass pass = targets ? Pass::loss : Pass::forward;
    int status = begin(m, tokens, targets, B, T, dropout, pass, 1.0f);
    return status == PYGPT_OK ? whole_pass(m, loss, pass) : status;
}

int gpt2_backward(GPT2 *m, float scale) {
    USE(m);
    if (!m->B || !m->has_targets) return fail_no_loss();
    int status = check_pass(m);
    if (status == PYGPT_OK) status = reserve_backward(m);
    if (status != PYGPT_OK) return status;
    ENQUEUE(m->queue, set_scale, 1, 1, 0, m->state, scale);
    whole_backward(m);
    m->went_back = m->unread = true;
    m->weights_changed = false;
    return queue_status(m->queue);
}

int gpt2_forward_backward(GPT2 *m, float *loss, const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T,
                          const Dropout *dropout, float scale) {
    USE(m);
    if (!targets) return fail_no_loss();
    int status = begin(m, tokens, targets, B, T, dropout, Pass::gradients, scale);
    if (status == PYGPT_OK) status = whole_pass(m, loss, Pass::gradients);
    m->went_back = status == PYGPT_OK;
    m->weights_changed = false;
    return status;
}
