/* A model's memory on the device: how much it takes, whether there is so much, and buffers that grow when they must. */
#include "layers/column_sums.cuh"
#include "model.cuh"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>

/* Logits that the head makes at a time. The chunk's weight gradient is added to in float32, which costs as much as so many
 * rows of logits: so many rows at a time. */
constexpr int64_t MOST_LOGITS = DIVIDES_WORK(int64_t{1} << 28, 1), LEAST_ROWS = DIVIDES_WORK(64, 8);

/* As few chunks as that allows, of equal size but for rounding: a nearly empty last one would leave the device idle. */
int64_t head_rows(const GPT2Config &config, int64_t N) {
    const int64_t most = std::max(MOST_LOGITS / padded_vocabulary(config.vocab_size) / LEAST_ROWS, int64_t{1});
    const int64_t groups = divide_up(N, LEAST_ROWS);   // of rows; a chunk has whole ones
    return min64(N, divide_up(groups, divide_up(groups, most)) * LEAST_ROWS);
}

/* Floats of a buffer of so many weights, and of the rows of wte beyond the vocabulary. */
static int64_t flat_size(int64_t weights, const GPT2Config &c) {
    return checked_add(weights, checked_mul(padded_vocabulary(c.vocab_size) - c.vocab_size, c.n_embd));
}

/* What layers need while they run. */
static int64_t scratch_bytes(const GPT2Config &c, int64_t weights, DataType type, bool fast, int64_t B, int64_t T,
                             bool training) {
    const bool sums = type == DataType::bfloat16 && !fast;
    const size_t forward = sums ? linear_scratch(B * T, std::max(3 * c.n_embd, c.n_inner)) : 0;
    const auto bias = [&](int64_t OC) { return column_sums_scratch(type, B * T, OC); };
    const size_t backward = std::max({embedding_scratch(B, T, c.n_embd), layernorm_scratch(type, B * T, c.n_embd),
                                      attention_scratch(B, T, c.n_head), norm_scratch(weights), bias(c.n_embd),
                                      bias(3 * c.n_embd), bias(c.n_inner)});
    return static_cast<int64_t>(training ? std::max(forward, backward) : forward);
}

/* Bytes of a buffer of activations or of their gradients, found as table_size() does; -1 if they overflow. */
static int64_t layout_bytes(int kind, const GPT2Config &config, const GPT2Options &options, int64_t B, int64_t T) {
    int64_t sizes[2];
    for (int i = 0; i < 2; i++) {
        GPT2Config few = config;
        few.n_layer = min64(config.n_layer, 2 + i);
        TensorTable table = {}, layout = {};
        int status = table_create(&table, kind, &few, options.recompute, B, T);
        if (status == PYGPT_OK)
            status = make_layout(&layout, &table, data_type(options.dtype), options.kernels == PYGPT_FAST);
        sizes[i] = status == PYGPT_OK ? layout.size : -1;
        table_free(&table);
        table_free(&layout);
    }
    return checked_mul(config.n_layer > 2 ? size_of_layers(config.n_layer, sizes[0], sizes[1]) : sizes[0],
                       sizeof(float));
}

/* Of what muon_step() works in; -1 if they overflow. */
static int64_t muon_bytes(const GPT2Config &c) {
    return checked_mul(checked_add(muon_scratch(&c), 2), sizeof(float));
}

int64_t gpt2_memory(const GPT2Config *config, const GPT2Options *options, int64_t B, int64_t T, int purpose) {
    if (check_config(config) != PYGPT_OK || check_options(options) != PYGPT_OK || B < 1 || T < 1 ||
        checked_mul(B, T) < 0)
        return -1;
    const DataType type = data_type(options->dtype);
    const int64_t Vp = padded_vocabulary(config->vocab_size), size = static_cast<int64_t>(element_size(type));
    const int64_t weights = table_size(PYGPT_PARAMETER, config, options->recompute, 0, 0);
    const bool training = purpose != PYGPT_INFERENCE;
    int64_t bytes = checked_mul(checked_mul(flat_size(weights, *config), copies_of_weights(purpose)), 4);
    if (type == DataType::bfloat16) bytes = checked_add(bytes, checked_mul(flat_size(weights, *config), 2));
    if (purpose == PYGPT_MUON)
        bytes = checked_add(checked_add(bytes, muon_bytes(*config)),
                            checked_mul(flat_size(size_without_muon(config), *config), 4));
    if (config->position_embedding == PYGPT_SINUSOIDAL)
        bytes = checked_add(bytes, checked_mul(checked_mul(config->n_positions, config->n_embd), size));
    bytes = checked_add(bytes, layout_bytes(PYGPT_ACTIVATION, *config, *options, B, T));
    if (training) bytes = checked_add(bytes, layout_bytes(PYGPT_ACTIVATION_GRADIENT, *config, *options, B, T));
    bytes = checked_add(bytes, checked_mul(checked_mul(head_rows(*config, B * T), Vp), size));
    bytes = checked_add(bytes, checked_mul(checked_mul(2, B * T), sizeof(int32_t)));
    if (bytes < 0) return -1;   // before what is made of B * T unchecked
    bytes = checked_add(bytes, weights / UPDATE_GROUP);
    bytes = checked_add(bytes, scratch_bytes(*config, weights, type, options->kernels == PYGPT_FAST, B, T, training));
    return checked_add(bytes, static_cast<int64_t>(MATMUL_WORKSPACE + sizeof(PassState)));
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

/* Of so many first or second moments. */
static int64_t moment_bytes(const GPT2 *m, int64_t count) {
    return flat_bytes(m) - weights_bytes(m) + count * static_cast<int64_t>(sizeof(float));
}

/* Of some of the float32 weights: never nothing, since NULL is a buffer that is not there yet. */
static int64_t master_bytes(const Part &part) {
    return max64(part.size, 1) * static_cast<int64_t>(sizeof(float));
}

/* Says before a run that it would not fit, and what would. */
static int check_batch(const GPT2 *m, int64_t B, int64_t T, bool training) {
    const Room room = room_for(m);
    const double available = room.available;
    /* Moments that are not there yet have their own error, in the first update. */
    const int64_t moments = (m->first_moments ? moment_bytes(m, m->own.size) : 0) +
                            (m->second_moments ? moment_bytes(m, m->second_count) : 0);
    const int64_t sums = static_cast<int64_t>(m->kept.size()) * weights_bytes(m);
    const int64_t elsewhere = m->masters.size < m->weights.size ? flat_bytes(m) - master_bytes(m->masters) : 0;
    auto needs = [&](int64_t batch) {
        const int purpose = training ? PYGPT_SGD : PYGPT_INFERENCE;
        return static_cast<double>(gpt2_memory(&m->config, &m->options, batch, T, purpose)) +
               static_cast<double>((training ? moments + sums : 0) - elsewhere);
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

int check_generator_memory(const GPT2Config *config, int weights, int cache, int64_t B, int64_t positions) {
    const Room room = room_for(nullptr);
    const double available = room.available;
    auto needs = [&](int64_t count) {
        const int64_t bytes = generator_memory(config, weights, cache, B, count);
        return bytes < 0 ? INFINITY : static_cast<double>(bytes);
    };
    if (needs(positions) <= available) return PYGPT_OK;
    return fail(PYGPT_ERROR_MEMORY,
                "a generator of %" PRId64 " sequences of %" PRId64
                " positions needs %.2f GiB, and the device has %.2f%s: %" PRId64 " positions would fit",
                B, positions, needs(positions) / GIB, available / GIB, others(room, needs(positions)),
                largest(positions, [&](int64_t count) { return needs(count) <= available; }));
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

/* A buffer of at least so many bytes, of `wanted` if it has to grow, that is more and so many are free; *capacity is what it
 * has. The old contents are lost where it grows. */
static int grow(GPT2 *m, void **buffer, int64_t *capacity, int64_t bytes, int64_t wanted, const char *what) {
    if (*buffer && *capacity >= bytes) return PYGPT_OK;
    release(m, buffer, *capacity);
    *capacity = 0;
    if (wanted < bytes || static_cast<double>(wanted) > room_for(nullptr).available) wanted = bytes;
    const int status = allocate(m, buffer, wanted, what);
    if (status == PYGPT_OK) *capacity = wanted;
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
    return flat_size(m->weights.size, m->config) * static_cast<int64_t>(sizeof(float));
}

int64_t weights_bytes(const GPT2 *m) {
    return m->weights.size * static_cast<int64_t>(sizeof(float));
}

int reserve_gradients(GPT2 *m) {
    return zeroed(m, address(&m->gradients), flat_bytes(m), "the gradients");
}

int reserve_moments(GPT2 *m, int kind, int64_t end) {
    if (kind == PYGPT_FIRST_MOMENT)
        return zeroed(m, address(&m->first_moments), moment_bytes(m, m->own.size), "the optimizer's first moments");
    if (m->second_moments && m->second_count >= min64(end, m->own.size)) return PYGPT_OK;
    const bool all = end > m->weights.without_muon || m->own.size < m->weights.size;   // Muon owns all
    const int64_t count = all ? m->own.size : m->weights.without_muon;
    float *made = nullptr;
    int status = zeroed(m, address(&made), moment_bytes(m, count), "the optimizer's second moments");
    if (status != PYGPT_OK) return status;
    if (m->second_moments) {   // the optimizer was Muon up to here
        const auto bytes = static_cast<size_t>(m->second_count) * sizeof(float);
        note(m->queue, cudaMemcpyAsync(made, m->second_moments, bytes, cudaMemcpyDeviceToDevice, m->queue.stream),
             "moving the second moments");
        release(m, address(&m->second_moments), moment_bytes(m, m->second_count));
    }
    m->second_moments = made;
    m->second_count = count;
    return queue_status(m->queue);
}

int keep_masters(GPT2 *m, const Part &part) {
    float *made = nullptr;
    const int status = allocate(m, address(&made), master_bytes(part), "a part of the float32 weights");
    if (status != PYGPT_OK) return status;
    note(m->queue,
         cudaMemcpyAsync(made, m->parameters + part.begin, static_cast<size_t>(part.size) * sizeof(float),
                         cudaMemcpyDeviceToDevice, m->queue.stream),
         "a part of the float32 weights");
    release(m, address(&m->parameters), flat_bytes(m));
    m->parameters = made;
    m->masters = part;
    return queue_status(m->queue);
}

int reserve_muon(GPT2 *m) {
    return zeroed(m, address(&m->muon_scratch), muon_bytes(m->config), "the matrices of Muon");
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
    const GPT2Config &c = m->config;
    const int64_t room = training ? T : length_with_headroom(m->B, m->T, B, T, c.n_positions);
    m->B = m->T = 0;   // there is no forward pass to go back from until the next one has run
    m->went_back = false;
    status = replace_table(&m->activation_table, &m->activation_layout, PYGPT_ACTIVATION, m, B, T);
    if (status == PYGPT_OK)
        status = replace_table(&m->activation_gradient_table, &m->activation_gradient_layout, PYGPT_ACTIVATION_GRADIENT,
                               m, B, T);
    if (status != PYGPT_OK) return status;
    const auto logits_bytes = [&](int64_t N) {
        return head_rows(c, N) * padded_vocabulary(c.vocab_size) * static_cast<int64_t>(element_size(m->queue.type));
    };
    const auto token_bytes = [&](int64_t N) { return N * static_cast<int64_t>(sizeof *m->tokens); };
    const struct {
        void **buffer;
        int64_t *capacity, bytes, wanted;
        const char *what;
    } buffers[] = {
        {address(&m->activations), &m->activation_bytes, m->activation_layout.size * 4,
         layout_bytes(PYGPT_ACTIVATION, c, m->options, B, room), "the activations"},
        {&m->logits, &m->logits_bytes, logits_bytes(B * T), logits_bytes(B * room), "the logits of a chunk of rows"},
        {address(&m->tokens), &m->token_bytes, token_bytes(B * T), token_bytes(B * room), "the tokens"},
        {address(&m->targets), &m->target_bytes, token_bytes(B * T), token_bytes(B * room), "the targets"},
    };
    for (const auto &b : buffers)
        if (status == PYGPT_OK) status = grow(m, b.buffer, b.capacity, b.bytes, b.wanted, b.what);
    return status;
}

int reserve_backward(GPT2 *m) {
    const int status = reserve_gradients(m);
    if (status != PYGPT_OK) return status;
    const int64_t bytes = m->activation_gradient_layout.size * 4;
    return grow(m, address(&m->activation_gradients), &m->activation_gradient_bytes, bytes, bytes,
                "the gradients of the activations");
}
