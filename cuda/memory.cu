/* A model's memory on the device: how much it takes, whether there is so much, and buffers that grow when they must. */
#include "model.cuh"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>

static const int64_t PRODUCT_WORKSPACE = int64_t{32} << 20;   // of matmul.cuh

/* Rows of logits that the head makes at a time. The chunk's weight gradient is added to in float32, which costs as much
 * as so many rows of logits: so many rows at a time. */
constexpr int64_t HEAD_LOGITS = DIVIDES_WORK(int64_t{1} << 28, 1), HEAD_ROWS_STEP = DIVIDES_WORK(64, 8);

static int64_t head_rows(const GPT2Config &config, int64_t N) {
    const int64_t rows = HEAD_LOGITS / padded_vocabulary(config.vocab_size) / HEAD_ROWS_STEP * HEAD_ROWS_STEP;
    return min64(N, std::max(rows, HEAD_ROWS_STEP));
}

/* Weights of a flat buffer, and the rows of wte beyond the vocabulary. */
static int64_t flat_size(const TensorTable &weights) {
    return checked_add(
        weights.size,
        checked_mul(padded_vocabulary(weights.config.vocab_size) - weights.config.vocab_size, weights.config.n_embd));
}

/* What layers need while they run. */
static int64_t scratch_bytes(const GPT2Config &c, DataType type, bool fast, int64_t B, int64_t T, bool training) {
    const bool sums = type == DataType::bfloat16 && !fast;
    const size_t forward = sums ? linear_scratch(B * T, std::max(3 * c.n_embd, c.n_inner)) : 0;
    const size_t backward = std::max({embedding_scratch(B, T, c.n_embd), layernorm_scratch(B * T, c.n_embd),
                                      attention_scratch(B, T, c.n_head), norm_scratch()});
    return static_cast<int64_t>(training ? std::max(forward, backward) : forward);
}

int64_t gpt2_memory(const GPT2Config *config, const GPT2Options *options, int64_t B, int64_t T, int training) {
    if (check_config(config) != PYGPT_OK || check_options(options) != PYGPT_OK || B < 1 || T < 1 ||
        checked_mul(B, T) < 0)
        return -1;
    const DataType type = data_type(options->dtype);
    const bool fast = options->kernels == PYGPT_FAST;
    const int64_t size = static_cast<int64_t>(element_size(type));
    TensorTable weights = {}, tables[2] = {}, layouts[2] = {};
    int64_t bytes = -1;
    int status = table_create(&weights, PYGPT_PARAMETER, config, options->recompute, 0, 0);
    for (int i = 0; i < 2 && status == PYGPT_OK; i++) {
        status = table_create(&tables[i], i ? PYGPT_ACTIVATION_GRADIENT : PYGPT_ACTIVATION, config, options->recompute,
                              B, T);
        if (status == PYGPT_OK) status = make_layout(&layouts[i], &tables[i], type, fast);
    }
    if (status == PYGPT_OK) {
        const int64_t flat = flat_size(weights);
        bytes = checked_mul(flat, (training ? 16 : 4) + (type == DataType::bfloat16 ? 2 : 0));
        bytes = checked_add(bytes, checked_mul(layouts[0].size, sizeof(float)));
        if (training) bytes = checked_add(bytes, checked_mul(layouts[1].size, sizeof(float)));
        bytes = checked_add(
            bytes, checked_mul(checked_mul(head_rows(*config, B * T), padded_vocabulary(config->vocab_size)), size));
        bytes = checked_add(bytes, checked_mul(2 * B * T, sizeof(int32_t)));
        bytes = checked_add(bytes, weights.size / ADAMW_GROUP);
        bytes = checked_add(bytes, scratch_bytes(*config, type, fast, B, T, training));
        bytes = checked_add(bytes, PRODUCT_WORKSPACE);
    }
    table_free(&weights);
    for (int i = 0; i < 2; i++) {
        table_free(&tables[i]);
        table_free(&layouts[i]);
    }
    return bytes;
}

/* The device's memory: what the model has of it and what is left, and all. */
struct Room {
    double available = INFINITY, total = INFINITY;   // where CUDA does not tell, the allocation says what is wrong
};

static Room room_for(const GPT2 *m) {
    size_t free_bytes = 0, total_bytes = 0;
    if (cudaMemGetInfo(&free_bytes, &total_bytes) != cudaSuccess) {
        cudaGetLastError();
        return {};
    }
    return {static_cast<double>(free_bytes) + (m ? static_cast<double>(m->allocated) : 0.0),
            static_cast<double>(total_bytes)};
}

/* The end of a sentence on what the device has. */
static const char *others(const Room &room, double needed) {
    return needed > room.total ? "" : ", because other processes and models use the rest";
}

/* The largest n <= most for which fits(n), which is true up to some n; 0 if for none. */
template <class Fits> static int64_t largest(int64_t most, Fits fits) {
    int64_t low = 0;
    for (int64_t high = most; low < high;) {
        const int64_t middle = low + (high - low + 1) / 2;
        if (fits(middle)) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

/* Says before a run that it would not fit, and what would. */
static int check_batch(const GPT2 *m, int64_t B, int64_t T, bool training) {
    const Room room = room_for(m);
    const double available = room.available;
    auto needs = [&](int64_t batch) {
        return static_cast<double>(gpt2_memory(&m->config, &m->options, batch, T, training));
    };
    auto fits = [&](int64_t batch) { return needs(batch) <= available; };
    if (fits(B)) return PYGPT_OK;
    const int64_t would = largest(B, fits);
    char advice[120];
    if (would > 0) {
        snprintf(advice, sizeof advice, "%" PRId64 " x %" PRId64 " would fit", would, T);
    } else {
        snprintf(advice, sizeof advice, "not even 1 x %" PRId64 " would fit", T);
    }
    return fail(PYGPT_ERROR_MEMORY,
                "%s batches of %" PRId64 " x %" PRId64 " tokens needs %.2f GiB, and the device has %.2f%s: %s%s",
                training ? "training with" : "a forward pass of", B, T, needs(B) / GIB, available / GIB,
                others(room, needs(B)), advice,
                m->options.recompute == PYGPT_RECOMPUTE_BLOCK ? "" : ", and recompute \"block\" needs less");
}

int check_model(const GPT2Config *config, const GPT2Options *options) {
    const Room room = room_for(nullptr);
    const double available = room.available;
    auto needs = [&](int64_t layers) {
        GPT2Config c = *config;
        c.n_layer = layers;
        return static_cast<double>(gpt2_memory(&c, options, 1, 1, 0));
    };
    if (needs(config->n_layer) <= available) return PYGPT_OK;
    return fail(PYGPT_ERROR_MEMORY,
                "a model with n_layer = %" PRId64 " and n_embd = %" PRId64
                " needs %.2f GiB, and the device has %.2f%s: n_layer = %" PRId64 " would fit",
                config->n_layer, config->n_embd, needs(config->n_layer) / GIB, available / GIB,
                others(room, needs(config->n_layer)),
                largest(config->n_layer, [&](int64_t layers) { return needs(layers) <= available; }));
}

int allocate(GPT2 *m, void **buffer, int64_t bytes, const char *what) {
    void *made = nullptr;
    if (const cudaError_t error = cudaMalloc(&made, static_cast<size_t>(bytes))) return fail_cuda(error, what);
    *buffer = made;
    m->allocated += bytes;
    m->replaced++;
    return PYGPT_OK;
}

static void release(GPT2 *m, void **buffer, int64_t bytes) {
    if (!*buffer) return;
    cudaStreamSynchronize(m->queue.stream);
    cudaFree(*buffer);
    *buffer = nullptr;
    m->allocated -= bytes;
    m->replaced++;
}

/* A buffer of at least so many bytes; *capacity is what it has. The old contents are lost where it grows. */
static int grow(GPT2 *m, void **buffer, int64_t *capacity, int64_t bytes, const char *what) {
    if (*buffer && *capacity >= bytes) return PYGPT_OK;
    release(m, buffer, *capacity);
    *capacity = 0;
    const int status = allocate(m, buffer, bytes, what);
    if (status == PYGPT_OK) *capacity = bytes;
    return status;
}

int clear(GPT2 *m, void *buffer, int64_t bytes) {
    note(m->queue, cudaMemsetAsync(buffer, 0, static_cast<size_t>(bytes), m->queue.stream), "clearing a buffer");
    return queue_status(m->queue);
}

int zeroed(GPT2 *m, void **buffer, int64_t bytes, const char *what) {
    if (*buffer) return PYGPT_OK;
    const int status = allocate(m, buffer, bytes, what);
    return status == PYGPT_OK ? clear(m, *buffer, bytes) : status;
}

int64_t flat_bytes(const GPT2 *m) {
    return flat_size(m->weights) * static_cast<int64_t>(sizeof(float));
}

int reserve_gradients(GPT2 *m) {
    return zeroed(m, address(&m->gradients), flat_bytes(m), "the gradients");
}

int reserve_moments(GPT2 *m) {
    int status = zeroed(m, address(&m->first_moments), flat_bytes(m), "AdamW's first moments");
    return status == PYGPT_OK ? zeroed(m, address(&m->second_moments), flat_bytes(m), "AdamW's second moments")
                              : status;
}

static int replace_table(TensorTable *table, TensorTable *layout, int kind, const GPT2 *m, int64_t B, int64_t T) {
    TensorTable made, made_layout;
    int status = table_create(&made, kind, &m->config, m->options.recompute, B, T);
    if (status != PYGPT_OK) return status;
    status = make_layout(&made_layout, &made, m->queue.type, m->queue.fast);
    if (status != PYGPT_OK) {
        table_free(&made);
        return status;
    }
    table_free(table);
    table_free(layout);
    *table = made;
    *layout = made_layout;
    return PYGPT_OK;
}

int reserve_forward(GPT2 *m, int64_t B, int64_t T, bool training) {
    if (m->B == B && m->T == T && (!training || m->activation_gradients)) return PYGPT_OK;
    int status = check_batch(m, B, T, training);
    if (status != PYGPT_OK) return status;
    const int64_t N = B * T, Vp = padded_vocabulary(m->config.vocab_size),
                  size = static_cast<int64_t>(element_size(m->queue.type));
    m->B = m->T = 0;   // there is no forward pass to go back from until the next one has run
    m->went_back = false;
    status = replace_table(&m->activation_table, &m->activation_layout, PYGPT_ACTIVATION, m, B, T);
    if (status == PYGPT_OK)
        status = replace_table(&m->activation_gradient_table, &m->activation_gradient_layout, PYGPT_ACTIVATION_GRADIENT,
                               m, B, T);
    if (status == PYGPT_OK)
        status =
            grow(m, address(&m->activations), &m->activation_bytes, m->activation_layout.size * 4, "the activations");
    int64_t logits_bytes = m->rows * Vp * size;
    if (status == PYGPT_OK)
        status =
            grow(m, &m->logits, &logits_bytes, head_rows(m->config, N) * Vp * size, "the logits of a chunk of rows");
    m->rows = logits_bytes / (Vp * size);
    if (status != PYGPT_OK || m->token_capacity >= N) return status;
    const int64_t old_bytes = m->token_capacity * 4;
    m->token_capacity = 0;
    release(m, address(&m->tokens), old_bytes);
    release(m, address(&m->targets), old_bytes);
    status = allocate(m, address(&m->tokens), N * 4, "the tokens");
    if (status == PYGPT_OK) status = allocate(m, address(&m->targets), N * 4, "the targets");
    if (status == PYGPT_OK) m->token_capacity = N;
    return status;
}

int reserve_backward(GPT2 *m) {
    const int status = reserve_gradients(m);
    if (status != PYGPT_OK) return status;
    return grow(m, address(&m->activation_gradients), &m->activation_gradient_bytes,
                m->activation_gradient_layout.size * 4, "the gradients of the activations");
}
