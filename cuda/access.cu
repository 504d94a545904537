/* Where the tensors of a model lie on the device, and how their values come and go; with csrc/access.c. */
#include "model.cuh"

#include <cstdlib>
#include <cstring>

Flat flat_of(const GPT2 *m, int kind) {
    const Flat flats[] = {
        {&m->weights, m->parameters, m->weights.size},
        {&m->weights, m->gradients, m->weights.size},
        {&m->weights, m->first_moments, m->first_moments ? m->own.size : 0},
        {&m->weights, m->second_moments, m->second_count},
        {&m->activation_table, m->B ? m->activations : nullptr, m->activation_table.size},
        {&m->activation_gradient_table, m->B && m->went_back ? m->activation_gradients : nullptr,
         m->activation_gradient_table.size},
    };
    return flats[kind];
}

int gpt2_buffer(GPT2 *m, float **data, int64_t *size, int kind) {
    USE(m);
    const int status = find_buffer(m, data, kind);
    *data = nullptr;   // it lies in the device's memory
    if (status == PYGPT_OK) *size = flat_of(m, kind).size;
    return status;
}

/* Where a tensor lies and how its elements are stored. */
struct Place {
    void *data;   // NULL for a moment that is not in use, which is zero
    DataType type;
    Tensor tensor;
    bool left_out;   // as layout.cuh says
};

static int locate(GPT2 *m, Place *place, int kind, int64_t index, int64_t size, bool to_write) {
    float *buffer;
    int status = check_whole(m, kind);
    if (status == PYGPT_OK) status = find_tensor(m, &place->tensor, &buffer, kind, index, size, to_write);
    if (status != PYGPT_OK) return status;
    const bool gradient = kind == PYGPT_ACTIVATION_GRADIENT;
    const TensorTable *layout = kind == PYGPT_ACTIVATION ? &m->activation_layout
                                : gradient               ? &m->activation_gradient_layout
                                                         : &m->weights;
    place->data = buffer ? buffer + layout->tensors[index].offset : nullptr;
    place->type =
        kind == PYGPT_ACTIVATION || gradient ? activation_type(place->tensor, m->queue.type) : DataType::float32;
    place->left_out = gradient && is_left_out(place->tensor, m->activation);
    return PYGPT_OK;
}

/* The fused kernels never hold GELU's output gradient, so it is computed when it is asked for. */
static int compute_left_out(GPT2 *m, Place *place) {
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

int gpt2_read(GPT2 *m, float *values, int kind, int64_t index, int64_t size) {
    USE(m);
    Place place;
    int status = locate(m, &place, kind, index, size, false);
    if (status == PYGPT_OK && place.left_out) status = compute_left_out(m, &place);
    if (status != PYGPT_OK) return status;
    if (!place.data) {
        memset(values, 0, static_cast<size_t>(size) * sizeof *values);
        return PYGPT_OK;
    }
    download(m->queue, values, place.data, place.type, place.tensor.size);
    return queue_status(m->queue);
}

int gpt2_write(GPT2 *m, const float *values, int kind, int64_t index, int64_t size) {
    USE(m);
    Place place;
    int status = locate(m, &place, kind, index, size, true);
    if (status == PYGPT_OK && place.left_out) {
        status =
            fail(PYGPT_ERROR_ARGUMENT, "the gradient of %s is not kept by the fused kernels, so it cannot be written",
                 place.tensor.name);
    }
    if (status != PYGPT_OK) return status;
    upload(m->queue, place.data, place.type, values, place.tensor.size);
    if (kind == PYGPT_PARAMETER) copy_weights(m, place.tensor.offset, place.tensor.size);
    return queue_status(m->queue);
}
