/* The layers on the device: what csrc/layers/ does, on a stream, in float32 or in bfloat16 storage.
 *
 * A pointer to void is to elements of queue.type. Statistics, losses, and gradients of weights are float32 always.
 * Sums and products are computed in float32.
 *
 * Order of arguments: outputs, inputs, sizes. Gradients of weights are added to (+=); those of activations are
 * overwritten (=), because a tensor's gradient has one source here: where two meet, at a residual connection, the
 * LayerNorm after it takes the other one as an argument, or post_norm.cu adds them.
 */
#pragma once

#include "../common.cuh"
#include "../matmul.cuh"
#include "../philox.cuh"

/* Where layers run: a stream of one device, with what they need there. */
struct Queue {
    cudaStream_t stream = nullptr;
    DataType type = DataType::float32;   // of activations and weights
    bool fast = true;                    // fused kernels and tensor cores; otherwise their simple twins
    int compute_capability = 0;          // 90 for 9.0
    int shared_of_multiprocessor = 0;    // bytes of shared memory
    MatmulContext *matmul = nullptr;
    void *scratch = nullptr;             // for one layer at a time
    size_t scratch_bytes = 0;
    int64_t replaced = 0;                // how often scratch has moved: captured graphs hold its address
    cudaError_t error = cudaSuccess;     // the first one; nothing runs after it
    const char *failed = "";             // what it happened in
};

/* products: product() will be called, which takes a context with MATMUL_WORKSPACE. */
cudaError_t queue_create(Queue *queue, DataType type, bool fast, bool products = true);
void queue_destroy(Queue *queue);

/* Keeps the first error. */
inline void note(Queue &queue, cudaError_t error, const char *what) {
    if (error == cudaSuccess || queue.error != cudaSuccess) return;
    queue.error = error;
    queue.failed = what;
}

/* ENQUEUE(queue, kernel, grid, block, shared_bytes, arguments...): a launch, unless something failed before. */
#define ENQUEUE(queue, kernel, grid, block, shared_bytes, ...)                                                         \
    do {                                                                                                               \
        if ((queue).error == cudaSuccess)                                                                              \
            note(queue, LAUNCH(kernel, grid, block, shared_bytes, (queue).stream, __VA_ARGS__), #kernel);              \
    } while (0)

/* At least so many bytes, aligned to 256, until the next call. NULL after an error. Grows, and so waits for the
 * stream, only outside of a graph capture: a pass runs once before it is captured. */
void *scratch(Queue &queue, size_t bytes);

/* n elements of the queue's type */
void copy(Queue &queue, void *to, const void *from, int64_t n);

/* Copies between the device and float32 in the host's memory; they wait until all is done. */
void download(Queue &queue, float *to, const void *from, DataType type, int64_t n);
void upload(Queue &queue, void *to, DataType type, const float *from, int64_t n);
void download_rows(Queue &queue, float *to, const void *from, int64_t rows, int64_t columns,
                   int64_t stride);   // of queue.type

/* matmul() on the queue */
void product(Queue &queue, const Matmul &m);

inline size_t element_size(DataType type) {
    return type == DataType::float32 ? sizeof(float) : sizeof(__nv_bfloat16);
}

// clang-format off: shapes in one column

/* ---- embedding.cu ---- */

void embedding_forward(Queue &queue, void *x,                                             // (B,T,C)
                       const int32_t *tokens, const void *wte, const void *wpe,           // (B,T) (V,C) (>=T,C) or NULL
                       int64_t B, int64_t T, int64_t C);
void embedding_backward(Queue &queue, float *dwte, float *dwpe,                           // (V,C) (>=T,C) or NULL
                        const void *dx, const int32_t *tokens,                            // (B,T,C) (B,T)
                        int64_t B, int64_t T, int64_t C, int64_t V);
size_t embedding_scratch(int64_t B, int64_t T, int64_t C);

/* ---- layernorm.cu ---- */

void layernorm_forward(Queue &queue, void *y, float *mean, float *rstd,                   // (N,C) (N) (N)
                       const void *x, const void *w, const void *b,                       // (N,C) (C) (C) or NULL
                       int64_t N, int64_t C, float eps);
/* x = x1 + x2 and y = LayerNorm(x) */
void residual_layernorm_forward(Queue &queue, void *x, void *y, float *mean, float *rstd, // (N,C) (N,C) (N) (N)
                                const void *x1, const void *x2, const void *w, const void *b,   // (N,C) (N,C) (C) (C)
                                int64_t N, int64_t C, float eps);
/* dx = dresidual + what comes through the LayerNorm; dresidual: (N,C), or NULL for 0. branch_db += Σ_n dresidual_n,
 * unless it is NULL, as db may be: without dropout that is the gradient of the bias with which the residual branch before
 * ends. */
void layernorm_backward(Queue &queue, void *dx, float *dw, float *db, float *branch_db,   // (N,C) (C) (C) (C)
                        const void *dresidual, const void *dy, const void *x, const void *w,   // (N,C) (N,C) (N,C) (C)
                        const float *mean, const float *rstd, int64_t N, int64_t C);      // (N) (N)
size_t layernorm_scratch(DataType type, int64_t N, int64_t C);

/* ---- linear.cu ---- */

/* The nonlinearity of the feed-forward part. */
struct Activation {
    void (*forward)(Queue &queue, void *y, const void *x, int64_t n);
    void (*backward)(Queue &queue, void *dx, const void *dy, const void *x, int64_t n);
    bool fused;   // into the products before and behind it
};

Activation activation_of(int activation_function, DataType type, bool fast);

void linear_forward(Queue &queue, void *y,                                                // (N,OC)
                    const void *x, const void *w, const void *b,                          // (N,IC) (IC,OC) (OC) or NULL
                    int64_t N, int64_t IC, int64_t OC);
/* pre = x W + b and y = activation(pre) */
void linear_activation_forward(Queue &queue, const Activation &activation, void *pre, void *y,   // (N,OC) (N,OC)
                               const void *x, const void *w, const void *b, int64_t N, int64_t IC, int64_t OC);
void linear_backward(Queue &queue, void *dx, float *dw, float *db,                        // (N,IC) (IC,OC) (OC) or NULL
                     const void *dy, const void *x, const void *w,                        // (N,OC) (N,IC) (IC,OC)
                     int64_t N, int64_t IC, int64_t OC);
/* Of a linear layer after an activation, x = activation(pre): both at once. dx is not written where they are fused. */
void activation_linear_backward(Queue &queue, const Activation &activation,
                                void *dpre, void *dx, float *dw, float *db,               // (N,IC) (N,IC) (IC,OC) (OC)
                                const void *dy, const void *pre, const void *x, const void *w,
                                int64_t N, int64_t IC, int64_t OC);
size_t linear_scratch(int64_t N, int64_t OC);

/* ---- rotary.cu ---- */

void rotary_forward(Queue &queue, void *y, const void *qkv,                               // (B,T,3,NH,HS) each
                    int64_t B, int64_t T, int64_t NH, int64_t HS);
void rotary_backward(Queue &queue, void *dqkv, const void *dy,                            // (B,T,3,NH,HS) each
                     int64_t B, int64_t T, int64_t NH, int64_t HS);

/* ---- attention.cu; with fast kernels, attention_flash.cuh where it has the head size ---- */

void attention_forward(Queue &queue, void *y, float *lse,                                 // (B,T,NH,HS) (B,NH,T)
                       const void *qkv,                                                   // (B,T,3,NH,HS)
                       int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, bool causal, const DropoutMask &dropout);
void attention_backward(Queue &queue, void *dqkv,                                         // (B,T,3,NH,HS)
                        const void *dy, const void *y, const float *lse, const void *qkv,
                        int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, bool causal, const DropoutMask &dropout);
void attention_probabilities(Queue &queue, float *p,                                      // (B,NH,T,T), before dropout
                             const float *lse, const void *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                             float scale, bool causal);
size_t attention_scratch(int64_t B, int64_t T, int64_t NH);                               // of either

/* ---- gelu.cu, exact_gelu.cu, relu.cu, residual.cu, dropout.cu ---- */

void gelu_forward(Queue &queue, void *y, const void *x, int64_t n);
void gelu_backward(Queue &queue, void *dx, const void *dy, const void *x, int64_t n);
void exact_gelu_forward(Queue &queue, void *y, const void *x, int64_t n);
void exact_gelu_backward(Queue &queue, void *dx, const void *dy, const void *x, int64_t n);
void relu_forward(Queue &queue, void *y, const void *x, int64_t n);
void relu_backward(Queue &queue, void *dx, const void *dy, const void *x, int64_t n);
void residual_forward(Queue &queue, void *y, const void *x1, const void *x2, int64_t n);
void residual_backward(Queue &queue, void *dx1, void *dx2, const void *dy, int64_t n);
void add_to(Queue &queue, float *y, const float *x, int64_t n);   // y += x: sums of gradients, of micro-batches and ranks
void dropout_forward(Queue &queue, void *y, const void *x, int64_t n, const DropoutMask &dropout);
void dropout_backward(Queue &queue, void *dx, const void *dy, int64_t n, const DropoutMask &dropout);

/* ---- cross_entropy.cu ---- */

/* Rows of logits lie Vp >= V elements apart; a negative target is left out: loss 0, gradient 0. dlogits may be logits,
 * and gets 0 in the columns from V on. */
void cross_entropy_forward(Queue &queue, float *losses,                                   // (N)
                           const void *logits, const int32_t *targets,                    // (N,Vp) (N)
                           int64_t N, int64_t V, int64_t Vp);
void cross_entropy_backward(Queue &queue, float *losses, void *dlogits,                   // (N) or NULL, (N,Vp)
                            const float *dlosses, const void *logits, const int32_t *targets,   // (N) (N,Vp) (N)
                            int64_t N, int64_t V, int64_t Vp);

/* ---- classifier.cu ---- */

/* wte has Vp rows, of which V count. */
void head_logits(Queue &queue, void *logits,                                              // (N,Vp)
                 const void *x, const void *wte, int64_t N, int64_t C, int64_t Vp);       // (N,C) (Vp,C)
void classifier_forward(Queue &queue, float *losses,                                      // (N)
                        const void *x, const void *wte, const int32_t *targets,           // (N,C) (Vp,C) (N)
                        void *logits, int64_t rows, int64_t N, int64_t C, int64_t V, int64_t Vp);   // scratch (rows,Vp)
void classifier_backward(Queue &queue, float *losses, void *dx, float *dwte,              // (N) (N,C) (Vp,C)
                         const float *dlosses, const void *x, const void *wte, const int32_t *targets,
                         void *logits, int64_t rows, int64_t N, int64_t C, int64_t V, int64_t Vp);

// clang-format on

/* ---- optimizers: how they treat groups of neighbouring weights in a flat buffer ---- */

enum : uint8_t {
    UPDATE_SKIP = 0,    // between tensors
    UPDATE_PLAIN = 1,   // without weight decay
    UPDATE_DECAY = 2,
};
enum { UPDATE_GROUP = 16 };   // elements that are treated alike

/* ---- adamw.cu ---- */

/* How a float32 weight becomes the bfloat16 that the layers read. */
struct Rounding {
    bool stochastic;
    uint64_t seed;
};

struct AdamW {
    float lr, beta1, beta2, eps, weight_decay;
    int64_t step;   // from 1
};

/* One update of all tensors in a flat buffer. copy: bfloat16, (n), or NULL. treatment: UPDATE_* of each group. element: the
 * number of w[0] in its flat buffer, on which stochastic rounding depends. */
void adamw_step(Queue &queue, float *w, __nv_bfloat16 *copy, float *m, float *v, const float *dw,
                const uint8_t *treatment, int64_t n, int64_t element, const AdamW &settings, const Rounding &rounding);
void round_weights(Queue &queue, __nv_bfloat16 *copy, const float *w, int64_t n, int64_t element,
                   const Rounding &rounding);

/* ---- sgd.cu, on all tensors at once as AdamW ---- */

struct SGD {
    float lr, momentum, weight_decay;
};

void sgd_step(Queue &queue, float *w, float *m, const float *dw, const uint8_t *treatment, int64_t n,
              const SGD &settings);   // m: NULL without momentum

/* ---- muon.cu ---- */

struct Muon {
    float lr, momentum, weight_decay;
};

/* Of `parts` matrices of equal width side by side in (R,C). scratch: 2 (R c + min(R, c)²) + 2 floats, c = C / parts,
 * aligned to 8 bytes. */
void muon_step(Queue &queue, float *w, float *m, const float *dw, float *scratch, int64_t R, int64_t C, int64_t parts,
               const Muon &settings);

/* ---- norm.cu: results lie on the device ---- */

void sum_of_squares(Queue &queue, double *sum, const float *x, int64_t n);
void scale(Queue &queue, float *x, float factor, int64_t n);
/* norm = √Σx², and x *= max_norm / norm where that is less than 1; max_norm <= 0 only measures */
void clip_norm(Queue &queue, double *norm, float *x, int64_t n, float max_norm);
size_t norm_scratch(int64_t n);
/* The same in three steps: the sums of stretches of PYGPT_SUMMED_APART elements, of which there are stretches(n); the norm from
 * all of them; the clipping. */
int64_t stretches(int64_t n);
void sums_of_squares(Queue &queue, double *sums, const float *x, int64_t n);
void norm_of_sums(Queue &queue, double *norm, const double *sums, int64_t count);
void clip(Queue &queue, float *x, const double *norm, int64_t n, float max_norm);
