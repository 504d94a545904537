/* A model's memory, and where in it the tensors lie. */
#include "model.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fast/gemm.h"
#include "positions.h"

/* Logits that the head makes at a time: up to 256 MB, in chunks of equal size. */
enum { MOST_LOGITS = DIVIDES_WORK(1 << 26, 1), LEAST_ROWS = DIVIDES_WORK(64, 4) };

int64_t head_rows(const GPT2Config *config, int64_t N) {
    return divide_up(N, divide_up(N, max64(MOST_LOGITS / config->vocab_size, LEAST_ROWS)));
}

static int64_t head_logits(const GPT2Config *config, int64_t N) {
    return checked_mul(head_rows(config, N), config->vocab_size);
}

/* Numbers of the table of positions that are not learned. */
static int64_t sinusoidal_size(const GPT2Config *config) {
    return config->position_embedding == PYGPT_SINUSOIDAL ? checked_mul(config->n_positions, config->n_embd) : 0;
}

int64_t gpt2_memory(const GPT2Config *config, const GPT2Options *options, int64_t B, int64_t T, int purpose) {
    if (check_config(config) != PYGPT_OK || check_options(options) != PYGPT_OK || B < 1 || T < 1 ||
        checked_mul(B, T) < 0) {
        return -1;
    }
    int64_t weights = buffer_bytes(table_size(PYGPT_PARAMETER, config, options->recompute, 0, 0));
    int64_t bytes = checked_mul(weights, copies_of_weights(purpose));
    if (purpose == PYGPT_MUON) {
        bytes = checked_add(bytes, buffer_bytes(size_without_muon(config)));
        bytes = checked_add(bytes, buffer_bytes(muon_scratch(config)));
    }
    if (sinusoidal_size(config)) bytes = checked_add(bytes, buffer_bytes(sinusoidal_size(config)));
    bytes = checked_add(bytes, buffer_bytes(table_size(PYGPT_ACTIVATION, config, options->recompute, B, T)));
    if (purpose != PYGPT_INFERENCE) {
        int64_t gradients = table_size(PYGPT_ACTIVATION_GRADIENT, config, options->recompute, B, T);
        bytes = checked_add(bytes, buffer_bytes(gradients));
    }
    bytes = checked_add(bytes, buffer_bytes(head_logits(config, B * T)));
    bytes = checked_add(bytes, checked_mul(checked_mul(2, B * T), sizeof(int32_t)));   // tokens and targets
    return options->kernels == PYGPT_FAST ? checked_add(bytes, gemm_workspace_bytes()) : bytes;
}

static int fail_memory(int64_t count, const char *what) {
    return fail(PYGPT_ERROR_MEMORY, "no memory for %s: %.2f GiB were asked for", what,
                (double)count * sizeof(float) / GIB);
}

/* A buffer of at least `count` floats, of `wanted` if it has to grow, that is more and there is so much; *capacity is what
 * it has. It is freed before it grows: nobody needs its contents, and both together might not fit. */
static int grow(float **buffer, int64_t *capacity, int64_t count, int64_t wanted, const char *what) {
    if (*buffer && *capacity >= count) return PYGPT_OK;
    pygpt_release(*buffer);
    *capacity = max64(count, wanted);   // a longer pass may have shorter chunks of logits
    *buffer = buffer_allocate(*capacity);
    if (!*buffer) {
        *capacity = count;
        *buffer = buffer_allocate(count);
    }
    return *buffer ? PYGPT_OK : fail_memory(count, what);
}

static int zeroed(float **buffer, int64_t count, const char *what) {
    if (*buffer) return PYGPT_OK;
    *buffer = buffer_allocate(count);
    if (!*buffer) return fail_memory(count, what);
    #pragma omp parallel for simd
    for (int64_t i = 0; i < count; i++) (*buffer)[i] = 0.0f;
    return PYGPT_OK;
}

int reserve_gradients(GPT2 *m) {
    return zeroed(&m->gradients, m->weights.size, "the gradients");
}

int reserve_moments(GPT2 *m, int kind, int64_t end) {
    if (kind == PYGPT_FIRST_MOMENT) return zeroed(&m->first_moments, m->weights.size, "the optimizer's first moments");
    if (m->second_moments && m->second_count >= end) return PYGPT_OK;
    int64_t count = end > m->weights.without_muon ? m->weights.size : m->weights.without_muon;
    float *made = NULL;
    int status = zeroed(&made, count, "the optimizer's second moments");
    if (status != PYGPT_OK) return status;
    if (m->second_moments) memcpy(made, m->second_moments, (size_t)m->second_count * sizeof *made);
    pygpt_release(m->second_moments);
    m->second_moments = made;
    m->second_count = count;
    return PYGPT_OK;
}

int reserve_muon(GPT2 *m) {
    return zeroed(&m->muon_scratch, muon_scratch(&m->config), "the matrices of Muon");
}

static int replace_table(TensorTable *table, int kind, const GPT2 *m, int64_t B, int64_t T) {
    TensorTable made;
    int status = table_create(&made, kind, &m->config, m->options.recompute, B, T);
    if (status != PYGPT_OK) return status;
    table_free(table);
    *table = made;
    return PYGPT_OK;
}

static int reserve_tokens(GPT2 *m, int64_t count, int64_t wanted) {
    if (m->token_capacity >= count) return PYGPT_OK;
    int32_t *tokens = realloc(m->tokens, (size_t)wanted * sizeof *tokens);
    if (tokens) m->tokens = tokens;
    int32_t *targets = realloc(m->targets, (size_t)wanted * sizeof *targets);
    if (targets) m->targets = targets;
    if (!tokens || !targets) return fail(PYGPT_ERROR_MEMORY, "no memory for %" PRId64 " tokens", wanted);
    m->token_capacity = wanted;
    return PYGPT_OK;
}

int reserve_forward(GPT2 *m, int64_t B, int64_t T) {
    const GPT2Config *c = &m->config;
    if (m->B == B && m->T == T) return PYGPT_OK;
    int64_t N = B * T, room = length_with_headroom(m->B, m->T, B, T, c->n_positions);
    m->B = m->T = m->went_back = 0;   // nothing to go back from until the next forward pass has run
    int status = replace_table(&m->activation_table, PYGPT_ACTIVATION, m, B, T);
    if (status == PYGPT_OK) status = replace_table(&m->activation_gradient_table, PYGPT_ACTIVATION_GRADIENT, m, B, T);
    if (status != PYGPT_OK) return status;
    int64_t activations = m->activation_table.size;
    if (room > T) activations = table_size(PYGPT_ACTIVATION, c, m->options.recompute, B, room);
    status = grow(&m->activations, &m->activation_capacity, m->activation_table.size, activations, "the activations");
    if (status == PYGPT_OK)
        status = grow(&m->logits, &m->logits_capacity, head_logits(c, N), head_logits(c, B * room),
                      "the logits of a chunk of rows");
    return status == PYGPT_OK ? reserve_tokens(m, N, B * room) : status;
}

int reserve_backward(GPT2 *m) {
    int status = reserve_gradients(m);
    int64_t size = m->activation_gradient_table.size;
    if (status != PYGPT_OK) return status;
    return grow(&m->activation_gradients, &m->activation_gradient_capacity, size, size,
                "the gradients of the activations");
}

static Activation activation_of(const Kernels *k, int activation_function) {
    switch (activation_function) {
    case PYGPT_GELU: return (Activation){k->exact_gelu_forward, k->exact_gelu_backward};
    case PYGPT_RELU: return (Activation){k->relu_forward, k->relu_backward};
    default: return (Activation){k->gelu_forward, k->gelu_backward};
    }
}

static int make_sinusoidal(GPT2 *m) {
    int64_t size = sinusoidal_size(&m->config);
    if (!size) return PYGPT_OK;
    m->sinusoidal = size < 0 ? NULL : buffer_allocate(size);
    if (!m->sinusoidal) return fail_memory(size, "the positions");
    fill_sinusoidal(m->sinusoidal, m->config.n_positions, m->config.n_embd);
    return PYGPT_OK;
}

int gpt2_create(GPT2 **model, const GPT2Config *config, const GPT2Options *options) {
    *model = NULL;
    int status = check_options(options);
    if (status == PYGPT_OK) status = check_config(config);
    if (status != PYGPT_OK) return status;
    int64_t size = table_size(PYGPT_PARAMETER, config, options->recompute, 0, 0);
    if (size < 0) return fail(PYGPT_ERROR_ARGUMENT, "the sizes of a model of this configuration overflow 64 bits");
    GPT2 *m = calloc(1, sizeof *m);
    if (!m) return fail(PYGPT_ERROR_MEMORY, "no memory for a model");
    m->config = *config;
    m->options = *options;
    m->kernels = pygpt_kernels(options->kernels, options->dtype);
    m->activation = activation_of(m->kernels, config->activation_function);
    status = zeroed(&m->parameters, size, "the parameters");   // before a table, which may have millions of rows
    if (status == PYGPT_OK) status = make_sinusoidal(m);
    if (status == PYGPT_OK) status = table_create(&m->weights, PYGPT_PARAMETER, config, options->recompute, 0, 0);
    if (status == PYGPT_OK) {
        *model = m;
    } else {
        gpt2_free(m);
    }
    return status;
}

void gpt2_free(GPT2 *m) {
    if (!m) return;
    float *const buffers[] = {m->parameters, m->gradients,    m->first_moments, m->second_moments,
                              m->sinusoidal, m->muon_scratch, m->activations,   m->activation_gradients,
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
        [PYGPT_PARAMETER] = {&m->weights, m->parameters, m->weights.size},
        [PYGPT_GRADIENT] = {&m->weights, m->gradients, m->weights.size},
        [PYGPT_FIRST_MOMENT] = {&m->weights, m->first_moments, m->first_moments ? m->weights.size : 0},
        [PYGPT_SECOND_MOMENT] = {&m->weights, m->second_moments, m->second_count},
        [PYGPT_ACTIVATION] = {&m->activation_table, m->B ? m->activations : NULL, m->activation_table.size},
        [PYGPT_ACTIVATION_GRADIENT] = {&m->activation_gradient_table, m->went_back ? m->activation_gradients : NULL,
                                       m->activation_gradient_table.size},
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
    *size = flat_of(m, kind).size;
    buffer_retain(*data);
    return PYGPT_OK;
}

int gpt2_read(GPT2 *m, float *values, int kind, int64_t index, int64_t size) {
    USE(m);
    Tensor tensor;
    float *buffer;
    int status = find_tensor(m, &tensor, &buffer, kind, index, size, 0);
    if (status != PYGPT_OK) return status;
    size_t bytes = (size_t)tensor.size * sizeof *values;
    if (buffer) {
        memcpy(values, buffer + tensor.offset, bytes);
    } else {
        memset(values, 0, bytes);
    }
    return PYGPT_OK;
}

int gpt2_write(GPT2 *m, const float *values, int kind, int64_t index, int64_t size) {
    USE(m);
    Tensor tensor;
    float *buffer;
    int status = find_tensor(m, &tensor, &buffer, kind, index, size, 1);
    if (status == PYGPT_OK) memcpy(buffer + tensor.offset, values, (size_t)tensor.size * sizeof *values);
    return status;
}
