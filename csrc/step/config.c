#include "config.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "json.h"
#include "refuse.h"

static const char NAME[] = "config.json";
enum { LARGEST = 1 << 24 };   // bytes

/* Settings that change the mathematics, with the only value that is implemented. */
static const struct {
    const char *key, *value;
} FIXED[] = {
    {"model_type", "\"gpt2\""},       {"tie_word_embeddings", "true"},
    {"scale_attn_weights", "true"},   {"scale_attn_by_inverse_layer_idx", "false"},
    {"add_cross_attention", "false"}, {"is_encoder_decoder", "false"},
};

/* Two names of the tanh GELU. */
static const char *const ACTIVATION_FUNCTIONS[] = {"\"gelu_new\"", "\"gelu_pytorch_tanh\""};

static const struct {
    const char *key;
    size_t field;
} SIZES[] = {
    {"vocab_size", offsetof(GPT2Config, vocab_size)}, {"n_positions", offsetof(GPT2Config, n_positions)},
    {"n_embd", offsetof(GPT2Config, n_embd)},         {"n_layer", offsetof(GPT2Config, n_layer)},
    {"n_head", offsetof(GPT2Config, n_head)},
};

static const struct {
    const char *key;
    size_t field;
    float absent;
    float below;
} NUMBERS[] = {
    {"layer_norm_epsilon", offsetof(GPT2Config, layer_norm_epsilon), 1e-5f, INFINITY},
    {"initializer_range", offsetof(GPT2Config, initializer_range), 0.02f, INFINITY},
    {"embd_pdrop", offsetof(GPT2Config, embd_pdrop), 0.0f, 1.0f},
    {"attn_pdrop", offsetof(GPT2Config, attn_pdrop), 0.0f, 1.0f},
    {"resid_pdrop", offsetof(GPT2Config, resid_pdrop), 0.0f, 1.0f},
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* `path: key is value, expected ...`, with a long value cut off */
static int unexpected(const File *file, const char *key, JsonValue value, const char *expected) {
    int shown = value.size <= 60 ? (int)value.size : 57;
    return refuse("%s: %s is %.*s%s, expected %s", file->path, key, shown, value.text, value.size <= 60 ? "" : "...",
                  expected);
}

static int size_of(int64_t *size, const File *file, const char *key, JsonValue value) {
    if (json_integer(value, size) && *size >= 1 && *size <= INT32_MAX) return 0;
    return unexpected(file, key, value, "an integer from 1 to 2147483647");
}

static int interpret(GPT2Config *config, const File *file, JsonValue object) {
    JsonValue value;
    for (size_t i = 0; i < COUNT(FIXED); i++) {
        if (json_member(object, FIXED[i].key, &value) && !json_is(value, FIXED[i].value)) {
            return unexpected(file, FIXED[i].key, value, FIXED[i].value);
        }
    }
    if (json_member(object, "activation_function", &value) && !json_is(value, ACTIVATION_FUNCTIONS[0]) &&
        !json_is(value, ACTIVATION_FUNCTIONS[1])) {
        return unexpected(file, "activation_function", value, "\"gelu_new\" or \"gelu_pytorch_tanh\"");
    }
    for (size_t i = 0; i < COUNT(SIZES); i++) {
        int64_t *size = (int64_t *)((char *)config + SIZES[i].field);
        int found = json_member(object, SIZES[i].key, &value);
        if (!found && size == &config->n_positions) found = json_member(object, "n_ctx", &value);   // its older name
        if (!found) return refuse("%s: %s is missing", file->path, SIZES[i].key);
        int status = size_of(size, file, SIZES[i].key, value);
        if (status) return status;
    }
    config->n_inner = 4 * config->n_embd;
    if (json_member(object, "n_inner", &value) && !json_is(value, "null")) {
        int status = size_of(&config->n_inner, file, "n_inner", value);
        if (status) return status;
    }
    for (size_t i = 0; i < COUNT(NUMBERS); i++) {
        double number = NUMBERS[i].absent;
        if (json_member(object, NUMBERS[i].key, &value) && !(json_number(value, &number) && number >= 0)) {
            return unexpected(file, NUMBERS[i].key, value, "a number of at least 0");
        }
        float single = (float)number;
        if (!(single < NUMBERS[i].below)) {
            return unexpected(file, NUMBERS[i].key, value,
                              isinf(NUMBERS[i].below) ? "a number within float32" : "a number below 1");
        }
        if (NUMBERS[i].field == offsetof(GPT2Config, layer_norm_epsilon) && single == 0.0f) {
            return unexpected(file, NUMBERS[i].key, value, "a number above 0 in float32");
        }
        *(float *)((char *)config + NUMBERS[i].field) = single;
    }
    return 0;
}

static int read_text(File *file, char *text, GPT2Config *config) {
    int status = file_read(file, text, 0, file->size);
    if (status) return status;
    JsonValue object;
    size_t place;
    const char *wrong = json_parse(&object, text, (size_t)file->size, &place);
    if (wrong) return refuse("%s: is not JSON: %s at byte %zu", file->path, wrong, place);
    if (!json_is_object(object)) return refuse("%s: holds no JSON object", file->path);
    return interpret(config, file, object);
}

int config_read(GPT2Config *config, const char *folder) {
    File file;
    int status = file_open(&file, folder, NAME);
    if (status) return status;
    *config = (GPT2Config){0};
    char *text = file.size <= LARGEST ? malloc((size_t)file.size + 1) : NULL;
    if (file.size > LARGEST) {
        status = refuse("%s: is longer than %d bytes", file.path, LARGEST);
    } else if (!text) {
        status = refuse("%s: no memory for %lld bytes", file.path, (long long)file.size);
    } else {
        status = read_text(&file, text, config);
    }
    free(text);
    file_close(&file);
    return status;
}
