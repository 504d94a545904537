/* Access to tensors by kind and number; see access.h. */
#include "access.h"

#include "use.h"

#include <inttypes.h>

static int check_kind(int kind) {
    if (kind >= PYGPT_PARAMETER && kind <= PYGPT_ACTIVATION_GRADIENT) return PYGPT_OK;
    return fail(PYGPT_ERROR_ARGUMENT, "tensor kind is %d, expected 0 ... 5", kind);
}

static int count_tensors(GPT2 *m, int64_t *count, int kind) {
    USE(m);
    int status = check_kind(kind);
    if (status == PYGPT_OK) *count = flat_of(m, kind).table->count;
    return status;
}

int64_t gpt2_num_tensors(GPT2 *m, int kind) {
    int64_t count;
    return count_tensors(m, &count, kind) == PYGPT_OK ? count : -1;
}

static int tensor_of(const GPT2 *m, Tensor *tensor, int kind, int64_t index) {
    int status = check_kind(kind);
    if (status != PYGPT_OK) return status;
    const TensorTable *table = flat_of(m, kind).table;
    if (index < 0 || index >= table->count) {
        return fail(PYGPT_ERROR_ARGUMENT, "tensor %" PRId64 " was asked for, expected 0 ... %" PRId64, index,
                    table->count - 1);
    }
    *tensor = table->tensors[index];
    return PYGPT_OK;
}

int gpt2_tensor(GPT2 *m, Tensor *tensor, int kind, int64_t index) {
    USE(m);
    return tensor_of(m, tensor, kind, index);
}

static int is_moment(int kind) {
    return kind == PYGPT_FIRST_MOMENT || kind == PYGPT_SECOND_MOMENT;
}

int find_buffer(GPT2 *m, float **buffer, int kind) {
    *buffer = NULL;
    int status = check_kind(kind);
    if (status == PYGPT_OK && kind == PYGPT_GRADIENT) status = reserve_gradients(m);
    if (status == PYGPT_OK) status = check_pass(m);
    if (status != PYGPT_OK) return status;
    *buffer = flat_of(m, kind).buffer;
    if (*buffer || is_moment(kind)) return PYGPT_OK;
    return fail(PYGPT_ERROR_ARGUMENT, kind == PYGPT_ACTIVATION
                                          ? "there are no activations before a forward pass"
                                          : "there are no gradients of activations before a backward pass");
}

int find_tensor(GPT2 *m, Tensor *tensor, float **buffer, int kind, int64_t index, int64_t size, int to_write) {
    *buffer = NULL;
    int status = tensor_of(m, tensor, kind, index);
    if (status != PYGPT_OK) return status;
    if (size != tensor->size) {
        return fail(PYGPT_ERROR_ARGUMENT, "%" PRId64 " numbers were given for %s, which has %" PRId64, size,
                    tensor->name, tensor->size);
    }
    int64_t end = tensor->offset + tensor->size;
    if (is_moment(kind) && to_write) status = reserve_moments(m, kind, end);
    if (status == PYGPT_OK) status = find_buffer(m, buffer, kind);
    if (status == PYGPT_OK && end > flat_of(m, kind).size) *buffer = NULL;
    return status;
}
