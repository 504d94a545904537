#include "model_file.h"

#include <math.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#include "../divides_work.h"
#include "refuse.h"

enum { HEADER = 256, MAGIC = 20240326, FLOAT32 = 3, BFLOAT16 = 5, CHUNK = DIVIDES_WORK(1 << 12, 10) };

/* Fields of the header. Dropout and the tokens that begin and end a text, between the last two, are of no use here. */
enum { SIZES = 2, PADDED_VOCAB_SIZE = 7, N_INNER = 8, LAYER_NORM_EPSILON = 9, VARIATIONS = 15 };

static const struct {
    const char *name;
    size_t field;
} SIZE[] = {
    {"n_positions", offsetof(GPT2Config, n_positions)}, {"vocab_size", offsetof(GPT2Config, vocab_size)},
    {"n_layer", offsetof(GPT2Config, n_layer)},         {"n_head", offsetof(GPT2Config, n_head)},
    {"n_embd", offsetof(GPT2Config, n_embd)},
};

/* From field VARIATIONS on. */
static const struct {
    const char *name;
    size_t field;
    int32_t last;
} VARIATION[] = {
    {"activation_function", offsetof(GPT2Config, activation_function), PYGPT_RELU},
    {"position_embedding", offsetof(GPT2Config, position_embedding), PYGPT_NO_POSITIONS},
    {"bias", offsetof(GPT2Config, bias), PYGPT_NO_BIAS},
    {"tie_word_embeddings", offsetof(GPT2Config, tie_word_embeddings), PYGPT_UNTIED},
    {"causal", offsetof(GPT2Config, causal), PYGPT_BIDIRECTIONAL},
    {"scale_attn_weights", offsetof(GPT2Config, scale_attn_weights), PYGPT_UNSCALED},
    {"scale_attn_by_inverse_layer_idx", offsetof(GPT2Config, scale_attn_by_inverse_layer_idx), PYGPT_INVERSE_LAYER},
    {"norm_position", offsetof(GPT2Config, norm_position), PYGPT_POST_NORM},
};

enum { VARIATION_COUNT = sizeof VARIATION / sizeof *VARIATION };

static int read_header(ModelFile *f, const int32_t *header) {
    const char *path = f->file.path;
    GPT2Config *config = &f->config;
    if (header[0] != MAGIC) {
        return refuse("%s: begins with %d, expected %d: it is not a model file of llm.c", path, header[0], MAGIC);
    }
    if (header[1] != FLOAT32 && header[1] != BFLOAT16) {
        return refuse("%s: is a model file of version %d, expected %d or %d", path, header[1], FLOAT32, BFLOAT16);
    }
    f->bytes_each = header[1] == FLOAT32 ? 4 : 2;
    for (int i = 0; i < PADDED_VOCAB_SIZE - SIZES; i++) {
        int32_t size = header[SIZES + i];
        if (size < 1) return refuse("%s: %s is %d, expected at least 1", path, SIZE[i].name, size);
        *(int64_t *)((char *)config + SIZE[i].field) = size;
    }
    f->padded_vocab_size = header[PADDED_VOCAB_SIZE];
    if (f->padded_vocab_size < config->vocab_size) {
        return refuse("%s: the padded vocab_size is %d, expected at least %lld, the vocab_size", path,
                      header[PADDED_VOCAB_SIZE], (long long)config->vocab_size);
    }
    config->n_inner = header[N_INNER] ? header[N_INNER] : 4 * config->n_embd;
    if (config->n_inner < 1) return refuse("%s: n_inner is %d, expected at least 1", path, header[N_INNER]);
    config->layer_norm_epsilon = 1e-5f;
    if (header[LAYER_NORM_EPSILON]) memcpy(&config->layer_norm_epsilon, &header[LAYER_NORM_EPSILON], sizeof(float));
    if (!(config->layer_norm_epsilon > 0 && config->layer_norm_epsilon < INFINITY)) {
        return refuse("%s: layer_norm_epsilon is %g, expected a number above 0", path, config->layer_norm_epsilon);
    }
    for (int i = 0; i < VARIATION_COUNT; i++) {   // the size of the file depends on them
        int32_t value = header[VARIATIONS + i];
        if (value < 0 || value > VARIATION[i].last) {
            return refuse("%s: %s is %d, expected 0 ... %d", path, VARIATION[i].name, value, VARIATION[i].last);
        }
        *(int32_t *)((char *)config + VARIATION[i].field) = value;
    }
    for (int i = VARIATIONS + VARIATION_COUNT; i < HEADER; i++) {
        if (header[i]) return refuse("%s: field %d of the header is %d, expected 0", path, i, header[i]);
    }
    return 0;
}

/* In double, which is exact up to the length of any file, and cannot overflow beyond. */
static double bytes_needed(const ModelFile *f) {
    const GPT2Config *c = &f->config;
    double C = (double)c->n_embd, F = (double)c->n_inner, V = (double)f->padded_vocab_size, rows = V;
    if (c->position_embedding == PYGPT_LEARNED) rows += (double)c->n_positions;
    if (c->tie_word_embeddings == PYGPT_UNTIED) rows += V;
    double biases = c->bias == PYGPT_BIAS, norm = C + biases * C;
    double attention = 3 * C * C + C * C + biases * 4 * C, feed_forward = C * F + F * C + biases * (F + C);
    double count = rows * C + (double)c->n_layer * (2 * norm + attention + feed_forward);
    if (c->norm_position == PYGPT_PRE_NORM) count += norm;
    return (double)sizeof(int32_t[HEADER]) + (double)f->bytes_each * count;
}

static int check_file(ModelFile *f) {
    int32_t header[HEADER];
    if (f->file.size < (int64_t)sizeof header) {
        return refuse("%s: has %lld bytes, expected a header of %zu", f->file.path, (long long)f->file.size,
                      sizeof header);
    }
    int status = file_read(&f->file, header, 0, sizeof header);
    if (!status) status = read_header(f, header);
    if (!status && bytes_needed(f) != (double)f->file.size) {
        status = refuse("%s: has %lld bytes, but a model of the sizes in its header takes %.0f", f->file.path,
                        (long long)f->file.size, bytes_needed(f));
    }
    return status;
}

int model_file_open(ModelFile *f, const char *path) {
    struct stat found;
    *f = (ModelFile){0};
    if (stat(path, &found) == 0 && S_ISDIR(found.st_mode)) {
        return refuse("%s: is a folder, expected a file: python scripts/export_weights.py %s model.bin makes one", path,
                      path);
    }
    int status = file_open(&f->file, path);
    if (!status) status = check_file(f);
    if (status) model_file_close(f);
    return status;
}

void model_file_close(ModelFile *f) {
    file_close(&f->file);
    *f = (ModelFile){0};
}

/* ---- loading ---- */

/* count: at most CHUNK */
static int read_values(ModelFile *f, float *values, int64_t offset, int64_t count) {
    uint16_t halves[CHUNK];   // bfloat16 is the upper half of a float
    void *to = f->bytes_each == 4 ? (void *)values : halves;
    int status = file_read(&f->file, to, offset, count * f->bytes_each);
    for (int64_t i = 0; i < count && !status && to == halves; i++) {
        uint32_t bits = (uint32_t)halves[i] << 16;
        memcpy(&values[i], &bits, sizeof bits);
    }
    return status;
}

/* The (OC,IC) values from this byte of the file on; what is stored is their transpose. OC is 1 where nothing is to turn. */
static int read_transposed(ModelFile *f, float *w, int64_t offset, int64_t OC, int64_t IC) {   // (IC,OC)
    float chunk[CHUNK];
    for (int64_t first = 0; first < OC * IC; first += CHUNK) {
        int64_t count = OC * IC - first < CHUNK ? OC * IC - first : CHUNK;
        int status = read_values(f, chunk, offset + first * f->bytes_each, count);
        if (status) return status;
        for (int64_t i = 0; i < count; i++) w[(first + i) % IC * OC + (first + i) / IC] = chunk[i];
    }
    return 0;
}

/* In the file, the tensors of the blocks come as each kind of tensor for all blocks; in the table, block after block. Number in
 * the file -> index in the table. before, of_block: tensors before the blocks, and of each. */
static int64_t index_in_table(int64_t number, int64_t before, int64_t of_block, int64_t L) {
    if (number < before || number >= before + of_block * L) return number;
    return before + (number - before) % L * of_block + (number - before) / L;
}

/* Tensors whose names begin so. */
static int64_t count_named(GPT2 *model, const char *start) {
    int64_t count = 0, tensors = gpt2_num_tensors(model, PYGPT_PARAMETER);
    Tensor tensor;
    for (int64_t i = 0; i < tensors; i++) {
        count += !gpt2_tensor(model, &tensor, PYGPT_PARAMETER, i) && !strncmp(tensor.name, start, strlen(start));
    }
    return count;
}

int model_file_load(ModelFile *f, GPT2 *model) {
    float *parameters;
    int64_t size, offset = sizeof(int32_t[HEADER]), tensors = gpt2_num_tensors(model, PYGPT_PARAMETER);
    int64_t L = f->config.n_layer, before = count_named(model, "w"), of_block = count_named(model, "h.0.");
    if (gpt2_buffer(model, &parameters, &size, PYGPT_PARAMETER)) return refuse("%s", pygpt_last_error());
    int status = 0;
    for (int64_t number = 0; number < tensors && !status; number++) {
        Tensor tensor;
        if (gpt2_tensor(model, &tensor, PYGPT_PARAMETER, index_in_table(number, before, of_block, L))) {
            status = refuse("%s", pygpt_last_error());
            break;
        }
        int64_t OC = tensor.name[0] == 'h' && tensor.ndim == 2 ? tensor.shape[1] : 1;   // of a linear layer
        status = read_transposed(f, parameters + tensor.offset, offset, OC, tensor.size / OC);
        int padded = !strcmp(tensor.name, "wte.weight") || !strcmp(tensor.name, "lm_head.weight");
        int64_t padding = padded ? (f->padded_vocab_size - f->config.vocab_size) * f->config.n_embd : 0;
        offset += (tensor.size + padding) * f->bytes_each;
    }
    pygpt_release(parameters);
    return status;
}
