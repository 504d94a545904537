/* A model's memory, and where in it the tensors lie. */
#include "model.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD_LOGITS = DIVIDES_WORK(1 << 26, 1), HEAD_ROWS = DIVIDES_WORK(64, 4) };

/* Rows of logits that the head makes at a time, in chunks of equal size: up to 2^26 logits, or 256 MB. */
static int64_t head_rows(const GPT2Config *config, int64_t N) {
    int64_t most = max64(HEAD_LOGITS / config->vocab_size, HEAD_ROWS);
    return divide_up(N, divide_up(N, most));
}

int64_t gpt2_memory(const GPT2Config *config, const GPT2Options *options, int64_t B, int64_t T, int training) {
    TensorTable weights = {0}, activations = {0}, gradients = {0};
    int64_t floats = -1;
    if (check_config(config) != PYGPT_OK || B < 1 || T < 1 || checked_mul(B, T) < 0) return -1;
    int status = table_create(&weights, PYGPT_PARAMETER, config, options->recompute, 0, 0);
    if (status == PYGPT_OK) status = table_create(&activations, PYGPT_ACTIVATION, config, options->recompute, B, T);
    if (status == PYGPT_OK)
        status = table_create(&gradients, PYGPT_ACTIVATION_GRADIENT, config, options->recompute, B, T);
    if (status == PYGPT_OK) {
        int64_t head = checked_mul(head_rows(config, B * T), config->vocab_size);
        floats = checked_add(checked_mul(weights.size, training ? 4 : 1), activations.size);
        floats = checked_add(floats, head);
        floats = checked_add(floats, checked_mul(2, B * T));   // tokens and targets
        if (training) floats = checked_add(floats, gradients.size);
    }
    table_free(&weights);
    table_free(&activations);
    table_free(&gradients);
    return checked_mul(floats, sizeof(float));
}

/* A buffer of at least count floats; *capacity is what it has. The old contents are lost where it grows. */
static int grow(float **buffer, int64_t *capacity, int64_t count, const char *what) {
    if (*buffer && *capacity >= count) return PYGPT_OK;
    float *larger = buffer_allocate(count);
    if (!larger)
        return fail(PYGPT_ERROR_MEMORY, "no memory for %s: %.2f GiB were asked for", what,
                    (double)count * sizeof(float) / GIB);
    pygpt_release(*buffer);
    *buffer = larger;
    *capacity = count;
    return PYGPT_OK;
}

static int zeroed(float **buffer, int64_t count, const char *what) {
    int64_t capacity = 0;
    if (*buffer) return PYGPT_OK;
    int status = grow(buffer, &capacity, count, what);
    if (status != PYGPT_OK) return status;
    #pragma omp parallel for simd
    for (int64_t i = 0; i < count; i++) (*buffer)[i] = 0.0f;
    return PYGPT_OK;
}

int reserve_gradients(GPT2 *m) {
    return zeroed(&m->gradients, m->weights.size, "the gradients");
}

int reserve_moments(GPT2 *m) {
    int status = zeroed(&m->first_moments, m->weights.size, "AdamW's first moments");
    return status == PYGPT_OK ? zeroed(&m->second_moments, m->weights.size, "AdamW's second moments") : status;
}

static int replace_table(TensorTable *table, int kind, const GPT2 *m, int64_t B, int64_t T) {
    TensorTable made;
    int status = table_create(&made, kind, &m->config, m->options.recompute, B, T);
    if (status != PYGPT_OK) return status;
    table_free(table);
    *table = made;
    return PYGPT_OK;
}

int reserve_forward(GPT2 *m, int64_t B, int64_t T) {
    int64_t N = checked_mul(B, T), V = m->config.vocab_size;
    if (N < 0) return fail(PYGPT_ERROR_ARGUMENT, "a batch of %" PRId64 " x %" PRId64 " tokens overflows 64 bits", B, T);
    if (m->B == B && m->T == T) return PYGPT_OK;
    m->B = m->T = m->counted = m->went_back = 0;   // nothing to go back from until the next forward pass has run
    int status = replace_table(&m->activation_table, PYGPT_ACTIVATION, m, B, T);
    if (status == PYGPT_OK) status = replace_table(&m->activation_gradient_table, PYGPT_ACTIVATION_GRADIENT, m, B, T);
    if (status == PYGPT_OK)
        status = grow(&m->activations, &m->activation_capacity, m->activation_table.size, "the activations");
    if (status != PYGPT_OK) return status;
    int64_t capacity = checked_mul(m->rows, V);
    status = grow(&m->logits, &capacity, checked_mul(head_rows(&m->config, N), V), "the logits of a chunk of rows");
    if (status != PYGPT_OK) return status;
    m->rows = capacity / V;
    if (m->token_capacity < N) {
        int32_t *tokens = realloc(m->tokens, (size_t)N * sizeof *tokens);
        if (tokens) m->tokens = tokens;
        int32_t *targets = realloc(m->targets, (size_t)N * sizeof *targets);
        if (targets) m->targets = targets;
        if (!tokens || !targets) return fail(PYGPT_ERROR_MEMORY, "no memory for %" PRId64 " tokens", N);
        m->token_capacity = N;
    }
    return PYGPT_OK;
}

int reserve_backward(GPT2 *m) {
    int status = reserve_gradients(m);
    if (status != PYGPT_OK) return status;
    return grow(&m->activation_gradients, &m->activation_gradient_capacity, m->activation_gradient_table.size,
                "the gradients of the activations");
}

int gpt2_create(GPT2 **model, const GPT2Config *config, const GPT2Options *options) {
    *model = NULL;
    int status = check_options(options);
    if (status == PYGPT_OK) status = check_config(config);
    if (status != PYGPT_OK) return status;
    GPT2 *m = calloc(1, sizeof *m);
    if (!m) return fail(PYGPT_ERROR_MEMORY, "no memory for a model");
    m->config = *config;
    m->options = *options;
    m->kernels = pygpt_kernels(options->kernels, options->dtype);
    status = table_create(&m->weights, PYGPT_PARAMETER, config, options->recompute, 0, 0);
    if (status == PYGPT_OK) status = zeroed(&m->parameters, m->weights.size, "the parameters");
    if (status == PYGPT_OK) {
        *model = m;
    } else {
        gpt2_free(m);
    }
    return status;
}

void gpt2_free(GPT2 *m) {
    if (!m) return;
    float *const buffers[] = {m->parameters,     m->gradients,   m->first_moments,
                              m->second_moments, m->activations, m->activation_gradients,
                              m->logits};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) pygpt_release(buffers[i]);
    table_free(&m->weights);
    table_free(&m->activation_table);
    table_free(&m->activation_gradient_table);
    free(m->tokens);
    free(m->targets);
    free(m);
}

/* ---- where tensors lie ---- */

Flat flat_of(const GPT2 *m, int kind) {
    const Flat flats[] = {
        [PYGPT_PARAMETER] = {&m->weights, m->parameters},
        [PYGPT_GRADIENT] = {&m->weights, m->gradients},
        [PYGPT_FIRST_MOMENT] = {&m->weights, m->first_moments},
        [PYGPT_SECOND_MOMENT] = {&m->weights, m->second_moments},
        [PYGPT_ACTIVATION] = {&m->activation_table, m->B ? m->activations : NULL},
        [PYGPT_ACTIVATION_GRADIENT] = {&m->activation_gradient_table, m->went_back ? m->activation_gradients : NULL},
    };
    return flats[kind];
}

int *in_use_of(GPT2 *m) {
    return &m->in_use;
}

int check_pass(GPT2 *m) {
    (void)m;   // a pass is complete when its function returns
    return PYGPT_OK;
}

int gpt2_buffer(GPT2 *m, float **data, int64_t *size, int kind) {
    USE(m);
    int status = find_buffer(m, data, kind);
    if (status != PYGPT_OK) return status;
    *size = flat_of(m, kind).table->size;
    buffer_retain(*data);
    return PYGPT_OK;
}

int gpt2_read(GPT2 *m, float *values, int kind, int64_t index, int64_t size) {
    USE(m);
    Tensor tensor;
    float *buffer;
    int status = find_tensor(m, &tensor, &buffer, kind, index, size);
    if (status == PYGPT_OK) memcpy(values, buffer + tensor.offset, (size_t)tensor.size * sizeof *values);
    return status;
}

int gpt2_write(GPT2 *m, const float *values, int kind, int64_t index, int64_t size) {
    USE(m);
    Tensor tensor;
    float *buffer;
    int status = find_tensor(m, &tensor, &buffer, kind, index, size);
    if (status == PYGPT_OK) memcpy(buffer + tensor.offset, values, (size_t)tensor.size * sizeof *values);
    return status;
}
