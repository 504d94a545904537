/* Makes a model and frees it. */
#include "model.cuh"

extern "C" {
#include "../csrc/positions.h"
}

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

/* How optimizers treat groups of weights. */
static int make_treatment(GPT2 *m) {
    std::vector<uint8_t> groups(static_cast<size_t>(m->weights.size / UPDATE_GROUP), UPDATE_SKIP);
    for (int64_t i = 0; i < m->weights.count; i++) {
        const Tensor &t = m->weights.tensors[i];
        std::fill_n(groups.begin() + t.offset / UPDATE_GROUP, ceil_div<int64_t>(t.size, UPDATE_GROUP),
                    t.weight_decay ? UPDATE_DECAY : UPDATE_PLAIN);
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

/* The table of positions that are not learned. */
static int make_sinusoidal(GPT2 *m) {
    const GPT2Config &c = m->config;
    if (c.position_embedding != PYGPT_SINUSOIDAL) return PYGPT_OK;
    std::vector<float> rows(static_cast<size_t>(c.n_positions * c.n_embd));
    fill_sinusoidal(rows.data(), c.n_positions, c.n_embd);
    const int64_t count = c.n_positions * c.n_embd;
    const int status =
        allocate(m, &m->sinusoidal, count * static_cast<int64_t>(element_size(m->queue.type)), "the positions");
    if (status != PYGPT_OK) return status;
    upload(m->queue, m->sinusoidal, m->queue.type, rows.data(), count);
    return queue_status(m->queue);
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

static int read_capture(Capture *capture) {
    const char *text = getenv("PYGPT_CUDA_GRAPH");
    *capture = !text || !*text ? Capture::where_possible : *text == '0' ? Capture::never : Capture::always;
    if (*capture == Capture::where_possible || strcmp(text, "0") == 0 || strcmp(text, "1") == 0) return PYGPT_OK;
    return fail(PYGPT_ERROR_ARGUMENT, "PYGPT_CUDA_GRAPH is \"%s\", expected 0 or 1", text);
}

static int make_model(GPT2 *m) {
    int status = read_rounding(&m->rounding);
    if (status == PYGPT_OK) status = read_capture(&m->graphs.capture);
    if (status != PYGPT_OK) return status;
    const DataType type = data_type(m->options.dtype);
    if (const cudaError_t error = queue_create(&m->queue, type, m->options.kernels == PYGPT_FAST))
        return fail_cuda(error, "setting up");
    m->activation = activation_of(m->config.activation_function, type, m->queue.fast);
    status = table_create(&m->weights, PYGPT_PARAMETER, &m->config, m->options.recompute, 0, 0);
    m->own = m->masters = {0, m->weights.size};
    if (status == PYGPT_OK) status = zeroed(m, address(&m->parameters), flat_bytes(m), "the parameters");
    if (status == PYGPT_OK) status = make_copy(m);
    if (status == PYGPT_OK) status = make_treatment(m);
    if (status == PYGPT_OK) status = make_sinusoidal(m);
    return status == PYGPT_OK ? make_state(m) : status;
}

int gpt2_create(GPT2 **model, const GPT2Config *config, const GPT2Options *options) {
    *model = NULL;
    int status = check_options(options);
    if (status == PYGPT_OK) status = check_config(config);
    if (status == PYGPT_OK) status = check_device(data_type(options->dtype));
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

int *in_use_of(GPT2 *m) {
    return &m->in_use;
}

void gpt2_free(GPT2 *m) {
    if (!m) return;
    if (m->queue.stream) cudaStreamSynchronize(m->queue.stream);
    m->graphs.forget();
    disconnect(m);
    if (m->copy == m->parameters) m->copy = nullptr;
    for (void *buffer :
         {static_cast<void *>(m->parameters), static_cast<void *>(m->gradients), static_cast<void *>(m->first_moments),
          static_cast<void *>(m->second_moments), static_cast<void *>(m->muon_scratch), m->copy, m->sinusoidal,
          static_cast<void *>(m->treatment), static_cast<void *>(m->activations),
          static_cast<void *>(m->activation_gradients), static_cast<void *>(m->tokens), static_cast<void *>(m->targets),
          m->logits, static_cast<void *>(m->state)})
        cudaFree(buffer);
    for (float *sum : m->kept) cudaFree(sum);
    cudaFreeHost(m->read_state);
    for (TensorTable *table : {&m->weights, &m->copied_weights, &m->activation_table, &m->activation_gradient_table,
                               &m->activation_layout, &m->activation_gradient_layout})
        table_free(table);
    queue_destroy(&m->queue);
    cudaGetLastError();
    delete m;
}
