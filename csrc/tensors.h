/* The one table of tensors: names, shapes, weight decay, optimizer, initialisation, and where each lies in its flat buffer.
 *
 * A model is an embedding, L equal blocks and a final part; so the table is written once for a block. gpt2.c sees a part
 * as a struct of pointers, filled from the table. */
#ifndef PYGPT_TENSORS_H
#define PYGPT_TENSORS_H

#include "internal.h"

typedef struct {
    float *wte, *wpe;   // wpe: NULL where positions are not learned
} EmbeddingWeights;

typedef struct {
    float *ln_1_w, *ln_1_b, *c_attn_w, *c_attn_b, *attn_proj_w, *attn_proj_b;
    float *ln_2_w, *ln_2_b, *c_fc_w, *c_fc_b, *mlp_proj_w, *mlp_proj_b;
} BlockWeights;

typedef struct {
    float *ln_f_w, *ln_f_b, *head;   // NULL without a LayerNorm behind the blocks, and to what is wte
} FinalWeights;

typedef struct {
    float *embd, *drop;   // drop: NULL without dropout, as below; likewise rotary where queries and keys are not turned
} EmbeddingActivations;

typedef struct {
    float *ln_1, *ln_1_mean, *ln_1_rstd, *qkv, *rotary, *lse, *heads, *attn_proj, *attn_drop, *resid_mid;
    float *ln_2, *ln_2_mean, *ln_2_rstd, *fc, *act, *mlp_proj, *mlp_drop, *resid_post;
} BlockActivations;

typedef struct {
    float *ln_f, *ln_f_mean, *ln_f_rstd, *losses;
} FinalActivations;

typedef struct {
    Tensor *tensors;
    GPT2Config config;
    int kind;
    int64_t count;   // of tensors
    int64_t size;   // of the flat buffer, in floats
    int64_t without_muon;   // of parameters: floats before those that Muon updates, which come last
    int64_t per_block;   // tensors of a block
    int64_t before;   // tensors before the first block
} TensorTable;

/* kind: as in pygpt.h. The three others of a parameter have the table of parameters. B, T: of activations. PYGPT_OK, or the error
 * of sizes that overflow or memory that is missing. */
int table_create(TensorTable *table, int kind, const GPT2Config *config, int recompute, int64_t B, int64_t T);
void table_free(TensorTable *table);

/* Floats of a flat buffer, found without a table of all layers, of which somebody may ask for a million; -1 if they overflow
 * 64 bits. */
int64_t table_size(int kind, const GPT2Config *config, int recompute, int64_t batch, int64_t length);
/* Likewise, of parameters, those before what Muon updates. */
int64_t size_without_muon(const GPT2Config *config);
/* Floats that kernels->muon_step() works in, for the largest matrix of a block; -1 if they overflow 64 bits. */
int64_t muon_scratch(const GPT2Config *config);
/* What follows from the sizes of two layers and of three, since each layer beyond the second takes the same; -1 if it
 * overflows or one of them is -1. */
int64_t size_of_layers(int64_t layers, int64_t of_two, int64_t of_three);

/* Pointers into a flat buffer with this table, NULL to what the model has not. */
EmbeddingWeights embedding_weights(const TensorTable *table, float *buffer);
BlockWeights block_weights(const TensorTable *table, float *buffer, int64_t layer);
FinalWeights final_weights(const TensorTable *table, float *buffer);
/* (V,C): the head's own, or wte. */
float *head_weights(const TensorTable *table, float *buffer);
EmbeddingActivations embedding_activations(const TensorTable *table, float *buffer);
BlockActivations block_activations(const TensorTable *table, float *buffer, int64_t layer);
FinalActivations final_activations(const TensorTable *table, float *buffer);

/* What enters a block: the output of the block before, or of the embedding. */
float *block_input(const TensorTable *table, float *buffer, int64_t layer);
/* What the head multiplies: ln_f, or the output of the last block. */
float *head_input(const TensorTable *table, float *buffer);

#endif
