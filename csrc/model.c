/* A model's memory, its tensors by name, and the optimizer's step. */
#include "model.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "philox.h"

static const double GIB = 1024.0 * 1024.0 * 1024.0;

/* ---- memory ---- */

/* Rows of logits that the head makes at a time: up to 2^24 of them, or 64 MB. */
static int64_t head_rows(const GPT2Config *config, int64_t N) {
    int64_t rows = (1 << 24) / config->vocab_size / 64 * 64;
    return min64(N, rows < 64 ? 64 : rows);
}

int64_t gpt2_memory(const GPT2Config *config, const GPT2Options *options, int64_t B, int64_t T, int training) {
    TensorTable weights, activations, gradients;
    int64_t floats = -1;
    if (check_config(config) != PYGPT_OK || B < 1 || T < 1 || checked_mul(B, T) < 0) return -1;
    int status = table_create(&weights, PYGPT_PARAMETER, config, options->recompute, 0, 0);
    if (status != PYGPT_OK) return -1;
    status = table_create(&activations, PYGPT_ACTIVATION, config, options->recompute, B, T);
    if (status == PYGPT_OK) {
        status = table_create(&gradients, PYGPT_ACTIVATION_GRADIENT, config, options->recompute, B, T);
        if (status == PYGPT_OK) {
            int64_t head = checked_mul(head_rows(config, B * T), config->vocab_size);
            floats = checked_add(checked_mul(weights.size, training ? 4 : 1), activations.size);
            floats = checked_add(floats, checked_mul(head, training ? 2 : 1));
            floats = checked_add(floats, checked_mul(2, B * T));   // tokens and targets
            if (training) floats = checked_add(floats, gradients.size);
            table_free(&gradients);
        }
        table_free(&activations);
    }
    table_free(&weights);
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

static int reserve_moments(GPT2 *m) {
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
    m->B = m->T = m->counted = m->went_back =
        0;   // there is no forward pass to go back from until the next one has run
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
    int64_t V = m->config.vocab_size, capacity = m->dlogits_rows * V;
    int status = reserve_gradients(m);
    if (status == PYGPT_OK) {
        status = grow(&m->activation_gradients, &m->activation_gradient_capacity, m->activation_gradient_table.size,
                      "the gradients of the activations");
    }
    if (status == PYGPT_OK) status = grow(&m->dlogits, &capacity, m->rows * V, "the gradient of a chunk of logits");
    if (status == PYGPT_OK) m->dlogits_rows = capacity / V;
    return status;
}

int gpt2_create(GPT2 **model, const GPT2Config *config, const GPT2Options *options) {
    *model = NULL;
    const Kernels *kernels = pygpt_kernels(options->kernels, options->dtype);
    if (!kernels)
        return fail(PYGPT_ERROR_ARGUMENT, "kernels %d with dtype %d are not in this library", options->kernels,
                    options->dtype);
    if (options->recompute < PYGPT_KEEP_ALL || options->recompute > PYGPT_RECOMPUTE_BLOCK) {
        return fail(PYGPT_ERROR_ARGUMENT, "recompute is %d, expected 0, 1 or 2", options->recompute);
    }
    int status = check_config(config);
    if (status != PYGPT_OK) return status;
    GPT2 *m = calloc(1, sizeof *m);
    if (!m) return fail(PYGPT_ERROR_MEMORY, "no memory for a model");
    m->config = *config;
    m->options = *options;
    m->kernels = kernels;
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
                              m->logits,         m->dlogits};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) pygpt_release(buffers[i]);
    table_free(&m->weights);
    table_free(&m->activation_table);
    table_free(&m->activation_gradient_table);
    free(m->tokens);
    free(m->targets);
    free(m);
}

/* ---- initialisation ---- */

/* Normal numbers by Box and Muller's method (1958), in double, from the words of Philox's step that no forward pass reaches. */
static void fill_normal(float *x, int64_t n, double deviation, uint32_t number, uint64_t seed) {
    #pragma omp parallel for
    for (int64_t i = 0; i < n; i += 4) {
        PhiloxWords words = philox4x32((uint64_t)i / 4, number, UINT32_MAX, seed);
        double normal[4];
        for (int pair = 0; pair < 4; pair += 2) {
            double radius = sqrt(-2.0 * log((words.word[pair] + 0.5) / 4294967296.0));
            double angle = 6.283185307179586 * ((words.word[pair + 1] + 0.5) / 4294967296.0);
            normal[pair] = radius * cos(angle);
            normal[pair + 1] = radius * sin(angle);
        }
        for (int64_t j = i; j < min64(i + 4, n); j++) x[j] = (float)(deviation * normal[j - i]);
    }
}

int gpt2_init_weights(GPT2 *m, uint64_t seed) {
    double deviation = m->config.initializer_range, narrower = deviation / sqrt(2.0 * (double)m->config.n_layer);
    for (int64_t i = 0; i < m->weights.count; i++) {
        const Tensor *tensor = &m->weights.tensors[i];
        float *w = m->parameters + tensor->offset;
        if (tensor->initialisation == PYGPT_INIT_NORMAL || tensor->initialisation == PYGPT_INIT_RESIDUAL) {
            fill_normal(w, tensor->size, tensor->initialisation == PYGPT_INIT_NORMAL ? deviation : narrower,
                        (uint32_t)i, seed);
        } else {
            for (int64_t j = 0; j < tensor->size; j++) w[j] = tensor->initialisation == PYGPT_INIT_ONE ? 1.0f : 0.0f;
        }
    }
    return PYGPT_OK;
}

/* ---- the optimizer ---- */

int gpt2_zero_grad(GPT2 *m) {
    int status = reserve_gradients(m);
    if (status != PYGPT_OK) return status;
    #pragma omp parallel for simd
    for (int64_t i = 0; i < m->weights.size; i++) m->gradients[i] = 0.0f;
    return PYGPT_OK;
}

int gpt2_clip_grad_norm(GPT2 *m, double *norm, float max_norm) {
    int status = reserve_gradients(m);
    if (status != PYGPT_OK) return status;
    *norm = sqrt(m->kernels->sum_of_squares(m->gradients, m->weights.size));
    if (max_norm > 0.0f && *norm > max_norm)
        m->kernels->scale(m->gradients, (float)(max_norm / *norm), m->weights.size);
    return PYGPT_OK;
}

int gpt2_adamw_step(GPT2 *m, float lr, float beta1, float beta2, float eps, float weight_decay, int64_t step) {
    if (step < 1) return fail(PYGPT_ERROR_ARGUMENT, "AdamW's step is %" PRId64 ", expected 1 or more", step);
    int status = reserve_gradients(m);
    if (status == PYGPT_OK) status = reserve_moments(m);
    if (status != PYGPT_OK) return status;
    for (int64_t i = 0; i < m->weights.count; i++) {
        const Tensor *t = &m->weights.tensors[i];
        m->kernels->adamw_step(m->parameters + t->offset, m->first_moments + t->offset, m->second_moments + t->offset,
                               m->gradients + t->offset, t->size, lr, beta1, beta2, eps,
                               t->weight_decay ? weight_decay : 0.0f, step);
    }
    return PYGPT_OK;
}

/* ---- tensors by name ---- */

static const TensorTable *table_of(const GPT2 *m, int kind) {
    switch (kind) {
    case PYGPT_ACTIVATION: return &m->activation_table;
    case PYGPT_ACTIVATION_GRADIENT: return &m->activation_gradient_table;
    default: return &m->weights;
    }
}

/* The flat buffer of a kind, made if it is one that comes with its first use. */
static int buffer_of(GPT2 *m, float **buffer, int kind) {
    int status = PYGPT_OK;
    *buffer = NULL;
    if (kind == PYGPT_GRADIENT) status = reserve_gradients(m);
    if (kind == PYGPT_FIRST_MOMENT || kind == PYGPT_SECOND_MOMENT) status = reserve_moments(m);
    if (status != PYGPT_OK) return status;
    switch (kind) {
    case PYGPT_PARAMETER: *buffer = m->parameters; break;
    case PYGPT_GRADIENT: *buffer = m->gradients; break;
    case PYGPT_FIRST_MOMENT: *buffer = m->first_moments; break;
    case PYGPT_SECOND_MOMENT: *buffer = m->second_moments; break;
    case PYGPT_ACTIVATION: *buffer = m->B ? m->activations : NULL; break;
    case PYGPT_ACTIVATION_GRADIENT: *buffer = m->went_back ? m->activation_gradients : NULL; break;
    default: return fail(PYGPT_ERROR_ARGUMENT, "tensor kind is %d, expected 0 ... 5", kind);
    }
    if (*buffer) return PYGPT_OK;
    return fail(PYGPT_ERROR_ARGUMENT, kind == PYGPT_ACTIVATION
                                          ? "there are no activations before a forward pass"
                                          : "there are no gradients of activations before a backward pass");
}

int64_t gpt2_num_tensors(const GPT2 *m, int kind) {
    return table_of(m, kind)->count;
}

int gpt2_tensor(const GPT2 *m, Tensor *tensor, int kind, int64_t index) {
    const TensorTable *table = table_of(m, kind);
    if (index < 0 || index >= table->count) {
        return fail(PYGPT_ERROR_ARGUMENT, "tensor %" PRId64 " was asked for, expected 0 ... %" PRId64, index,
                    table->count - 1);
    }
    *tensor = table->tensors[index];
    return PYGPT_OK;
}

int gpt2_buffer(GPT2 *m, float **data, int64_t *size, int kind) {
    int status = buffer_of(m, data, kind);
    if (status != PYGPT_OK) return status;
    *size = table_of(m, kind)->size;
    buffer_retain(*data);
    return PYGPT_OK;
}

static int locate(GPT2 *m, float **values, int64_t *size, int kind, int64_t index) {
    Tensor tensor;
    int status = buffer_of(m, values, kind);
    if (status != PYGPT_OK) return status;
    status = gpt2_tensor(m, &tensor, kind, index);
    if (status != PYGPT_OK) return status;
    *values += tensor.offset;
    *size = tensor.size;
    return PYGPT_OK;
}

int gpt2_read(GPT2 *m, float *values, int kind, int64_t index) {
    float *tensor;
    int64_t size;
    int status = locate(m, &tensor, &size, kind, index);
    if (status == PYGPT_OK) memcpy(values, tensor, (size_t)size * sizeof *values);
    return status;
}

int gpt2_write(GPT2 *m, const float *values, int kind, int64_t index) {
    float *tensor;
    int64_t size;
    int status = locate(m, &tensor, &size, kind, index);
    if (status == PYGPT_OK) memcpy(tensor, values, (size_t)size * sizeof *values);
    return status;
}
