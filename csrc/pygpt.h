/* The one interface of pygpt: every native library (libpygpt_cpu_*, libpygpt_cuda) exports what stands here, and
 * Python's cffi reads this very file.
 *
 * Letters for sizes:  B batch   T sequence length   N = B·T rows   C channels   V vocabulary   L layers
 *                     NH heads   HS = C / NH head size   IC, OC input and output channels of a linear layer
 *
 * Order of arguments: outputs, inputs, sizes. A gradient is `d` + the name of what it is the gradient of. Matrices are
 * dense and row-major; a comment beside a pointer gives its shape. Outputs are written; `+=` before its shape says of a
 * gradient that it is added to, because it has several sources: that of a weight, from batch to batch, and that of
 * LayerNorm's input, which the residual connection has written.
 */
#ifndef PYGPT_H
#define PYGPT_H

#include <stdint.h>

#pragma GCC visibility push(default)

/* ---- errors: functions that can fail return one of these; the sentence comes from pygpt_last_error() ---- */

enum { PYGPT_OK = 0, PYGPT_ERROR_ARGUMENT = 1, PYGPT_ERROR_MEMORY = 2, PYGPT_ERROR_DEVICE = 3, PYGPT_ERROR_FILE = 4 };

const char *pygpt_last_error(void);   // of this thread's latest failure; reading it clears it; "" if there was none

/* ---- the library ---- */

const char *pygpt_library(void);      // instruction set or device that it was built for, such as "x86-64-v4"
const char *pygpt_processor(void);    // the best instruction set that this processor supports, in the same words
int pygpt_device_memory(int64_t *free, int64_t *total);   // bytes; in libpygpt_cuda* only
void pygpt_set_threads(int threads);   // OpenMP threads of later calls, whichever thread of the program makes them
int pygpt_threads(void);

/* ---- layers: raw float32 buffers in, raw float32 buffers out ---- */

/* A dropout mask is never stored: element i is dropped where Philox4x32-10 draws less than p, with
 * key = seed and counter = (i / 4, site, step), word i % 4. Kept elements are scaled by 1 / (1 - p). */
typedef struct {
    float p;         // probability of dropping; 0 is the identity
    uint32_t site;   // which dropout of the model
    uint32_t step;   // which forward pass
    uint64_t seed;
} Dropout;

// clang-format off: shapes in one column

/* One set of layers. On the CPU a layer cannot fail, because its caller owns every buffer. A library for another
 * device copies the buffers there and back, and leaves a sentence in pygpt_last_error() when that fails. */
typedef struct {
    /* c = op(a) op(b), or c += with accumulate; op(a) is (M,K), op(b) is (K,N); a transposed operand is stored (K,M), (N,K) */
    void (*matmul)(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K, int transpose_a,
                   int transpose_b, int accumulate);

    void (*embedding_forward)(float *x,                                                        // (B,T,C)
                              const int32_t *tokens, const float *wte, const float *wpe,       // (B,T) (V,C) (>=T,C) or NULL
                              int64_t B, int64_t T, int64_t C);
    void (*embedding_backward)(float *dwte, float *dwpe,                                       // += (V,C), += (>=T,C) or NULL
                               const float *dx, const int32_t *tokens,                         // (B,T,C) (B,T)
                               int64_t B, int64_t T, int64_t C);

    void (*layernorm_forward)(float *y, float *mean, float *rstd,                              // (N,C) (N) (N)
                              const float *x, const float *w, const float *b,                  // (N,C) (C) (C) or NULL
                              int64_t N, int64_t C, float eps);
    void (*layernorm_backward)(float *dx, float *dw, float *db,                                // += (N,C), += (C), += (C) or NULL
                               const float *dy, const float *x, const float *w,                // (N,C) (N,C) (C)
                               const float *mean, const float *rstd, int64_t N, int64_t C);    // (N) (N)

    void (*linear_forward)(float *y,                                                           // (N,OC)
                           const float *x, const float *w, const float *b,                     // (N,IC) (IC,OC) (OC) or NULL
                           int64_t N, int64_t IC, int64_t OC);
    void (*linear_backward)(float *dx, float *dw, float *db,                                   // (N,IC), += (IC,OC), += (OC); NULL: left out
                            const float *dy, const float *x, const float *w,                   // (N,OC) (N,IC) (IC,OC)
                            int64_t N, int64_t IC, int64_t OC);

    /* y may be qkv, dqkv may be dy */
    void (*rotary_forward)(float *y,                                                           // (B,T,3,NH,HS)
                           const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS);    // (B,T,3,NH,HS)
    void (*rotary_backward)(float *dqkv,                                                       // (B,T,3,NH,HS)
                            const float *dy, int64_t B, int64_t T, int64_t NH, int64_t HS);    // (B,T,3,NH,HS)

    /* scale: of the scores, 1/√HS in GPT-2 */
    void (*attention_forward)(float *y, float *lse,                                            // (B,T,NH,HS) (B,NH,T)
                              const float *qkv,                                                // (B,T,3,NH,HS)
                              int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal, const Dropout *dropout);   // or NULL
    void (*attention_backward)(float *dqkv,                                                    // (B,T,3,NH,HS)
                               const float *dy, const float *y, const float *lse, const float *qkv,
                               int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal, const Dropout *dropout);
    void (*attention_probabilities)(float *p,                                                  // (B,NH,T,T), before dropout
                                    const float *lse, const float *qkv,
                                    int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal);

    void (*gelu_forward)(float *y, const float *x, int64_t n);
    void (*gelu_backward)(float *dx, const float *dy, const float *x, int64_t n);
    void (*exact_gelu_forward)(float *y, const float *x, int64_t n);
    void (*exact_gelu_backward)(float *dx, const float *dy, const float *x, int64_t n);
    void (*relu_forward)(float *y, const float *x, int64_t n);
    void (*relu_backward)(float *dx, const float *dy, const float *x, int64_t n);

    void (*residual_forward)(float *y, const float *x1, const float *x2, int64_t n);
    void (*residual_backward)(float *dx1, float *dx2, const float *dy, int64_t n);

    void (*dropout_forward)(float *y, const float *x, int64_t n, const Dropout *dropout);
    void (*dropout_backward)(float *dx, const float *dy, int64_t n, const Dropout *dropout);

    /* rows of logits lie Vp >= V floats apart; a negative target is left out: loss 0, gradient 0, as in columns >= V */
    void (*cross_entropy_forward)(float *losses,                                               // (N)
                                  const float *logits, const int32_t *targets,                 // (N,Vp) (N)
                                  int64_t N, int64_t V, int64_t Vp);
    void (*cross_entropy_backward)(float *dlogits,                                             // (N,Vp)
                                   const float *dlosses, const float *logits, const int32_t *targets,   // (N) (N,Vp) (N)
                                   int64_t N, int64_t V, int64_t Vp);
    /* both, the gradient taking the logits' place */
    void (*cross_entropy_in_place)(float *losses, float *logits,                               // (N) (N,Vp)
                                   const float *dlosses, const int32_t *targets,               // (N) (N)
                                   int64_t N, int64_t V, int64_t Vp);

    /* one tensor's update; step counts from 1 */
    void (*adamw_step)(float *w, float *m, float *v, const float *dw, int64_t n,               // (n) each
                       float lr, float beta1, float beta2, float eps, float weight_decay, int64_t step);
    void (*sgd_step)(float *w, float *m, const float *dw, int64_t n,                           // (n) each; m: NULL without momentum
                     float lr, float momentum, float weight_decay);
    /* of `parts` matrices of equal width side by side; scratch: 2 (R c + min(R, c)²) floats, c = C / parts */
    void (*muon_step)(float *w, float *m, const float *dw, float *scratch,                     // (R,C) (R,C) (R,C)
                      int64_t R, int64_t C, int64_t parts, float lr, float momentum, float weight_decay);
    double (*sum_of_squares)(const float *x, int64_t n);
    void (*scale)(float *x, float factor, int64_t n);
} Kernels;

// clang-format on

enum { PYGPT_PLAIN = 0, PYGPT_FAST = 1 };
enum { PYGPT_FLOAT32 = 0, PYGPT_BFLOAT16 = 1, PYGPT_INT8 = 2, PYGPT_INT4 = 3 };   // the last two in a Generator

const Kernels *pygpt_kernels(int kernels, int dtype);   // NULL where this library has no such set

/* The head with cross-entropy, in chunks of `rows` rows, so that only (rows,V) logits exist at a time. */
void classifier_forward(const Kernels *k, float *losses,   // (N)
                        const float *x, const float *wte, const int32_t *targets,   // (N,C) (V,C) (N)
                        float *logits, int64_t rows, int64_t N, int64_t C, int64_t V);   // scratch (rows,V)
void classifier_backward(const Kernels *k, float *losses, float *dx, float *dwte,   // (N), (N,C), += (V,C)
                         const float *dlosses, const float *x, const float *wte,    // (N) (N,C) (V,C)
                         const int32_t *targets, float *logits,                     // (N), scratch (rows,V)
                         int64_t rows, int64_t N, int64_t C, int64_t V);

/* ---- the model ----
 *
 * One thread at a time uses a model: a call while another thread's is under way is an error. Nobody may be using a model
 * that is freed. */

/* What a model may have in another way than GPT-2, which is the first of each, 0; named as in config.json. */
enum { PYGPT_GELU_NEW = 0, PYGPT_GELU = 1, PYGPT_RELU = 2 };   // activation_function
enum { PYGPT_LEARNED = 0, PYGPT_SINUSOIDAL = 1, PYGPT_ROTARY = 2, PYGPT_NO_POSITIONS = 3 };   // position_embedding
enum { PYGPT_BIAS = 0, PYGPT_NO_BIAS = 1 };   // bias, of linear layers and LayerNorm
enum { PYGPT_TIED = 0, PYGPT_UNTIED = 1 };   // tie_word_embeddings: the head is wte, or lm_head.weight
enum { PYGPT_CAUSAL = 0, PYGPT_BIDIRECTIONAL = 1 };   // causal: true, false
enum { PYGPT_SCALED = 0, PYGPT_UNSCALED = 1 };   // scale_attn_weights: scores by 1/√HS, or not
enum { PYGPT_SAME_SCALE = 0, PYGPT_INVERSE_LAYER = 1 };   // scale_attn_by_inverse_layer_idx: by 1/(layer + 1) too
enum { PYGPT_PRE_NORM = 0, PYGPT_POST_NORM = 1 };   // norm_position: of LayerNorm, before a branch or after its sum

typedef struct {
    int64_t vocab_size;    // V
    int64_t n_positions;   // largest T
    int64_t n_embd;        // C
    int64_t n_layer;       // L
    int64_t n_head;        // NH
    int64_t n_inner;       // channels between the two linear layers of the feed-forward part: 4C in GPT-2
    float layer_norm_epsilon;
    float initializer_range;
    float embd_pdrop, attn_pdrop, resid_pdrop;
    int32_t activation_function, position_embedding, bias, tie_word_embeddings, causal;
    int32_t scale_attn_weights, scale_attn_by_inverse_layer_idx, norm_position;
} GPT2Config;

/* What the backward pass computes again instead of keeping. */
enum {
    PYGPT_KEEP_ALL = 0,          // nothing: every activation and its gradient stays readable under its name
    PYGPT_RECOMPUTE_CHEAP = 1,   // outputs of LayerNorm, GELU and the projections: little time, a third of the memory
    PYGPT_RECOMPUTE_BLOCK = 2,   // everything but each block's input and output: one more forward pass
};

typedef struct {
    int dtype;   // PYGPT_FLOAT32 | PYGPT_BFLOAT16: the operands of matrix products
    int kernels;   // PYGPT_PLAIN | PYGPT_FAST
    int recompute;
} GPT2Options;

typedef struct GPT2 GPT2;

int gpt2_create(GPT2 **model, const GPT2Config *config, const GPT2Options *options);   // parameters are zero
void gpt2_free(GPT2 *model);   // NULL is allowed
int gpt2_init_weights(GPT2 *model, uint64_t seed);

/* What a model is for: inference, or training by an optimizer. */
enum { PYGPT_INFERENCE = 0, PYGPT_ADAMW = 1, PYGPT_SGD = 2, PYGPT_MOMENTUM = 3, PYGPT_MUON = 4 };

/* Bytes that a model of this kind takes: for inference, or for training with gradients and the optimizer's moments; -1
 * if the sizes or the purpose are invalid or overflow 64 bits. */
int64_t gpt2_memory(const GPT2Config *config, const GPT2Options *options, int64_t B, int64_t T, int purpose);

/* Forward pass. targets[b,t] is the token to predict after tokens[b,t]: nothing is shifted here; NULL for no loss.
 * loss: mean over the targets that are not negative, in nats; 0 where all are, and then the gradients stay as they are.
 * NULL in place of a result does not wait for a device; what was wrong with such a call is found by one that waits.
 * dropout: NULL for none, otherwise its seed and step are used, and the probabilities of the configuration. */
int gpt2_forward(GPT2 *model, float *loss, const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T,
                 const Dropout *dropout);
int gpt2_backward(GPT2 *model, float scale);   // gradients += scale * d(loss)/d(parameter), for the latest forward pass
/* Both, with the same bits, and the head's products computed once instead of twice. */
int gpt2_forward_backward(GPT2 *model, float *loss, const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T,
                          const Dropout *dropout, float scale);
/* Logits of rows first ... first + count - 1 of the latest forward pass: (count,V). */
int gpt2_logits(GPT2 *model, float *logits, int64_t first, int64_t count);
/* Attention probabilities of one layer in the latest forward pass: (B,NH,T,T), before dropout. size: the product of these. */
int gpt2_attention(GPT2 *model, float *p, int64_t layer, int64_t size);
int gpt2_shape(GPT2 *model, int64_t *B, int64_t *T);   // of the latest forward pass; 0 and 0 before it
/* How many passes were launched as a CUDA graph, and how many could not be captured; in libpygpt_cuda* only. */
int gpt2_graphs(GPT2 *model, int64_t *launched, int64_t *refused);

int gpt2_zero_grad(GPT2 *model);
/* Sum of scale * loss over the backward passes since gpt2_zero_grad(): the loss of a step of several micro-batches. */
int gpt2_summed_loss(GPT2 *model, double *loss);
int gpt2_clip_grad_norm(GPT2 *model, double *norm,
                        float max_norm);   // norm before clipping; max_norm <= 0 only measures
/* Updates of all parameters. step counts from 1. Moments are zero before the first update. */
int gpt2_adamw_step(GPT2 *model, float lr, float beta1, float beta2, float eps, float weight_decay, int64_t step);
int gpt2_sgd_step(GPT2 *model, float lr, float momentum, float weight_decay);   // momentum 0: without first moments
/* Muon on the matrices of the blocks, with its own learning rate; AdamW on the others. */
int gpt2_muon_step(GPT2 *model, float muon_lr, float momentum, float lr, float beta1, float beta2, float eps,
                   float weight_decay, int64_t step);

/* ---- tensors by name ---- */

enum {
    PYGPT_PARAMETER = 0,
    PYGPT_GRADIENT = 1,
    PYGPT_FIRST_MOMENT = 2,
    PYGPT_SECOND_MOMENT = 3,
    PYGPT_ACTIVATION = 4,
    PYGPT_ACTIVATION_GRADIENT = 5,
    PYGPT_ROUNDED = 6,   // parameters as the layers read them, in the model's dtype; in parts only, of which see below
};

/* How a parameter begins; a residual projection's standard deviation is smaller by 1/sqrt(2L). */
enum { PYGPT_INIT_ZERO = 0, PYGPT_INIT_ONE = 1, PYGPT_INIT_NORMAL = 2, PYGPT_INIT_RESIDUAL = 3 };

typedef struct {
    char name[64];
    int32_t ndim;
    int32_t initialisation;   // of a parameter
    int32_t weight_decay;   // 1: optimizers decay it
    int32_t muon;   // matrices side by side that Muon updates; 0: AdamW does
    int32_t kept;   // 0: shares its memory with other layers, so it holds the layer that ran last
    int64_t shape[4];
    int64_t size;   // product of the shape
    int64_t offset;   // in the flat buffer of its kind, in floats
} Tensor;

int64_t gpt2_num_tensors(GPT2 *model, int kind);   // -1 with a sentence in pygpt_last_error()
int gpt2_tensor(GPT2 *model, Tensor *tensor, int kind, int64_t index);
/* Copy a tensor out or in. size: of the tensor. */
int gpt2_read(GPT2 *model, float *values, int kind, int64_t index, int64_t size);
int gpt2_write(GPT2 *model, const float *values, int kind, int64_t index, int64_t size);
/* The flat buffer of a kind, in the host's memory, and its size in floats. That of second moments ends, after
 * gpt2_muon_step(), before the tensors of Muon, which have none, until one of these is written. It stays valid, also
 * after gpt2_free or after activations have grown into a new buffer, until given back with pygpt_release(). *data is NULL
 * where the buffer lies in a device's memory, and for moments that no update has made yet, which gpt2_read() says are 0. */
int gpt2_buffer(GPT2 *model, float **data, int64_t *size, int kind);
void pygpt_release(float *data);

/* ---- generation: a snapshot of a model's weights, packed once, and a cache of keys and values ----
 *
 * The bits of a token's logits depend on the tokens before it in its sequence alone: not on whether these came one by one
 * or together, on other sequences, on a rewind, or on the number of threads. One thread at a time uses a generator.
 *
 * The weights of linear layers and of the embedding are kept, and used, as
 *   PYGPT_FLOAT32    what they are
 *   PYGPT_BFLOAT16   rounded, as the inputs of the products are
 *   PYGPT_INT8       s q, q from -127 to 127, with one scale s, a bfloat16, for each output and 32 inputs
 *   PYGPT_INT4       s q, q from -8 to 7; the embedding and the head as in PYGPT_INT8
 * With the last two, inputs of products are rounded as well: sx q, q from -127 to 127, with one scale sx for 32 of a row.
 * Biases, LayerNorm's weights and positions stay float32. Keys and values: PYGPT_FLOAT32 or PYGPT_BFLOAT16. */

typedef struct Generator Generator;

/* B sequences, empty, with room for `positions` tokens each. Of the model's options only the kernels matter. */
int generator_create(Generator **generator, GPT2 *model, int weights, int cache, int64_t B, int64_t positions);
void generator_free(Generator *generator);   // NULL is allowed
/* Bytes that one takes; -1 if the sizes are invalid or overflow 64 bits. */
int64_t generator_memory(const GPT2Config *config, int weights, int cache, int64_t B, int64_t positions);
/* Replaces a linear layer's weights of PYGPT_INT8 or PYGPT_INT4 by ones that are quantised with given scales, (⌈IC/32⌉,OC), in
 * place of those that the largest weight of each group would have. number: of the layer in its block, c_attn, attn.c_proj,
 * mlp.c_fc, mlp.c_proj; w: (IC,OC), of this size. Whoever quantises with care (GPTQ, Frantar et al. 2023) ends here. */
int generator_write(Generator *generator, int64_t block, int number, const float *w, const float *scales, int64_t size);
/* Appends lengths[b] tokens to sequence b; tokens: those of the first sequence, then those of the second, ... Gives logits
 * for the token that comes next: after the last token of each sequence to which something was appended, (fed,V), or, with
 * `every`, after each token, (sum of lengths,V). An error leaves all sequences as they were. */
int generator_feed(Generator *generator, float *logits, const int32_t *tokens, const int64_t *lengths, int every);
/* Leaves the first lengths[b] tokens of sequence b. */
int generator_rewind(Generator *generator, const int64_t *lengths);
/* How many feeds were launched as a CUDA graph, and how many could not be captured; in libpygpt_cuda* only. */
int generator_graphs(Generator *generator, int64_t *launched, int64_t *refused);

/* ---- for several processes that train one model, and hold its gradient and its moments in parts ---- */

enum { PYGPT_SUMMED_APART = 16384 };   // a part begins at a multiple of this

/* In libpygpt_cpu_* only: the sums that kernels->sum_of_squares() adds, in this order, to the sum of all. Returns how many they
 * are; sums: NULL to only learn that. */
int64_t pygpt_sums_of_squares(double *sums, const float *x, int64_t n);

/* Likewise: parts of the gradients that backward passes have finished since the model was made. Each finishes the head's first,
 * then those of the blocks from the last to the first, and those of the embedding last. Any thread may ask while another is in
 * such a pass. */
int64_t gpt2_finished(const GPT2 *model);

/* In libpygpt_cuda* only, as all that follows: the device of later calls, by its number among those that CUDA shows, counted on
 * from the first where they are fewer. id: its UUID. */
int pygpt_use_device(int number, uint8_t id[16]);

/* Keeps a copy of the gradients, in a buffer of this level, 0, 1, ...; and adds it to the gradients. */
int gpt2_keep_gradients(GPT2 *model, int64_t level);
int gpt2_add_kept_gradients(GPT2 *model, int64_t level);

/* `size` numbers from `begin` on of the flat buffer of a kind, up to PYGPT_SECOND_MOMENT or PYGPT_ROUNDED; what is added is a part
 * as above. */
int gpt2_read_part(GPT2 *model, float *values, int kind, int64_t begin, int64_t size);
int gpt2_write_part(GPT2 *model, const float *values, int kind, int64_t begin, int64_t size);
int gpt2_add_to_gradients(GPT2 *model, const float *values, int64_t begin, int64_t size);

/* AdamW and SGD update only this part from now on, and only of it there are moments and, with bfloat16, float32 parameters; said
 * once, before there are moments. */
int gpt2_own(GPT2 *model, int64_t begin, int64_t size);
/* Of the own part's gradients, one for each PYGPT_SUMMED_APART. */
int gpt2_sums_of_squares(GPT2 *model, double *sums);
/* gpt2_clip_grad_norm() of the own part, by the norm of all. sums: those of all parts, in their order; count: how many. */
int gpt2_clip_part(GPT2 *model, double *norm, const double *sums, int64_t count, float max_norm);

/* The exchange of parts from one device's memory to another's, by NCCL, whose library is opened at run time. version: as NCCL
 * has it, 22703 for 2.27.3. */
int pygpt_nccl_open(const char *path, int *version);
int pygpt_nccl_id(char id[128]);   // one rank makes it and tells the others
int gpt2_connect(GPT2 *model, const char id[128], int ranks, int rank);   // returns once all ranks have called it
/* Sends a part of the buffer of a kind to the partner, which makes the same call, and meanwhile receives one in place of another
 * part, or to be added to that. */
int gpt2_exchange(GPT2 *model, int kind, int partner, int64_t sent, int64_t sent_size, int64_t kept, int64_t kept_size,
                  int adding);

/* ---- peaks: what the processor can do at best, in libpygpt_cpu_* only ---- */

enum { PYGPT_COPY = 0, PYGPT_TRIAD = 1, PYGPT_READ = 2 };   // a = b, a = b + f c, and the sum of a

/* Floating-point operations a second of all threads in multiply-adds of floats, or products of bfloat16. */
double pygpt_peak_flops(int dtype, double seconds);
/* Bytes a second, read and written, in arrays that are together this large; 0 is an error. */
double pygpt_peak_bandwidth(int loop, int64_t bytes, double seconds);

#pragma GCC visibility pop

#endif
