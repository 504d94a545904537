#include "checkpoint.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../divides_work.h"
#include "config.h"
#include "refuse.h"

static const char WEIGHTS[] = "model.safetensors", HEAD[] = "lm_head.weight", EMBEDDING[] = "wte.weight";
enum { CHUNK = DIVIDES_WORK(1 << 14, 100) };   // bytes

static int exists(const char *folder, const char *name) {
    File file;
    if (file_open(&file, folder, name)) return 0;
    file_close(&file);
    return 1;
}

static int is_folder(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

/* In double, which may round an absurd number but cannot overflow. */
static double count_parameters(const GPT2Config *c) {
    double V = (double)c->vocab_size, P = (double)c->n_positions, C = (double)c->n_embd, F = (double)c->n_inner;
    double attention = 3 * C * C + 3 * C + C * C + C, feed_forward = C * F + F + F * C + C;
    return V * C + P * C + (double)c->n_layer * (4 * C + attention + feed_forward) + 2 * C;
}

/* A small file with the configuration of a large model must not allocate one. */
static int check_sizes(const Checkpoint *checkpoint) {
    const TensorFile *weights = &checkpoint->weights;
    const GPT2Config *config = &checkpoint->config;
    double values = 0;
    for (int64_t i = 0; i < weights->count; i++) values += (double)weights->tensors[i].size;
    if (config->n_layer > weights->count) {
        return refuse("%s: holds %lld tensors, too few for the %lld layers of config.json", weights->file.path,
                      (long long)weights->count, (long long)config->n_layer);
    }
    if (values < count_parameters(config)) {
        return refuse("%s: holds %.0f numbers, too few for the %.0f parameters of config.json", weights->file.path,
                      values, count_parameters(config));
    }
    return 0;
}

int checkpoint_open(Checkpoint *checkpoint, const char *folder) {
    if (!is_folder(folder)) return refuse("%s: is not a folder, expected one with config.json and %s", folder, WEIGHTS);
    if (exists(folder, ".saved/config.json") || exists(folder, ".saved/model.safetensors")) {
        return refuse("%s: saving into it was interrupted; opening it once in Python finishes that", folder);
    }
    int status = config_read(&checkpoint->config, folder);
    if (status) return status;
    if (!exists(folder, WEIGHTS) && exists(folder, "model.safetensors.index.json")) {
        return refuse("%s: holds its weights in several files, expected one %s; saving it again in Python makes one",
                      folder, WEIGHTS);
    }
    status = tensor_file_open(&checkpoint->weights, folder, WEIGHTS);
    if (status) return status;
    status = check_sizes(checkpoint);
    if (status) checkpoint_close(checkpoint);
    return status;
}

void checkpoint_close(Checkpoint *checkpoint) {
    tensor_file_close(&checkpoint->weights);
}

/* ---- loading ---- */

/* "(768, 3072)"; a single size has no comma, which Python would print */
static void print_shape(char *text, size_t size, const int64_t *shape, int32_t ndim) {
    size_t used = (size_t)snprintf(text, size, "(");
    for (int32_t i = 0; i < ndim; i++) {
        used += (size_t)snprintf(text + used, size - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    }
    snprintf(text + used, size - used, ")");
}

static int check_tensor(const TensorFile *weights, const StoredTensor *stored, const Tensor *expected) {
    char found[96], wanted[96];
    if (!stored) return refuse("%s: tensor %s is missing", weights->file.path, expected->name);
    if (stored->ndim != expected->ndim ||
        memcmp(stored->shape, expected->shape, (size_t)stored->ndim * sizeof *stored->shape) != 0) {
        print_shape(found, sizeof found, stored->shape, stored->ndim);
        print_shape(wanted, sizeof wanted, expected->shape, expected->ndim);
        return refuse("%s: tensor %s has shape %s, expected %s", weights->file.path, expected->name, found, wanted);
    }
    if (!tensor_is_readable(stored)) {
        return refuse("%s: tensor %s has dtype %s, expected F32, F16 or BF16", weights->file.path, expected->name,
                      stored->dtype);
    }
    return 0;
}

/* h.N.attn.bias and h.N.attn.masked_bias are constants, which old files hold. */
static int is_mask_buffer(const char *name) {
    if (strncmp(name, "h.", 2) != 0) return 0;
    name += 2;
    size_t digits = strspn(name, "0123456789");
    return digits && (strcmp(name + digits, ".attn.bias") == 0 || strcmp(name + digits, ".attn.masked_bias") == 0);
}

/* The head is wte.weight again: a file may repeat it, but not hold another. */
static int check_head(TensorFile *weights, const StoredTensor *head) {
    const StoredTensor *wte = tensor_file_find(weights, EMBEDDING);
    int equal = strcmp(head->dtype, wte->dtype) == 0 && head->ndim == wte->ndim &&
                memcmp(head->shape, wte->shape, sizeof head->shape) == 0;
    char a[CHUNK], b[CHUNK];
    for (int64_t first = 0; equal && first < head->bytes; first += CHUNK) {
        int64_t count = head->bytes - first < CHUNK ? head->bytes - first : CHUNK;
        int status = file_read(&weights->file, a, head->offset + first, count);
        if (status == 0) status = file_read(&weights->file, b, wte->offset + first, count);
        if (status) return status;
        equal = memcmp(a, b, (size_t)count) == 0;
    }
    if (equal) return 0;
    return refuse("%s: tensor %s differs from %s; a head of its own is not implemented", weights->file.path, HEAD,
                  EMBEDDING);
}

/* Every parameter is there, in its shape; found[i] tells which of the file's tensors they are. */
static int check_parameters(TensorFile *weights, GPT2 *model, char *found) {
    Tensor expected;
    for (int64_t i = 0; i < gpt2_num_tensors(model, PYGPT_PARAMETER); i++) {
        if (gpt2_tensor(model, &expected, PYGPT_PARAMETER, i)) return refuse("%s", pygpt_last_error());
        const StoredTensor *stored = tensor_file_find(weights, expected.name);
        int status = check_tensor(weights, stored, &expected);
        if (status) return status;
        found[stored - weights->tensors] = 1;
    }
    for (int64_t i = 0; i < weights->count; i++) {
        const StoredTensor *tensor = &weights->tensors[i];
        if (found[i] || is_mask_buffer(tensor->name)) continue;
        if (strcmp(tensor->name, HEAD) != 0) {
            return refuse("%s: tensor %s is not a parameter of the GPT-2 in config.json", weights->file.path,
                          tensor->name);
        }
        int status = check_head(weights, tensor);
        if (status) return status;
    }
    return 0;
}

int checkpoint_load(Checkpoint *checkpoint, GPT2 *model) {
    TensorFile *weights = &checkpoint->weights;
    Tensor tensor;
    float *parameters;
    int64_t size;
    char *found = calloc((size_t)weights->count + 1, 1);
    if (!found) return refuse("no memory for a list of %lld tensors", (long long)weights->count);
    int status = check_parameters(weights, model, found);
    free(found);
    if (status) return status;
    if (gpt2_buffer(model, &parameters, &size, PYGPT_PARAMETER)) return refuse("%s", pygpt_last_error());
    for (int64_t i = 0; i < gpt2_num_tensors(model, PYGPT_PARAMETER) && status == 0; i++) {
        if (gpt2_tensor(model, &tensor, PYGPT_PARAMETER, i)) {
            status = refuse("%s", pygpt_last_error());
        } else {
            status = tensor_file_read(weights, tensor_file_find(weights, tensor.name), parameters + tensor.offset);
        }
    }
    pygpt_release(parameters);
    return status;
}
