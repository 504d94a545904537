/* What a model holds; shared by model.c (memory), initialisation.c, gpt2.c (forward and backward), and optimizer.c. */
#ifndef PYGPT_MODEL_H
#define PYGPT_MODEL_H

#include "access.h"
#include "arguments.h"
#include "use.h"

/* The nonlinearity of the feed-forward part. */
typedef struct {
    void (*forward)(float *y, const float *x, int64_t n);
    void (*backward)(float *dx, const float *dy, const float *x, int64_t n);
} Activation;

struct GPT2 {
    GPT2Config config;
    GPT2Options options;
    const Kernels *kernels;
    Activation activation;
    int in_use;                        // 1 while a function of the interface runs

    TensorTable weights;   // the table of the next four buffers
    float *parameters, *gradients, *first_moments, *second_moments;   // the last three are made when first needed
    int64_t second_count;   // floats of second_moments: all, or those without_muon
    float *muon_scratch;   // likewise

    float *sinusoidal;                 // (n_positions,C) in place of wpe; NULL in models of another kind

    TensorTable activation_table, activation_gradient_table;   // for the B and T of the latest forward pass
    float *activations, *activation_gradients;
    int64_t activation_capacity, activation_gradient_capacity;   // in floats

    int32_t *tokens, *targets;         // (B,T) each, copies of the latest forward pass's
    float *logits;                     // (head_rows(),V): the head works in chunks
    int64_t token_capacity, logits_capacity;

    int64_t B, T;                      // of the latest forward pass; 0 before it
    int has_targets;
    int64_t counted;                   // targets that are not negative
    double summed_loss;                // of the backward passes since the gradients were zero, with their scales
    Dropout dropout;                   // seed and step of the latest forward pass
    int training;                      // it had dropout
    int went_back;                     // a backward pass has run with these B and T
    int64_t finished;                  // parts of gradients, as gpt2_finished() says
};

/* Rows of logits that the head makes at a time for N rows. What depends on anything else would change the bits. */
int64_t head_rows(const GPT2Config *config, int64_t N);

/* Make sure of the memory for a pass with these sizes. PYGPT_OK or an error. */
int reserve_forward(GPT2 *model, int64_t B, int64_t T);
int reserve_backward(GPT2 *model);
int reserve_muon(GPT2 *model);

#endif
