/* A model's memory, its tensors by name, and the optimizer's step. */
#include "model.cuh"

#include "layers/elements.cuh"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

/* ---- the configuration ---- */

static DataType type_of(const GPT2Options *options) {
    return options->dtype == PYGPT_BFLOAT16 ? DataType::bfloat16 : DataType::float32;
}

static int check_options(const GPT2Options *options) {
    if ((options->kernels != PYGPT_PLAIN && options->kernels != PYGPT_FAST) ||
        (options->dtype != PYGPT_FLOAT32 && options->dtype != PYGPT_BFLOAT16)) {
        return fail(PYGPT_ERROR_ARGUMENT, "kernels %d with dtype %d are not in this library", options->kernels,
                    options->dtype);
    }
    if (options->recompute < PYGPT_KEEP_ALL || options->recompute > PYGPT_RECOMPUTE_BLOCK) {
        return fail(PYGPT_ERROR_ARGUMENT, "recompute is %d, expected 0, 1 or 2", options->recompute);
    }
    return PYGPT_OK;
}

/* ---- where tensors lie ---- */

static bool ends_with(const std::string &text, const char *end) {
    const size_t length = strlen(end);
    return text.size() >= length && text.compare(text.size() - length, length, end) == 0;
}

/* Statistics of rows are float32 whatever the activations are. */
static DataType activation_type(const Tensor &tensor, DataType type) {
    const std::string name = tensor.name;
    const bool statistic =
        ends_with(name, ".mean") || ends_with(name, ".rstd") || ends_with(name, ".lse") || name == "losses";
    return statistic ? DataType::float32 : type;
}

/* The gradient with which a gradient shares its memory, because they are equal or, for GELU's output, because the
 * fused kernels leave it out; "" if none. */
static std::string shares_with(const Tensor &tensor, const GPT2Config &config, bool fused_gelu) {
    const bool dropout = config.resid_pdrop > 0.0f;
    const std::string name = tensor.name;
    const struct {
        const char *end, *other;
        bool shared;
    } rules[] = {{".attn.c_proj", ".resid_mid", !dropout},
                 {".attn.resid_dropout", ".resid_mid", true},
                 {".mlp.c_proj", ".resid_post", !dropout},
                 {".mlp.dropout", ".resid_post", true},
                 {".mlp.act", ".mlp.c_fc", fused_gelu}};
    for (const auto &rule : rules)
        if (rule.shared && ends_with(name, rule.end))
            return name.substr(0, name.size() - strlen(rule.end)) + rule.other;
    return "";
}

static int copy_table(TensorTable *copy, const TensorTable *table) {
    const size_t bytes = static_cast<size_t>(table->count) * sizeof(Tensor);
    *copy = *table;
    copy->tensors = static_cast<Tensor *>(malloc(bytes));
    if (!copy->tensors) return fail(PYGPT_ERROR_MEMORY, "no memory for a table of tensors");
    memcpy(copy->tensors, table->tensors, bytes);
    return PYGPT_OK;
}

/* The same table with offsets as on the device, in units of four bytes: bfloat16 takes half the room, and of
 * gradients some share theirs. layout->size becomes the size of all. */
static int make_layout(TensorTable *layout, const TensorTable *table, DataType type, bool fast) {
    const int status = copy_table(layout, table);
    if (status != PYGPT_OK) return status;
    const bool fused_gelu = fuses_gelu(type, fast);
    std::map<int64_t, int64_t> places;   // offset in the table -> offset on the device: blocks may share a copy
    std::map<std::string, int64_t> by_name;
    layout->size = 0;
    for (int64_t i = 0; i < table->count; i++) {
        Tensor &tensor = layout->tensors[i];
        if (table->kind == PYGPT_ACTIVATION_GRADIENT && !shares_with(tensor, table->config, fused_gelu).empty())
            continue;
        const auto [place, is_new] = places.try_emplace(tensor.offset, layout->size);
        tensor.offset = by_name[tensor.name] = place->second;
        if (!is_new) continue;
        const int64_t bytes = tensor.size * static_cast<int64_t>(element_size(activation_type(tensor, type)));
        layout->size += ceil_div<int64_t>(bytes, 256) * 256 / static_cast<int64_t>(sizeof(float));
    }
    if (table->kind != PYGPT_ACTIVATION_GRADIENT) return PYGPT_OK;
    for (int64_t i = 0; i < table->count; i++) {
        const std::string other = shares_with(layout->tensors[i], table->config, fused_gelu);
        if (!other.empty()) layout->tensors[i].offset = by_name[other];
    }
    return PYGPT_OK;
}

/* ---- memory ---- */

static const int64_t PRODUCT_WORKSPACE = int64_t{32} << 20;   // of matmul.cuh

int64_t head_rows(const GPT2Config &config, int64_t N) {
    /* The chunk's weight gradient is added to in float32, which costs as much as so many rows of logits: so many rows
     * at a time. */
    const int64_t rows = (int64_t{1} << 28) / padded_vocabulary(config) / 64 * 64;
    return min64(N, std::max<int64_t>(rows, 64));
}

/* Weights of a flat buffer, and the rows of wte beyond the vocabulary. */
static int64_t flat_size(const TensorTable &weights) {
    return checked_add(weights.size, checked_mul(padded_vocabulary(weights.config) - weights.config.vocab_size,
                                                 weights.config.n_embd));
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
    const DataType type = type_of(options);
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
        bytes =
            checked_add(bytes, checked_mul(checked_mul(head_rows(*config, B * T), padded_vocabulary(*config)), size));
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

/* What the model has of the device's memory, and what is left. */
static double available_bytes(const GPT2 *m) {
    size_t free_bytes = 0, total_bytes = 0;
    if (cudaMemGetInfo(&free_bytes, &total_bytes) != cudaSuccess) {
        cudaGetLastError();
        return INFINITY;   // then the allocation says what is wrong
    }
    return static_cast<double>(free_bytes) + (m ? static_cast<double>(m->allocated) : 0.0);
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
    const double available = available_bytes(m);
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
                "%s batches of %" PRId64 " x %" PRId64 " tokens needs %.2f GiB, and the device has %.2f: %s%s",
                training ? "training with" : "a forward pass of", B, T, needs(B) / GIB, available / GIB, advice,
                m->options.recompute == PYGPT_RECOMPUTE_BLOCK ? "" : ", and recompute \"block\" needs less");
}

/* Says so if not even the weights fit, and how many layers would. */
static int check_model(const GPT2Config *config, const GPT2Options *options) {
    const double available = available_bytes(nullptr);
    auto needs = [&](int64_t layers) {
        GPT2Config c = *config;
        c.n_layer = layers;
        return static_cast<double>(gpt2_memory(&c, options, 1, 1, 0));
    };
    if (needs(config->n_layer) <= available) return PYGPT_OK;
    return fail(PYGPT_ERROR_MEMORY,
                "a model with n_layer = %" PRId64 " and n_embd = %" PRId64
                " needs %.2f GiB, and the device has %.2f: n_layer = %" PRId64 " would fit",
                config->n_layer, config->n_embd, needs(config->n_layer) / GIB, available / GIB,
                largest(config->n_layer, [&](int64_t layers) { return needs(layers) <= available; }));
}

static int allocate(GPT2 *m, void **buffer, int64_t bytes, const char *what) {
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

static int clear(GPT2 *m, void *buffer, int64_t bytes) {
    note(m->queue, cudaMemsetAsync(buffer, 0, static_cast<size_t>(bytes), m->queue.stream), "clearing a buffer");
    return queue_status(m->queue);
}

static int zeroed(GPT2 *m, void **buffer, int64_t bytes, const char *what) {
    if (*buffer) return PYGPT_OK;
    const int status = allocate(m, buffer, bytes, what);
    return status == PYGPT_OK ? clear(m, *buffer, bytes) : status;
}

static int64_t flat_bytes(const GPT2 *m) {
    return flat_size(m->weights) * static_cast<int64_t>(sizeof(float));
}

template <class T> static void **address(T **pointer) {
    return reinterpret_cast<void **>(pointer);
}

int reserve_gradients(GPT2 *m) {
    return zeroed(m, address(&m->gradients), flat_bytes(m), "the gradients");
}

static int reserve_moments(GPT2 *m) {
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
    const int64_t N = B * T, Vp = padded_vocabulary(m->config),
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

/* Which groups of weights AdamW decays, and which lie between tensors. */
static int make_treatment(GPT2 *m) {
    std::vector<uint8_t> groups(static_cast<size_t>(m->weights.size / ADAMW_GROUP), ADAMW_SKIP);
    for (int64_t i = 0; i < m->weights.count; i++) {
        const Tensor &t = m->weights.tensors[i];
        std::fill_n(groups.begin() + t.offset / ADAMW_GROUP, ceil_div<int64_t>(t.size, ADAMW_GROUP),
                    t.weight_decay ? ADAMW_DECAY : ADAMW_PLAIN);
    }
    const int64_t bytes = static_cast<int64_t>(groups.size());
    const int status = allocate(m, address(&m->treatment), bytes, "the optimizer's table");
    if (status != PYGPT_OK) return status;
    const cudaError_t error = cudaMemcpy(m->treatment, groups.data(), groups.size(), cudaMemcpyHostToDevice);
    return error == cudaSuccess ? PYGPT_OK : fail_cuda(error, "the optimizer's table");
}

/* The table and buffer of the weights that the layers read: with bfloat16 a copy, at half the offsets. */
static int make_copy(GPT2 *m) {
    int status = copy_table(&m->copied_weights, &m->weights);
    if (status != PYGPT_OK) return status;
    if (m->queue.type == DataType::float32) {
        m->copy = m->parameters;
        return PYGPT_OK;
    }
    for (int64_t i = 0; i < m->copied_weights.count; i++) m->copied_weights.tensors[i].offset /= 2;
    return zeroed(m, &m->copy, flat_bytes(m) / 2, "the weights in bfloat16");
}

static int make_state(GPT2 *m) {
    int status = zeroed(m, address(&m->state), sizeof *m->state, "the state of a pass");
    if (status != PYGPT_OK) return status;
    const cudaError_t error = cudaMallocHost(&m->read_state, sizeof *m->read_state);
    if (error != cudaSuccess) return fail_cuda(error, "the state of a pass in the host's memory");
    *m->read_state = {};
    return PYGPT_OK;
}

static int read_rounding(Rounding *rounding) {
    const char *text = getenv("PYGPT_ROUNDING");
    *rounding = {text && strcmp(text, "stochastic") == 0, 0};
    if (!text || !*text || rounding->stochastic || strcmp(text, "nearest") == 0) return PYGPT_OK;
    return fail(PYGPT_ERROR_ARGUMENT, "PYGPT_ROUNDING is \"%s\", expected nearest or stochastic", text);
}

static int make_model(GPT2 *m) {
    const char *graphs = getenv("PYGPT_CUDA_GRAPH");
    m->use_graphs = !graphs || strcmp(graphs, "0") != 0;
    int status = read_rounding(&m->rounding);
    if (status != PYGPT_OK) return status;
    const DataType type = type_of(&m->options);
    if (const cudaError_t error = queue_create(&m->queue, type, m->options.kernels == PYGPT_FAST))
        return fail_cuda(error, "setting up");
    status = table_create(&m->weights, PYGPT_PARAMETER, &m->config, m->options.recompute, 0, 0);
    if (status == PYGPT_OK) status = zeroed(m, address(&m->parameters), flat_bytes(m), "the parameters");
    if (status == PYGPT_OK) status = make_copy(m);
    if (status == PYGPT_OK) status = make_treatment(m);
    return status == PYGPT_OK ? make_state(m) : status;
}

int gpt2_create(GPT2 **model, const GPT2Config *config, const GPT2Options *options) {
    *model = NULL;
    int status = check_options(options);
    if (status == PYGPT_OK) status = check_config(config);
    if (status == PYGPT_OK) status = check_device(type_of(options));
    if (status == PYGPT_OK) status = check_model(config, options);
    if (status != PYGPT_OK) return status;
    GPT2 *m = new (std::nothrow) GPT2();
    if (!m) return fail(PYGPT_ERROR_MEMORY, "no memory for a model");
    m->config = *config;
    m->options = *options;
    status = make_model(m);
    if (status == PYGPT_OK) {
        *model = m;
    } else {
        gpt2_free(m);
    }
    return status;
}

void gpt2_free(GPT2 *m) {
    if (!m) return;
    if (m->queue.stream) cudaStreamSynchronize(m->queue.stream);
    forget_graphs(m);
    if (m->copy == m->parameters) m->copy = nullptr;
    for (void *buffer :
         {static_cast<void *>(m->parameters), static_cast<void *>(m->gradients), static_cast<void *>(m->first_moments),
          static_cast<void *>(m->second_moments), m->copy, static_cast<void *>(m->treatment),
          static_cast<void *>(m->activations), static_cast<void *>(m->activation_gradients),
          static_cast<void *>(m->tokens), static_cast<void *>(m->targets), m->logits, static_cast<void *>(m->state)})
        cudaFree(buffer);
    cudaFreeHost(m->read_state);
    for (TensorTable *table : {&m->weights, &m->copied_weights, &m->activation_table, &m->activation_gradient_table,
                               &m->activation_layout, &m->activation_gradient_layout})
        table_free(table);
    queue_destroy(&m->queue);
    cudaGetLastError();
    delete m;
}

/* ---- initialisation ---- */

/* Normal numbers by Box and Muller's method (1958), in double, from the words of Philox's step that no forward pass
 * reaches. */
static __global__ void __launch_bounds__(256)
    fill_normal(float *x, int64_t n, double deviation, uint32_t number, uint64_t seed) {
    const int64_t i = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * 4;
    if (i >= n) return;
    const PhiloxWords words = philox4x32(static_cast<uint64_t>(i) / 4, number, UINT32_MAX, seed);
    for (int pair = 0; pair < 4; pair += 2) {
        const double radius = sqrt(-2.0 * log((words.word[pair] + 0.5) / 4294967296.0));
        const double angle = 6.283185307179586 * ((words.word[pair + 1] + 0.5) / 4294967296.0);
        if (i + pair < n) x[i + pair] = static_cast<float>(deviation * (radius * cos(angle)));
        if (i + pair + 1 < n) x[i + pair + 1] = static_cast<float>(deviation * (radius * sin(angle)));
    }
}

static __global__ void __launch_bounds__(256) fill(float *x, int64_t n, float value) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (i < n) x[i] = value;
}

/* The copy of some neighbouring weights for the layers, after they have changed. */
static void copy_weights(GPT2 *m, int64_t offset, int64_t n) {
    m->weights_changed = true;
    if (m->queue.type == DataType::bfloat16)
        round_weights(m->queue, static_cast<bf16 *>(m->copy) + offset, m->parameters + offset, n, offset, m->rounding);
}

int gpt2_init_weights(GPT2 *m, uint64_t seed) {
    const double deviation = m->config.initializer_range;
    const double narrower = deviation / std::sqrt(2.0 * static_cast<double>(m->config.n_layer));
    m->rounding.seed = seed;
    for (int64_t i = 0; i < m->weights.count; i++) {
        const Tensor &t = m->weights.tensors[i];
        float *const w = m->parameters + t.offset;
        if (t.initialisation == PYGPT_INIT_NORMAL || t.initialisation == PYGPT_INIT_RESIDUAL) {
            ENQUEUE(m->queue, fill_normal, blocks_for(t.size, 1024), 256, 0, w, t.size,
                    t.initialisation == PYGPT_INIT_NORMAL ? deviation : narrower, static_cast<uint32_t>(i), seed);
        } else {
            const float value = t.initialisation == PYGPT_INIT_ONE ? 1.0f : 0.0f;
            ENQUEUE(m->queue, fill, blocks_for(t.size, 256), 256, 0, w, t.size, value);
        }
    }
    copy_weights(m, 0, m->weights.size);
    return queue_status(m->queue);
}

/* ---- the optimizer ---- */

int gpt2_zero_grad(GPT2 *m) {
    const int status = reserve_gradients(m);
    return status == PYGPT_OK ? clear(m, m->gradients, flat_bytes(m)) : status;
}

int gpt2_clip_grad_norm(GPT2 *m, double *norm, float max_norm) {
    int status = reserve_gradients(m);
    if (status == PYGPT_OK) status = check_pass(m);
    if (status != PYGPT_OK) return status;
    clip_norm(m->queue, &m->state->norm, m->gradients, m->weights.size, max_norm);
    status = norm ? read_state(m) : queue_status(m->queue);
    if (status == PYGPT_OK && norm) *norm = m->read_state->norm;
    return status;
}

int gpt2_adamw_step(GPT2 *m, float lr, float beta1, float beta2, float eps, float weight_decay, int64_t step) {
    if (step < 1) return fail(PYGPT_ERROR_ARGUMENT, "AdamW's step is %" PRId64 ", expected 1 or more", step);
    int status = reserve_gradients(m);
    if (status == PYGPT_OK) status = reserve_moments(m);
    if (status != PYGPT_OK) return status;
    bf16 *const copy = m->queue.type == DataType::bfloat16 ? static_cast<bf16 *>(m->copy) : nullptr;
    adamw_step(m->queue, m->parameters, copy, m->first_moments, m->second_moments, m->gradients, m->treatment,
               m->weights.size, {lr, beta1, beta2, eps, weight_decay, step}, m->rounding);
    m->weights_changed = true;
    return queue_status(m->queue);
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
    if (status == PYGPT_OK) status = check_pass(m);
    if (status != PYGPT_OK) return status;
    switch (kind) {
    case PYGPT_PARAMETER: *buffer = m->parameters; break;
    case PYGPT_GRADIENT: *buffer = m->gradients; break;
    case PYGPT_FIRST_MOMENT: *buffer = m->first_moments; break;
    case PYGPT_SECOND_MOMENT: *buffer = m->second_moments; break;
    case PYGPT_ACTIVATION: *buffer = m->B ? m->activations : NULL; break;
    case PYGPT_ACTIVATION_GRADIENT: *buffer = m->B && m->went_back ? m->activation_gradients : NULL; break;
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
    const int status = buffer_of(m, data, kind);
    *data = NULL;   // it lies in the device's memory
    if (status == PYGPT_OK) *size = table_of(m, kind)->size;
    return status;
}

/* Where a tensor lies and how its elements are stored. */
struct Place {
    void *data;
    DataType type;
    Tensor tensor;
    bool absent;   // GELU's gradient, which the fused kernels leave out
};

static int locate(GPT2 *m, Place *place, int kind, int64_t index) {
    float *buffer;
    int status = buffer_of(m, &buffer, kind);
    if (status == PYGPT_OK) status = gpt2_tensor(m, &place->tensor, kind, index);
    if (status != PYGPT_OK) return status;
    const bool gradient = kind == PYGPT_ACTIVATION_GRADIENT;
    const TensorTable *layout = kind == PYGPT_ACTIVATION ? &m->activation_layout
                                : gradient               ? &m->activation_gradient_layout
                                                         : &m->weights;
    place->data = buffer + layout->tensors[index].offset;
    place->type =
        kind == PYGPT_ACTIVATION || gradient ? activation_type(place->tensor, m->queue.type) : DataType::float32;
    place->absent = gradient && fuses_gelu(m->queue.type, m->queue.fast) && ends_with(place->tensor.name, ".mlp.act");
    return PYGPT_OK;
}

/* The fused kernels never hold GELU's output gradient, so it is computed when it is asked for. */
static int compute_absent(GPT2 *m, Place *place) {
    const char *name = place->tensor.name;
    if (m->weights_changed) {
        return fail(
            PYGPT_ERROR_ARGUMENT,
            "the gradient of %s is computed when it is read, and the weights have changed since the backward pass",
            name);
    }
    const int64_t layer =
        place->tensor.kept ? strtoll(name + strlen("h."), NULL, 10) : 0;   // else of the one that ran last
    place->data = activation_gradient_of_gelu(m, layer);
    return queue_status(m->queue);
}

int gpt2_read(GPT2 *m, float *values, int kind, int64_t index) {
    Place place;
    int status = locate(m, &place, kind, index);
    if (status == PYGPT_OK && place.absent) status = compute_absent(m, &place);
    if (status != PYGPT_OK) return status;
    download(m->queue, values, place.data, place.type, place.tensor.size);
    return queue_status(m->queue);
}

int gpt2_write(GPT2 *m, const float *values, int kind, int64_t index) {
    Place place;
    int status = locate(m, &place, kind, index);
    if (status == PYGPT_OK && place.absent) {
        status =
            fail(PYGPT_ERROR_ARGUMENT, "the gradient of %s is not kept by the fused kernels, so it cannot be written",
                 place.tensor.name);
    }
    if (status != PYGPT_OK) return status;
    upload(m->queue, place.data, place.type, values, place.tensor.size);
    if (kind == PYGPT_PARAMETER) copy_weights(m, place.tensor.offset, place.tensor.size);
    return queue_status(m->queue);
}
