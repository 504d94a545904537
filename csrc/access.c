/* Access to tensors by kind and number; see access.h. */
#include "access.h"

#include <inttypes.h>

static int check_kind(int kind) {
    if (kind >= PYGPT_PARAMETER && kind <= PYGPT_ACTIVATION_GRADIENT) return PYGPT_OK;
    return fail(PYGPT_ERROR_ARGUMENT, "tensor kind is %d, expected 0 ... 5", kind);
}

int64_t gpt2_num_tensors(const GPT2 *m, int kind) {
    return check_kind(kind) == PYGPT_OK ? flat_of(m, kind).table->count : 0;
}

int gpt2_tensor(const GPT2 *m, Tensor *tensor, int kind, int64_t index) {
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

int find_buffer(GPT2 *m, float **buffer, int kind) {
    *buffer = NULL;
    int status = check_kind(kind);
    if (status == PYGPT_OK && kind == PYGPT_GRADIENT) status = reserve_gradients(m);
    if (status == PYGPT_OK && (kind == PYGPT_FIRST_MOMENT || kind == PYGPT_SECOND_MOMENT)) status = reserve_moments(m);
    if (status == PYGPT_OK) status = check_pass(m);
    if (status != PYGPT_OK) return status;
    *buffer = flat_of(m, kind).buffer;
    if (*buffer) return PYGPT_OK;
    return fail(PYGPT_ERROR_ARGUMENT, kind == PYGPT_ACTIVATION
                                          ? "there are no activations before a forward pass"
                                          : "there are no gradients of activations before a backward pass");
}

int find_tensor(GPT2 *m, Tensor *tensor, float **buffer, int kind, int64_t index) {
    int status = find_buffer(m, buffer, kind);
    return status == PYGPT_OK ? gpt2_tensor(m, tensor, kind, index) : status;
}
