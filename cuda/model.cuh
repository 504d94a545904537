/* What a model holds, and what its files have of each other. */
#pragma once

#include "device.cuh"
#include "graph.cuh"
#include "layout.cuh"

#include <vector>

extern "C" {
#include "../csrc/access.h"
#include "../csrc/arguments.h"
#include "../csrc/use.h"
}

/* What a pass gets and gives besides tensors. On the device, so that a captured graph finds the values of each pass. */
struct PassState {
    DropoutDraw draw;
    float scale;        // of the gradients
    float loss;         // mean over the targets that count
    double summed_loss; // of the backward passes since the gradients were zero, with their scales
    int64_t counted;    // targets that are not negative
    int64_t bad;        // the first one outside the vocabulary: 2 n for token n, 2 n + 1 for its target; -1 if none
    int64_t bad_length; // T of that pass
    int32_t bad_value;
    double norm;        // of the gradients
};

/* How far a pass goes. */
enum class Pass { forward, loss, gradients };

struct NcclCommunicator;

/* Numbers of a flat buffer of weights. */
struct Part {
    int64_t begin, size;
};

struct GPT2 {
    GPT2Config config;
    GPT2Options options;
    int in_use;                    // 1 while a function of the interface runs
    Queue queue;
    Activation activation;
    Rounding rounding;             // of weights to bfloat16

    TensorTable weights;           // the table of the next four buffers, which are float32
    float *parameters, *gradients, *first_moments, *second_moments;   // the last three are made when first needed
    int64_t second_count;   // floats of second_moments: all, or those without_muon
    float *muon_scratch;           // likewise
    Part own;                      // what updates are of, and the moments: all, or what gpt2_own() said
    Part masters;                  // what of the weights is in `parameters`: all, or with bfloat16 what is own
    std::vector<float *> kept;     // by gpt2_keep_gradients()
    NcclCommunicator *communicator;   // NULL where ranks do not exchange by NCCL
    bool exchange_failed;          // so it cannot be ended in good order
    TensorTable copied_weights;    // the table of what the layers read
    void *copy;                    // its buffer: bfloat16, or `parameters` itself
    void *sinusoidal;              // (n_positions,C) in place of wpe; NULL in models of another kind
    uint8_t *treatment;            // of groups of weights, by optimizers

    /* As Python sees them, and as they lie in the device's memory: with offsets in units of four bytes. */
    TensorTable activation_table, activation_gradient_table, activation_layout, activation_gradient_layout;
    float *activations, *activation_gradients;
    int64_t activation_bytes, activation_gradient_bytes;

    int32_t *tokens, *targets;     // (B,T) each, those outside the vocabulary replaced
    void *logits;                  // (head_rows(),Vp): the head works in chunks
    int64_t token_bytes, target_bytes, logits_bytes;

    PassState *state, *read_state; // on the device, and what was read of it, in pinned memory
    int64_t B, T;                  // of the latest forward pass; 0 before it
    bool training;                 // it had dropout
    bool has_targets;
    bool unread;                   // read_state is not of it yet
    bool went_back;                // a backward pass has run with these B and T
    bool weights_changed;          // since the latest backward pass

    int64_t allocated;             // bytes on the device
    int64_t replaced;              // how often a buffer has moved: graphs hold addresses
    int64_t graphs_replaced;       // ... when the graphs were captured, with queue.replaced
    Graphs graphs;   // of passes: by B, T, pass, training
};

/* ---- memory.cu: PYGPT_OK or an error ---- */

/* Says before anything is made if not even the weights would fit, and how many layers would. */
int check_model(const GPT2Config *config, const GPT2Options *options);

/* Likewise for generator_create(). */
int check_generator_memory(const GPT2Config *config, int weights, int cache, int64_t B, int64_t positions);

/* what: for the sentence of an error */
int allocate(GPT2 *model, void **buffer, int64_t bytes, const char *what);
int clear(GPT2 *model, void *buffer, int64_t bytes);
int zeroed(GPT2 *model, void **buffer, int64_t bytes, const char *what);   // where there is none yet

template <class T> void **address(T **pointer) {
    return reinterpret_cast<void **>(pointer);
}

/* Rows of logits that the head makes at a time for N rows. What depends on anything else would change the bits. */
int64_t head_rows(const GPT2Config &config, int64_t N);

/* Of a buffer of weights: large enough for padded_vocabulary() rows of wte. */
int64_t flat_bytes(const GPT2 *model);
int64_t weights_bytes(const GPT2 *model);   // without these

/* Make sure of the memory for a pass with these sizes. */
int reserve_forward(GPT2 *model, int64_t B, int64_t T, bool training);
int reserve_backward(GPT2 *model);
int reserve_muon(GPT2 *model);
/* Let go of the float32 weights but for a part. */
int keep_masters(GPT2 *model, const Part &part);

/* ---- gpt2.cu ---- */

void enqueue_pass(GPT2 *model, Pass pass);
/* Everything from the losses back to the parameters. */
void whole_backward(GPT2 *model);

/* The gradient of GELU's output in one block, which the fused kernels do not keep; written to scratch memory. */
void *activation_gradient_of_gelu(GPT2 *model, int64_t layer);

/* ---- graph.cu ---- */

/* enqueue_pass(), or from the second time in a row on the graph of it. */
void run_pass(GPT2 *model, Pass pass);

/* ---- initialisation.cu ---- */

/* Float32 weights from an offset on, which are there. */
inline float *master_weights(const GPT2 *model, int64_t offset) {
    return model->parameters + (offset - model->masters.begin);
}

/* The copy of some neighbouring weights for the layers, after they have changed. */
void copy_weights(GPT2 *model, int64_t offset, int64_t n);

/* ---- ranks.cu, exchange.cu ---- */

/* PYGPT_OK, or an error where this process has only a part of the buffer of a kind. */
int check_whole(const GPT2 *model, int kind);
/* How the numbers of a part are stored. */
DataType type_of_part(const GPT2 *model, int kind);
/* Where a part of the buffer of a kind lies, up to PYGPT_SECOND_MOMENT or PYGPT_ROUNDED; NULL if it is empty. PYGPT_OK or an
 * error. */
int locate_part(GPT2 *model, char **data, int kind, const Part &part);
/* The weights of a part have been written. */
void after_writing(GPT2 *model, int kind, const Part &part);
/* Ends the model's use of NCCL. */
void disconnect(GPT2 *model);
