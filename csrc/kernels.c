/* The function tables: which layer runs, by kernels and precision. */
#include "internal.h"

/* What every set has, whatever its precision. */
#define PLAIN_LAYERS                                                                                                   \
    .embedding_forward = embedding_forward, .embedding_backward = embedding_backward,                                  \
    .layernorm_forward = layernorm_forward, .layernorm_backward = layernorm_backward,                                  \
    .attention_forward = attention_forward, .attention_backward = attention_backward,                                  \
    .attention_probabilities = attention_probabilities, .gelu_forward = gelu_forward, .gelu_backward = gelu_backward,  \
    .residual_forward = residual_forward, .residual_backward = residual_backward, .dropout_forward = dropout_forward,  \
    .dropout_backward = dropout_backward, .cross_entropy_forward = cross_entropy_forward,                              \
    .cross_entropy_backward = cross_entropy_backward, .adamw_step = adamw_step, .sum_of_squares = sum_of_squares,      \
    .scale = scale

static const Kernels PLAIN_FLOAT32 = {
    PLAIN_LAYERS,
    .matmul = matmul,
    .linear_forward = linear_forward,
    .linear_backward = linear_backward,
};

static const Kernels PLAIN_BFLOAT16 = {
    PLAIN_LAYERS,
    .matmul = matmul_bf16,
    .linear_forward = linear_forward_bf16,
    .linear_backward = linear_backward_bf16,
};

const Kernels *pygpt_kernels(int kernels, int dtype) {
    if (kernels == PYGPT_PLAIN || kernels == PYGPT_FAST) {
        if (dtype == PYGPT_FLOAT32) return &PLAIN_FLOAT32;
        if (dtype == PYGPT_BFLOAT16) return &PLAIN_BFLOAT16;
    }
    return NULL;
}
