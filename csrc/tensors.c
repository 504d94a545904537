/* The one table of tensors; see tensors.h. */
#include "tensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 16 };   // floats: tensors begin at a cache line

/* A size in a shape, of the configuration or of the batch; P: positions, F: n_inner. Not the letter alone, which would
 * compile as a number wherever a local variable of that name is forgotten. */
typedef enum { NO_SIZE = 0, SIZE_V, SIZE_P, SIZE_C, SIZE_3C, SIZE_F, SIZE_NH, SIZE_B, SIZE_T } Size;

/* The last recompute level at which every block keeps this activation. */
typedef enum {
    WHILE_KEEP_ALL = PYGPT_KEEP_ALL,
    WHILE_CHEAP = PYGPT_RECOMPUTE_CHEAP,
    ALWAYS = PYGPT_RECOMPUTE_BLOCK
} Kept;

typedef enum {
    PRESENT = 0,
    WITH_EMBD_DROPOUT,
    WITH_RESID_DROPOUT,
    WITH_LEARNED_POSITIONS,
    WITH_ROTARY,
    WITH_BIAS,
    UNTIED,
    PRE_NORM,
    PRE_NORM_WITH_BIAS,
    POST_NORM
} Presence;

typedef struct {
    size_t field;   // of its pointer in the part's struct
    const char *name;
    Size shape[4];
    int initialisation;   // of a parameter
    Kept kept;   // of an activation, as is the one below
    int no_gradient;
    Presence presence;
} Row;

typedef struct {
    const Row *rows;
    int count;
} Part;

#define ROW(part, field_, name_) .field = offsetof(part, field_), .name = name_
#define PART(rows) {rows, sizeof(rows) / sizeof *(rows)}

static const Row EMBEDDING_WEIGHTS[] = {
    {ROW(EmbeddingWeights, wte, "wte.weight"), .shape = {SIZE_V, SIZE_C}, .initialisation = PYGPT_INIT_NORMAL},
    {ROW(EmbeddingWeights, wpe, "wpe.weight"), .shape = {SIZE_P, SIZE_C}, .initialisation = PYGPT_INIT_NORMAL,
     .presence = WITH_LEARNED_POSITIONS},
};

static const Row BLOCK_WEIGHTS[] = {
    {ROW(BlockWeights, ln_1_w, "ln_1.weight"), .shape = {SIZE_C}, .initialisation = PYGPT_INIT_ONE},
    {ROW(BlockWeights, ln_1_b, "ln_1.bias"), .shape = {SIZE_C}, .initialisation = PYGPT_INIT_ZERO,
     .presence = WITH_BIAS},
    {ROW(BlockWeights, c_attn_w, "attn.c_attn.weight"), .shape = {SIZE_C, SIZE_3C},
     .initialisation = PYGPT_INIT_NORMAL},
    {ROW(BlockWeights, c_attn_b, "attn.c_attn.bias"), .shape = {SIZE_3C}, .initialisation = PYGPT_INIT_ZERO,
     .presence = WITH_BIAS},
    {ROW(BlockWeights, attn_proj_w, "attn.c_proj.weight"), .shape = {SIZE_C, SIZE_C},
     .initialisation = PYGPT_INIT_RESIDUAL},
    {ROW(BlockWeights, attn_proj_b, "attn.c_proj.bias"), .shape = {SIZE_C}, .initialisation = PYGPT_INIT_ZERO,
     .presence = WITH_BIAS},
    {ROW(BlockWeights, ln_2_w, "ln_2.weight"), .shape = {SIZE_C}, .initialisation = PYGPT_INIT_ONE},
    {ROW(BlockWeights, ln_2_b, "ln_2.bias"), .shape = {SIZE_C}, .initialisation = PYGPT_INIT_ZERO,
     .presence = WITH_BIAS},
    {ROW(BlockWeights, c_fc_w, "mlp.c_fc.weight"), .shape = {SIZE_C, SIZE_F}, .initialisation = PYGPT_INIT_NORMAL},
    {ROW(BlockWeights, c_fc_b, "mlp.c_fc.bias"), .shape = {SIZE_F}, .initialisation = PYGPT_INIT_ZERO,
     .presence = WITH_BIAS},
    {ROW(BlockWeights, mlp_proj_w, "mlp.c_proj.weight"), .shape = {SIZE_F, SIZE_C},
     .initialisation = PYGPT_INIT_RESIDUAL},
    {ROW(BlockWeights, mlp_proj_b, "mlp.c_proj.bias"), .shape = {SIZE_C}, .initialisation = PYGPT_INIT_ZERO,
     .presence = WITH_BIAS},
};

static const Row FINAL_WEIGHTS[] = {
    {ROW(FinalWeights, ln_f_w, "ln_f.weight"), .shape = {SIZE_C}, .initialisation = PYGPT_INIT_ONE,
     .presence = PRE_NORM},
    {ROW(FinalWeights, ln_f_b, "ln_f.bias"), .shape = {SIZE_C}, .initialisation = PYGPT_INIT_ZERO,
     .presence = PRE_NORM_WITH_BIAS},
    {ROW(FinalWeights, head, "lm_head.weight"), .shape = {SIZE_V, SIZE_C}, .initialisation = PYGPT_INIT_NORMAL,
     .presence = UNTIED},
};

static const Row EMBEDDING_ACTIVATIONS[] = {
    {ROW(EmbeddingActivations, embd, "embd"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = ALWAYS},
    {ROW(EmbeddingActivations, drop, "drop"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = ALWAYS,
     .presence = WITH_EMBD_DROPOUT},
};

/* A block's output is always kept: resid_post, or ln_2 where the LayerNorms come after the residual connections. */
static const Row BLOCK_ACTIVATIONS[] = {
    {ROW(BlockActivations, ln_1, "ln_1"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = WHILE_KEEP_ALL},
    {ROW(BlockActivations, ln_1_mean, "ln_1.mean"), .shape = {SIZE_B, SIZE_T}, .kept = WHILE_CHEAP, .no_gradient = 1},
    {ROW(BlockActivations, ln_1_rstd, "ln_1.rstd"), .shape = {SIZE_B, SIZE_T}, .kept = WHILE_CHEAP, .no_gradient = 1},
    {ROW(BlockActivations, qkv, "attn.c_attn"), .shape = {SIZE_B, SIZE_T, SIZE_3C}, .kept = WHILE_CHEAP},
    {ROW(BlockActivations, rotary, "attn.rotary"), .shape = {SIZE_B, SIZE_T, SIZE_3C}, .kept = WHILE_KEEP_ALL,
     .presence = WITH_ROTARY},
    {ROW(BlockActivations, lse, "attn.lse"), .shape = {SIZE_B, SIZE_NH, SIZE_T}, .kept = WHILE_CHEAP, .no_gradient = 1},
    {ROW(BlockActivations, heads, "attn.heads"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = WHILE_CHEAP},
    {ROW(BlockActivations, attn_proj, "attn.c_proj"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = WHILE_KEEP_ALL},
    {ROW(BlockActivations, attn_drop, "attn.resid_dropout"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = WHILE_KEEP_ALL,
     .presence = WITH_RESID_DROPOUT},
    {ROW(BlockActivations, resid_mid, "resid_mid"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = WHILE_CHEAP},
    {ROW(BlockActivations, ln_2, "ln_2"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = WHILE_KEEP_ALL,
     .presence = PRE_NORM},
    {ROW(BlockActivations, ln_2, "ln_2"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = ALWAYS, .presence = POST_NORM},
    {ROW(BlockActivations, ln_2_mean, "ln_2.mean"), .shape = {SIZE_B, SIZE_T}, .kept = WHILE_CHEAP, .no_gradient = 1},
    {ROW(BlockActivations, ln_2_rstd, "ln_2.rstd"), .shape = {SIZE_B, SIZE_T}, .kept = WHILE_CHEAP, .no_gradient = 1},
    {ROW(BlockActivations, fc, "mlp.c_fc"), .shape = {SIZE_B, SIZE_T, SIZE_F}, .kept = WHILE_CHEAP},
    {ROW(BlockActivations, act, "mlp.act"), .shape = {SIZE_B, SIZE_T, SIZE_F}, .kept = WHILE_KEEP_ALL},
    {ROW(BlockActivations, mlp_proj, "mlp.c_proj"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = WHILE_KEEP_ALL},
    {ROW(BlockActivations, mlp_drop, "mlp.dropout"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = WHILE_KEEP_ALL,
     .presence = WITH_RESID_DROPOUT},
    {ROW(BlockActivations, resid_post, "resid_post"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = ALWAYS,
     .presence = PRE_NORM},
    {ROW(BlockActivations, resid_post, "resid_post"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = WHILE_CHEAP,
     .presence = POST_NORM},
};

static const Row FINAL_ACTIVATIONS[] = {
    {ROW(FinalActivations, ln_f, "ln_f"), .shape = {SIZE_B, SIZE_T, SIZE_C}, .kept = ALWAYS, .presence = PRE_NORM},
    {ROW(FinalActivations, ln_f_mean, "ln_f.mean"), .shape = {SIZE_B, SIZE_T}, .kept = ALWAYS, .no_gradient = 1,
     .presence = PRE_NORM},
    {ROW(FinalActivations, ln_f_rstd, "ln_f.rstd"), .shape = {SIZE_B, SIZE_T}, .kept = ALWAYS, .no_gradient = 1,
     .presence = PRE_NORM},
    {ROW(FinalActivations, losses, "losses"), .shape = {SIZE_B, SIZE_T}, .kept = ALWAYS},
};

enum { EMBEDDING, BLOCK, FINAL, PARTS };

static const Part WEIGHTS[PARTS] = {
    [EMBEDDING] = PART(EMBEDDING_WEIGHTS),
    [BLOCK] = PART(BLOCK_WEIGHTS),
    [FINAL] = PART(FINAL_WEIGHTS),
};
static const Part ACTIVATIONS[PARTS] = {
    [EMBEDDING] = PART(EMBEDDING_ACTIVATIONS),
    [BLOCK] = PART(BLOCK_ACTIVATIONS),
    [FINAL] = PART(FINAL_ACTIVATIONS),
};

static int present(const Row *row, int kind, const GPT2Config *config) {
    if (kind == PYGPT_ACTIVATION_GRADIENT && row->no_gradient) return 0;
    if (row->presence == WITH_EMBD_DROPOUT) return config->embd_pdrop > 0.0f;
    if (row->presence == WITH_RESID_DROPOUT) return config->resid_pdrop > 0.0f;
    if (row->presence == WITH_LEARNED_POSITIONS) return config->position_embedding == PYGPT_LEARNED;
    if (row->presence == WITH_ROTARY) return config->position_embedding == PYGPT_ROTARY;
    if (row->presence == WITH_BIAS) return config->bias == PYGPT_BIAS;
    if (row->presence == UNTIED) return config->tie_word_embeddings == PYGPT_UNTIED;
    if (row->presence == PRE_NORM) return !is_post_norm(config);
    if (row->presence == PRE_NORM_WITH_BIAS) return !is_post_norm(config) && config->bias == PYGPT_BIAS;
    if (row->presence == POST_NORM) return is_post_norm(config);
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
    case SIZE_V: return config->vocab_size;
    case SIZE_P: return config->n_positions;
    case SIZE_C: return config->n_embd;
    case SIZE_3C: return checked_mul(3, config->n_embd);
    case SIZE_F: return config->n_inner;
    case SIZE_NH: return config->n_head;
    case SIZE_B: return batch;
    case SIZE_T: return length;
    default: return 0;
    }
}

static int64_t aligned(int64_t size) {
    int64_t up = checked_add(size, ALIGNMENT - 1);
    return up < 0 ? -1 : up / ALIGNMENT * ALIGNMENT;
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
    while (tensor->ndim < 4 && row->shape[tensor->ndim] != NO_SIZE) {
        int64_t size = value(row->shape[tensor->ndim], config, batch, length);
        tensor->shape[tensor->ndim++] = size;
        tensor->size = checked_mul(tensor->size, size);
    }
    tensor->weight_decay = tensor->ndim == 2;   // of a parameter: matrices decay, biases and LayerNorms do not
    if (tensor->weight_decay && layer >= 0) tensor->muon = row->shape[1] == SIZE_3C ? 3 : 1;
    tensor->kept = layer < 0 || number_of_copies >= config->n_layer;
    if (layer >= number_of_copies) {
        tensor->offset = table->tensors[table->count - 1 - number_of_copies * table->per_block].offset;
        return PYGPT_OK;
    }
    tensor->offset = table->size;
    table->size = checked_add(table->size, aligned(tensor->size));
    /* room for the largest multiple taken of it anywhere, which is its size in bytes */
    if (checked_mul(table->size, sizeof(double)) < 0) {
        return fail(PYGPT_ERROR_ARGUMENT, "%s: the size of this tensor overflows 64 bits", tensor->name);
    }
    return PYGPT_OK;
}

static const Part *parts_of(int kind) {
    return kind == PYGPT_ACTIVATION || kind == PYGPT_ACTIVATION_GRADIENT ? ACTIVATIONS : WEIGHTS;
}

/* So that second moments, which Muon has not, need only the beginning of a buffer. */
static void move_muon_last(TensorTable *table) {
    int64_t at = 0;
    for (int last = 0; last < 2; last++) {
        for (int64_t i = 0; i < table->count; i++) {
            Tensor *t = &table->tensors[i];
            if ((t->muon != 0) != last) continue;
            t->offset = at;
            at += aligned(t->size);
        }
        if (!last) table->without_muon = at;
    }
}

int table_create(TensorTable *table, int kind, const GPT2Config *config, int recompute, int64_t batch, int64_t length) {
    const Part *parts = parts_of(kind);
    int64_t L = config->n_layer;
    *table = (TensorTable){.kind = kind, .config = *config};
    for (int i = 0; i < parts[EMBEDDING].count; i++) table->before += present(&parts[EMBEDDING].rows[i], kind, config);
    for (int i = 0; i < parts[BLOCK].count; i++) table->per_block += present(&parts[BLOCK].rows[i], kind, config);
    int64_t capacity = checked_add(checked_mul(L, table->per_block), parts[EMBEDDING].count + parts[FINAL].count);
    if (capacity >= 0 && (uint64_t)capacity < SIZE_MAX / sizeof(Tensor)) {
        table->tensors = calloc((size_t)capacity, sizeof(Tensor));
    }
    if (!table->tensors)
        return fail(PYGPT_ERROR_MEMORY, "no memory for a table of the tensors of %" PRId64 " layers", L);

    int status = PYGPT_OK;
    for (int part = 0; part < PARTS; part++) {
        for (int64_t layer = part == BLOCK ? 0 : -1; layer < (part == BLOCK ? L : 0); layer++) {
            for (int i = 0; i < parts[part].count && status == PYGPT_OK; i++) {
                const Row *row = &parts[part].rows[i];
                if (!present(row, kind, config)) continue;
                status = add(table, row, layer, copies(row, kind, recompute, L), config, batch, length);
            }
        }
    }
    if (status != PYGPT_OK) {
        table_free(table);
    } else if (parts == WEIGHTS) {
        move_muon_last(table);
    }
    return status;
}

void table_free(TensorTable *table) {
    free(table->tensors);
    memset(table, 0, sizeof *table);
}

int64_t size_of_layers(int64_t layers, int64_t of_two, int64_t of_three) {
    return of_three < of_two ? -1 : checked_add(of_two, checked_mul(layers - 2, of_three - of_two));
}

static int64_t find_size(int without_muon, int kind, const GPT2Config *config, int recompute, int64_t batch,
                         int64_t length) {
    int64_t sizes[2], layers = config->n_layer;
    for (int i = 0; i < 2; i++) {
        TensorTable table;
        GPT2Config few = *config;
        few.n_layer = min64(layers, 2 + i);
        if (table_create(&table, kind, &few, recompute, batch, length) != PYGPT_OK) return -1;
        sizes[i] = without_muon ? table.without_muon : table.size;
        table_free(&table);
    }
    int64_t size = layers > 2 ? size_of_layers(layers, sizes[0], sizes[1]) : sizes[0];
    return checked_mul(size, sizeof(double)) < 0 ? -1 : size;
}

int64_t table_size(int kind, const GPT2Config *config, int recompute, int64_t batch, int64_t length) {
    return find_size(0, kind, config, recompute, batch, length);
}

int64_t size_without_muon(const GPT2Config *config) {
    return find_size(1, PYGPT_PARAMETER, config, PYGPT_KEEP_ALL, 0, 0);
}

int64_t muon_scratch(const GPT2Config *config) {
    TensorTable table;
    GPT2Config one = *config;
    one.n_layer = 1;
    if (table_create(&table, PYGPT_PARAMETER, &one, PYGPT_KEEP_ALL, 0, 0) != PYGPT_OK) return -1;
    int64_t most = 0;
    for (int64_t i = 0; i < table.count; i++) {
        const Tensor *t = &table.tensors[i];
        if (!t->muon) continue;
        int64_t size = t->size / t->muon, shorter = min64(t->shape[0], t->shape[1] / t->muon);
        most = max64(most, 2 * (size + shorter * shorter));   // in range, as the bytes of the tensor are
    }
    table_free(&table);
    return most;
}

/* Points from a part's struct, whose pointers are NULL, to the tensors that are present; they begin at number first. */
static void point(void *pointers, const Part *part, const TensorTable *table, int64_t first, float *buffer) {
    for (int i = 0; i < part->count; i++) {
        const Row *row = &part->rows[i];
        if (!present(row, table->kind, &table->config)) continue;
        float **pointer = (float **)((char *)pointers + row->field);
        *pointer = buffer + table->tensors[first++].offset;
    }
}

static int64_t first_of_block(const TensorTable *table, int64_t layer) {
    return table->before + layer * table->per_block;
}

EmbeddingWeights embedding_weights(const TensorTable *table, float *buffer) {
    EmbeddingWeights weights = {0};
    point(&weights, &WEIGHTS[EMBEDDING], table, 0, buffer);
    return weights;
}

BlockWeights block_weights(const TensorTable *table, float *buffer, int64_t layer) {
    BlockWeights weights = {0};
    point(&weights, &WEIGHTS[BLOCK], table, first_of_block(table, layer), buffer);
    return weights;
}

FinalWeights final_weights(const TensorTable *table, float *buffer) {
    FinalWeights weights = {0};
    point(&weights, &WEIGHTS[FINAL], table, first_of_block(table, table->config.n_layer), buffer);
    return weights;
}

float *head_weights(const TensorTable *table, float *buffer) {
    float *head = final_weights(table, buffer).head;
    return head ? head : embedding_weights(table, buffer).wte;
}

EmbeddingActivations embedding_activations(const TensorTable *table, float *buffer) {
    EmbeddingActivations activations = {0};
    point(&activations, &ACTIVATIONS[EMBEDDING], table, 0, buffer);
    return activations;
}

BlockActivations block_activations(const TensorTable *table, float *buffer, int64_t layer) {
    BlockActivations activations = {0};
    point(&activations, &ACTIVATIONS[BLOCK], table, first_of_block(table, layer), buffer);
    return activations;
}

FinalActivations final_activations(const TensorTable *table, float *buffer) {
    FinalActivations activations = {0};
    point(&activations, &ACTIVATIONS[FINAL], table, first_of_block(table, table->config.n_layer), buffer);
    return activations;
}

float *block_input(const TensorTable *table, float *buffer, int64_t layer) {
    if (layer > 0) {
        BlockActivations before = block_activations(table, buffer, layer - 1);
        return is_post_norm(&table->config) ? before.ln_2 : before.resid_post;
    }
    EmbeddingActivations embedding = embedding_activations(table, buffer);
    return embedding.drop ? embedding.drop : embedding.embd;
}

float *head_input(const TensorTable *table, float *buffer) {
    float *ln_f = final_activations(table, buffer).ln_f;
    return ln_f ? ln_f : block_input(table, buffer, table->config.n_layer);
}
