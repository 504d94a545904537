/* Shared by the C sources; not part of the interface. */
#ifndef PYGPT_INTERNAL_H
#define PYGPT_INTERNAL_H

#include <stddef.h>

#include "divides_work.h"
#include "pygpt.h"

/* Keeps the sentence for pygpt_last_error() and returns code, so that a function ends with `return fail(...)`. */
int fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* For free(): aligned to a cache line, or to a huge page and to be made of such where that is worth it: blocks of matrices
 * lie in more pages of 4 kB than the processor knows the addresses of. NULL if there is not enough memory. */
void *allocate_aligned(size_t bytes);

/* Memory that pygpt_release() gives back when its last owner has let go. Aligned to 64 bytes, not touched yet, so
 * that pages land near the threads that first write them. NULL if there is not enough. */
float *buffer_allocate(int64_t count);
int64_t buffer_bytes(int64_t count);   // that it takes; -1 if they overflow 64 bits, and for a count that did
void buffer_retain(float *data);

/* a * b and a + b for sizes >= 0; -1 where that overflows 64 bits or an operand is already -1. */
int64_t checked_mul(int64_t a, int64_t b);
int64_t checked_add(int64_t a, int64_t b);

static inline int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static inline int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* a / b, rounded up, for a >= 0 and b > 0. */
static inline int64_t divide_up(int64_t a, int64_t b) {
    return a / b + (a % b > 0);   // a + b could overflow
}

/* Generation asks for one position more with each token: the length to make room for where buffers have to grow after a
 * pass of B by T, so that they grow seldom; otherwise the length itself. */
static inline int64_t length_with_headroom(int64_t B, int64_t T, int64_t next_B, int64_t next_T, int64_t n_positions) {
    return next_B <= B && next_T > T ? min64(2 * next_T, n_positions) : next_T;
}

/* Whether a position looks only at those up to its own. */
static inline int is_causal(const GPT2Config *config) {
    return config->causal == PYGPT_CAUSAL;
}

/* Whether LayerNorms come after the residual connections. */
static inline int is_post_norm(const GPT2Config *config) {
    return config->norm_position == PYGPT_POST_NORM;
}

#define GIB (1024.0 * 1024.0 * 1024.0)

/* The plain layers, csrc/layers/. */
void matmul(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K, int transpose_a, int transpose_b,
            int accumulate);
void matmul_bf16(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K, int transpose_a,
                 int transpose_b, int accumulate);
void embedding_forward(float *x, const int32_t *tokens, const float *wte, const float *wpe, int64_t B, int64_t T,
                       int64_t C);
void embedding_backward(float *dwte, float *dwpe, const float *dx, const int32_t *tokens, int64_t B, int64_t T,
                        int64_t C);
void layernorm_forward(float *y, float *mean, float *rstd, const float *x, const float *w, const float *b, int64_t N,
                       int64_t C, float eps);
void layernorm_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w,
                        const float *mean, const float *rstd, int64_t N, int64_t C);
void linear_forward(float *y, const float *x, const float *w, const float *b, int64_t N, int64_t IC, int64_t OC);
void linear_forward_bf16(float *y, const float *x, const float *w, const float *b, int64_t N, int64_t IC, int64_t OC);
void linear_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, int64_t N,
                     int64_t IC, int64_t OC);
void linear_backward_bf16(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, int64_t N,
                          int64_t IC, int64_t OC);
void rotary_forward(float *y, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS);
void rotary_backward(float *dqkv, const float *dy, int64_t B, int64_t T, int64_t NH, int64_t HS);
void attention_forward(float *y, float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                       float scale, int causal, const Dropout *dropout);
void attention_backward(float *dqkv, const float *dy, const float *y, const float *lse, const float *qkv, int64_t B,
                        int64_t T, int64_t NH, int64_t HS, float scale, int causal, const Dropout *dropout);
void attention_probabilities(float *p, const float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                             float scale, int causal);
void gelu_forward(float *y, const float *x, int64_t n);
void gelu_backward(float *dx, const float *dy, const float *x, int64_t n);
void exact_gelu_forward(float *y, const float *x, int64_t n);
void exact_gelu_backward(float *dx, const float *dy, const float *x, int64_t n);
void relu_forward(float *y, const float *x, int64_t n);
void relu_backward(float *dx, const float *dy, const float *x, int64_t n);
void residual_forward(float *y, const float *x1, const float *x2, int64_t n);
void residual_backward(float *dx1, float *dx2, const float *dy, int64_t n);
void dropout_forward(float *y, const float *x, int64_t n, const Dropout *dropout);
void dropout_backward(float *dx, const float *dy, int64_t n, const Dropout *dropout);
void cross_entropy_forward(float *losses, const float *logits, const int32_t *targets, int64_t N, int64_t V,
                           int64_t Vp);
void cross_entropy_backward(float *dlogits, const float *dlosses, const float *logits, const int32_t *targets,
                            int64_t N, int64_t V, int64_t Vp);
void cross_entropy_in_place(float *losses, float *logits, const float *dlosses, const int32_t *targets, int64_t N,
                            int64_t V, int64_t Vp);
void adamw_step(float *w, float *m, float *v, const float *dw, int64_t n, float lr, float beta1, float beta2, float eps,
                float weight_decay, int64_t step);
void sgd_step(float *w, float *m, const float *dw, int64_t n, float lr, float momentum, float weight_decay);
void muon_step(float *w, float *m, const float *dw, float *scratch, int64_t R, int64_t C, int64_t parts, float lr,
               float momentum, float weight_decay);
/* muon_step() with its matrix products by another function. */
void muon_step_by(void (*multiply)(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K,
                                   int transpose_a, int transpose_b, int accumulate),
                  float *w, float *m, const float *dw, float *scratch, int64_t R, int64_t C, int64_t parts, float lr,
                  float momentum, float weight_decay);
double sum_of_squares(const float *x, int64_t n);
void scale(float *x, float factor, int64_t n);

#endif
