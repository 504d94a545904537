/* The function tables: which layer runs, by kernels and precision.
 *
 * bfloat16 is for matrix products. The plain attention stays in float32; the fast one rounds what it multiplies, where the
 * processor has products of bfloat16.
 */
#include "internal.h"
#include "fast/fast.h"
#include "threads.h"

/* What every set has. Nothing is gained on these: they wait for memory. */
#define COMMON                                                                                                         \
    .embedding_forward = embedding_forward, .embedding_backward = embedding_backward,                                  \
    .rotary_forward = rotary_forward, .rotary_backward = rotary_backward, .relu_forward = relu_forward,                \
    .relu_backward = relu_backward, .residual_forward = residual_forward, .residual_backward = residual_backward,      \
    .sgd_step = sgd_step, .sum_of_squares = sum_of_squares, .scale = scale

#define PLAIN                                                                                                          \
    COMMON, .layernorm_forward = layernorm_forward, .layernorm_backward = layernorm_backward,                          \
        .attention_forward = attention_forward, .attention_backward = attention_backward,                              \
        .attention_probabilities = attention_probabilities, .gelu_forward = gelu_forward,                              \
        .gelu_backward = gelu_backward, .exact_gelu_forward = exact_gelu_forward,                                      \
        .exact_gelu_backward = exact_gelu_backward, .dropout_forward = dropout_forward,                                \
        .dropout_backward = dropout_backward, .cross_entropy_forward = cross_entropy_forward,                          \
        .cross_entropy_backward = cross_entropy_backward, .cross_entropy_in_place = cross_entropy_in_place,            \
        .adamw_step = adamw_step, .muon_step = muon_step

#define FAST                                                                                                           \
    COMMON, .layernorm_forward = fast_layernorm_forward, .layernorm_backward = fast_layernorm_backward,                \
        .gelu_forward = fast_gelu_forward, .gelu_backward = fast_gelu_backward,                                        \
        .exact_gelu_forward = fast_exact_gelu_forward, .exact_gelu_backward = fast_exact_gelu_backward,                \
        .dropout_forward = fast_dropout_forward, .dropout_backward = fast_dropout_backward,                            \
        .cross_entropy_forward = fast_cross_entropy_forward, .cross_entropy_backward = fast_cross_entropy_backward,    \
        .cross_entropy_in_place = fast_cross_entropy_in_place, .adamw_step = fast_adamw_step,                          \
        .muon_step = fast_muon_step

static const Kernels PLAIN_FLOAT32 = {
    PLAIN,
    .matmul = matmul,
    .linear_forward = linear_forward,
    .linear_backward = linear_backward,
};

static const Kernels PLAIN_BFLOAT16 = {
    PLAIN,
    .matmul = matmul_bf16,
    .linear_forward = linear_forward_bf16,
    .linear_backward = linear_backward_bf16,
};

static const Kernels FAST_FLOAT32 = {
    FAST,
    .attention_forward = fast_attention_forward,
    .attention_backward = fast_attention_backward,
    .attention_probabilities = fast_attention_probabilities,
    .matmul = fast_matmul,
    .linear_forward = fast_linear_forward,
    .linear_backward = fast_linear_backward,
};

static const Kernels FAST_BFLOAT16 = {
    FAST,
    .attention_forward = fast_attention_forward_bf16,
    .attention_backward = fast_attention_backward_bf16,
    .attention_probabilities = fast_attention_probabilities_bf16,
    .matmul = fast_matmul_bf16,
    .linear_forward = fast_linear_forward_bf16,
    .linear_backward = fast_linear_backward_bf16,
};

const Kernels *pygpt_kernels(int kernels, int dtype) {
    static const Kernels *const tables[2][2] = {{&PLAIN_FLOAT32, &PLAIN_BFLOAT16}, {&FAST_FLOAT32, &FAST_BFLOAT16}};
    int known =
        (kernels == PYGPT_PLAIN || kernels == PYGPT_FAST) && (dtype == PYGPT_FLOAT32 || dtype == PYGPT_BFLOAT16);
    use_threads();   // a layer alone is called by the thread that asks for it
    return known ? tables[kernels][dtype] : NULL;
}
