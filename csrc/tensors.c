/* The one table of tensors; see tensors.h. */
#include "tensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 16 };   // floats: tensors begin at a cache line

/* A size in a shape, of the configuration or of the batch. */
typedef enum { NONE = 0, V, P, C, C3, F, NH, B, T } Size;   // P: positions, F: n_inner

/* The last recompute level at which every block keeps this activation. */
typedef enum {
    WHILE_KEEP_ALL = PYGPT_KEEP_ALL,
    WHILE_CHEAP = PYGPT_RECOMPUTE_CHEAP,
    ALWAYS = PYGPT_RECOMPUTE_BLOCK
} Kept;

typedef enum { PRESENT, WITH_EMBD_DROPOUT, WITH_RESID_DROPOUT } Presence;

typedef struct {
    size_t field;   // of its pointer in the part's struct
    const char *name;
    Size shape[4];
    int initialisation;   // of a parameter
    Kept kept;            // of an activation, as are the two below
    int has_gradient;
    Presence presence;
} Row;

typedef struct {
    const Row *rows;
    int count;
} Part;

#define WEIGHT(part, field, name, init, ...) {offsetof(part, field), name, {__VA_ARGS__}, init, ALWAYS, 1, PRESENT}
#define ACTIVATION(part, field, name, kept, gradient, presence, ...)                                                   \
    {offsetof(part, field), name, {__VA_ARGS__}, PYGPT_INIT_ZERO, kept, gradient, presence}
#define PART(rows) {rows, sizeof(rows) / sizeof *(rows)}

static const Row EMBEDDING_WEIGHTS[] = {
    WEIGHT(EmbeddingWeights, wte, "wte.weight", PYGPT_INIT_NORMAL, V, C),
    WEIGHT(EmbeddingWeights, wpe, "wpe.weight", PYGPT_INIT_NORMAL, P, C),
};

static const Row BLOCK_WEIGHTS[] = {
    WEIGHT(BlockWeights, ln_1_w, "ln_1.weight", PYGPT_INIT_ONE, C),
    WEIGHT(BlockWeights, ln_1_b, "ln_1.bias", PYGPT_INIT_ZERO, C),
    WEIGHT(BlockWeights, c_attn_w, "attn.c_attn.weight", PYGPT_INIT_NORMAL, C, C3),
    WEIGHT(BlockWeights, c_attn_b, "attn.c_attn.bias", PYGPT_INIT_ZERO, C3),
    WEIGHT(BlockWeights, attn_proj_w, "attn.c_proj.weight", PYGPT_INIT_RESIDUAL, C, C),
    WEIGHT(BlockWeights, attn_proj_b, "attn.c_proj.bias", PYGPT_INIT_ZERO, C),
    WEIGHT(BlockWeights, ln_2_w, "ln_2.weight", PYGPT_INIT_ONE, C),
    WEIGHT(BlockWeights, ln_2_b, "ln_2.bias", PYGPT_INIT_ZERO, C),
    WEIGHT(BlockWeights, c_fc_w, "mlp.c_fc.weight", PYGPT_INIT_NORMAL, C, F),
    WEIGHT(BlockWeights, c_fc_b, "mlp.c_fc.bias", PYGPT_INIT_ZERO, F),
    WEIGHT(BlockWeights, mlp_proj_w, "mlp.c_proj.weight", PYGPT_INIT_RESIDUAL, F, C),
    WEIGHT(BlockWeights, mlp_proj_b, "mlp.c_proj.bias", PYGPT_INIT_ZERO, C),
};

static const Row FINAL_WEIGHTS[] = {
    WEIGHT(FinalWeights, ln_f_w, "ln_f.weight", PYGPT_INIT_ONE, C),
    WEIGHT(FinalWeights, ln_f_b, "ln_f.bias", PYGPT_INIT_ZERO, C),
};

static const Row EMBEDDING_ACTIVATIONS[] = {
    ACTIVATION(EmbeddingActivations, embd, "embd", ALWAYS, 1, PRESENT, B, T, C),
    ACTIVATION(EmbeddingActivations, drop, "drop", ALWAYS, 1, WITH_EMBD_DROPOUT, B, T, C),
};

/* resid_post is the last, because its gradient comes from the next block and must outlive the others. */
static const Row BLOCK_ACTIVATIONS[] = {
    ACTIVATION(BlockActivations, ln_1, "ln_1", WHILE_KEEP_ALL, 1, PRESENT, B, T, C),
    ACTIVATION(BlockActivations, ln_1_mean, "ln_1.mean", WHILE_CHEAP, 0, PRESENT, B, T),
    ACTIVATION(BlockActivations, ln_1_rstd, "ln_1.rstd", WHILE_CHEAP, 0, PRESENT, B, T),
    ACTIVATION(BlockActivations, qkv, "attn.c_attn", WHILE_CHEAP, 1, PRESENT, B, T, C3),
    ACTIVATION(BlockActivations, lse, "attn.lse", WHILE_CHEAP, 0, PRESENT, B, NH, T),
    ACTIVATION(BlockActivations, heads, "attn.heads", WHILE_CHEAP, 1, PRESENT, B, T, C),
    ACTIVATION(BlockActivations, attn_proj, "attn.c_proj", WHILE_KEEP_ALL, 1, PRESENT, B, T, C),
    ACTIVATION(BlockActivations, attn_drop, "attn.resid_dropout", WHILE_KEEP_ALL, 1, WITH_RESID_DROPOUT, B, T, C),
    ACTIVATION(BlockActivations, resid_mid, "resid_mid", WHILE_CHEAP, 1, PRESENT, B, T, C),
    ACTIVATION(BlockActivations, ln_2, "ln_2", WHILE_KEEP_ALL, 1, PRESENT, B, T, C),
    ACTIVATION(BlockActivations, ln_2_mean, "ln_2.mean", WHILE_CHEAP, 0, PRESENT, B, T),
    ACTIVATION(BlockActivations, ln_2_rstd, "ln_2.rstd", WHILE_CHEAP, 0, PRESENT, B, T),
    ACTIVATION(BlockActivations, fc, "mlp.c_fc", WHILE_CHEAP, 1, PRESENT, B, T, F),
    ACTIVATION(BlockActivations, act, "mlp.act", WHILE_KEEP_ALL, 1, PRESENT, B, T, F),
    ACTIVATION(BlockActivations, mlp_proj, "mlp.c_proj", WHILE_KEEP_ALL, 1, PRESENT, B, T, C),
    ACTIVATION(BlockActivations, mlp_drop, "mlp.dropout", WHILE_KEEP_ALL, 1, WITH_RESID_DROPOUT, B, T, C),
    ACTIVATION(BlockActivations, resid_post, "resid_post", ALWAYS, 1, PRESENT, B, T, C),
};

static const Row FINAL_ACTIVATIONS[] = {
    ACTIVATION(FinalActivations, ln_f, "ln_f", ALWAYS, 1, PRESENT, B, T, C),
    ACTIVATION(FinalActivations, ln_f_mean, "ln_f.mean", ALWAYS, 0, PRESENT, B, T),
    ACTIVATION(FinalActivations, ln_f_rstd, "ln_f.rstd", ALWAYS, 0, PRESENT, B, T),
    ACTIVATION(FinalActivations, losses, "losses", ALWAYS, 1, PRESENT, B, T),
};

/* embedding, block, final */
static const Part WEIGHTS[] = {PART(EMBEDDING_WEIGHTS), PART(BLOCK_WEIGHTS), PART(FINAL_WEIGHTS)};
static const Part ACTIVATIONS[] = {PART(EMBEDDING_ACTIVATIONS), PART(BLOCK_ACTIVATIONS), PART(FINAL_ACTIVATIONS)};

static int present(const Row *row, int kind, const GPT2Config *config) {
    if (kind == PYGPT_ACTIVATION_GRADIENT && !row->has_gradient) return 0;
    if (row->presence == WITH_EMBD_DROPOUT) return config->embd_pdrop > 0.0f;
    if (row->presence == WITH_RESID_DROPOUT) return config->resid_pdrop > 0.0f;
    return 1;
}

/* How many blocks have a copy of their own; block l uses copy l % copies. */
static int64_t copies(const Row *row, int kind, int recompute, int64_t L) {
    if (kind == PYGPT_ACTIVATION) return recompute <= (int)row->kept ? L : 1;
    if (kind != PYGPT_ACTIVATION_GRADIENT || recompute == PYGPT_KEEP_ALL) return L;
    /* A block reads the gradient of its output while it makes that of its input, the output of the block before. */
    return row->kept == ALWAYS ? min64(2, L) : 1;
}

static int64_t value(Size size, const GPT2Config *config, int64_t batch, int64_t length) {
    switch (size) {
    case V: return config->vocab_size;
    case P: return config->n_positions;
    case C: return config->n_embd;
    case C3: return checked_mul(3, config->n_embd);
    case F: return config->n_inner;
    case NH: return config->n_head;
    case B: return batch;
    case T: return length;
    default: return 0;
    }
}

static int add(TensorTable *table, const Row *row, int64_t layer, int64_t number_of_copies, const GPT2Config *config,
               int64_t batch, int64_t length) {
    Tensor *tensor = &table->tensors[table->count++];
    if (layer < 0) {
        snprintf(tensor->name, sizeof tensor->name, "%s", row->name);
    } else {
        snprintf(tensor->name, sizeof tensor->name, "h.%" PRId64 ".%s", layer, row->name);
    }
    tensor->initialisation = row->initialisation;
    tensor->size = 1;
    while (tensor->ndim < 4 && row->shape[tensor->ndim] != NONE) {
        int64_t size = value(row->shape[tensor->ndim], config, batch, length);
        tensor->shape[tensor->ndim++] = size;
        tensor->size = checked_mul(tensor->size, size);
    }
    tensor->weight_decay = tensor->ndim == 2;   // of a parameter: matrices decay, biases and LayerNorms do not
    tensor->kept = layer < 0 || number_of_copies >= config->n_layer;
    if (layer >= number_of_copies) {
        tensor->offset = table->tensors[table->count - 1 - number_of_copies * table->per_block].offset;
        return PYGPT_OK;
    }
    tensor->offset = table->size;
    int64_t aligned = checked_add(tensor->size, ALIGNMENT - 1);
    table->size = checked_add(table->size, aligned < 0 ? -1 : aligned / ALIGNMENT * ALIGNMENT);
    /* room for the largest multiple taken of it anywhere, which is its size in bytes */
    if (checked_mul(table->size, sizeof(double)) < 0) {
        return fail(PYGPT_ERROR_ARGUMENT, "%s: the size of this tensor overflows 64 bits", tensor->name);
    }
    return PYGPT_OK;
}

static const Part *parts_of(int kind) {
    return kind == PYGPT_ACTIVATION || kind == PYGPT_ACTIVATION_GRADIENT ? ACTIVATIONS : WEIGHTS;
}

int table_create(TensorTable *table, int kind, const GPT2Config *config, int recompute, int64_t batch, int64_t length) {
    const Part *parts = parts_of(kind);
    int64_t L = config->n_layer;
    *table = (TensorTable){.kind = kind, .config = *config};
    for (int i = 0; i < parts[0].count; i++) table->before += present(&parts[0].rows[i], kind, config);
    for (int i = 0; i < parts[1].count; i++) table->per_block += present(&parts[1].rows[i], kind, config);
    int64_t capacity = checked_add(checked_mul(L, table->per_block), parts[0].count + parts[2].count);
    if (capacity >= 0 && (uint64_t)capacity < SIZE_MAX / sizeof(Tensor)) {
        table->tensors = calloc((size_t)capacity, sizeof(Tensor));
    }
    if (!table->tensors)
        return fail(PYGPT_ERROR_MEMORY, "no memory for a table of the tensors of %" PRId64 " layers", L);

    int status = PYGPT_OK;
    for (int part = 0; part < 3; part++) {
        for (int64_t layer = part == 1 ? 0 : -1; layer < (part == 1 ? L : 0); layer++) {
            for (int i = 0; i < parts[part].count && status == PYGPT_OK; i++) {
                const Row *row = &parts[part].rows[i];
                if (!present(row, kind, config)) continue;
                status = add(table, row, layer, copies(row, kind, recompute, L), config, batch, length);
            }
        }
    }
    if (status != PYGPT_OK) table_free(table);
    return status;
}

void table_free(TensorTable *table) {
    free(table->tensors);
    memset(table, 0, sizeof *table);
}

int64_t size_of_layers(int64_t layers, int64_t of_two, int64_t of_three) {
    return of_three < of_two ? -1 : checked_add(of_two, checked_mul(layers - 2, of_three - of_two));
}

int64_t table_size(int kind, const GPT2Config *config, int recompute, int64_t batch, int64_t length) {
    int64_t sizes[2], layers = config->n_layer;
    for (int i = 0; i < 2; i++) {
        TensorTable table;
        GPT2Config few = *config;
        few.n_layer = min64(layers, 2 + i);
        if (table_create(&table, kind, &few, recompute, batch, length) != PYGPT_OK) return -1;
        sizes[i] = table.size;
        table_free(&table);
    }
    int64_t size = layers > 2 ? size_of_layers(layers, sizes[0], sizes[1]) : sizes[0];
    return checked_mul(size, sizeof(double)) < 0 ? -1 : size;
}

/* Fills a part's struct of pointers from its tensors, which begin at number first. An absent tensor gives NULL. */
static void point(void *pointers, const Part *part, const TensorTable *table, int64_t first, float *buffer) {
    for (int i = 0; i < part->count; i++) {
        const Row *row = &part->rows[i];
        float **pointer = (float **)((char *)pointers + row->field);
        *pointer = present(row, table->kind, &table->config) ? buffer + table->tensors[first++].offset : NULL;
    }
}

static int64_t first_of_block(const TensorTable *table, int64_t layer) {
    return table->before + layer * table->per_block;
}

EmbeddingWeights embedding_weights(const TensorTable *table, float *buffer) {
    EmbeddingWeights weights;
    point(&weights, &WEIGHTS[0], table, 0, buffer);
    return weights;
}

BlockWeights block_weights(const TensorTable *table, float *buffer, int64_t layer) {
    BlockWeights weights;
    point(&weights, &WEIGHTS[1], table, first_of_block(table, layer), buffer);
    return weights;
}

FinalWeights final_weights(const TensorTable *table, float *buffer) {
    FinalWeights weights;
    point(&weights, &WEIGHTS[2], table, first_of_block(table, table->config.n_layer), buffer);
    return weights;
}

EmbeddingActivations embedding_activations(const TensorTable *table, float *buffer) {
    EmbeddingActivations activations;
    point(&activations, &ACTIVATIONS[0], table, 0, buffer);
    return activations;
}

BlockActivations block_activations(const TensorTable *table, float *buffer, int64_t layer) {
    BlockActivations activations;
    point(&activations, &ACTIVATIONS[1], table, first_of_block(table, layer), buffer);
    return activations;
}

FinalActivations final_activations(const TensorTable *table, float *buffer) {
    FinalActivations activations;
    point(&activations, &ACTIVATIONS[2], table, first_of_block(table, table->config.n_layer), buffer);
    return activations;
}

float *block_input(const TensorTable *table, float *buffer, int64_t layer) {
    if (layer > 0) return block_activations(table, buffer, layer - 1).resid_post;
    EmbeddingActivations embedding = embedding_activations(table, buffer);
    return embedding.drop ? embedding.drop : embedding.embd;
}
