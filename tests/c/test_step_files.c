/* The readers of pygpt-step: good files give their contents, bad ones a sentence, and thousands of mutated ones neither a
 * crash nor (with AddressSanitizer's limit on allocations) more memory than the file can justify. */
#include "check.h"

#include <sys/stat.h>

#include "step/checkpoint.h"
#include "step/json.h"
#include "step/refuse.h"
#include "step/token_file.h"

static const char FOLDER[] = "step_files", CONFIG[] = "step_files/config.json";
static const char WEIGHTS[] = "step_files/model.safetensors", TOKENS[] = "step_files/tokens.bin";
enum { MUTATIONS = 3000, LARGEST = 1 << 16 };

typedef struct {
    size_t size;
    char bytes[LARGEST];
} Bytes;

static const GPT2Config SIZES = {
    .vocab_size = 5,
    .n_positions = 4,
    .n_embd = 2,
    .n_layer = 1,
    .n_head = 1,
    .n_inner = 3,
};

static const char CONFIG_TEXT[] =
    "{\"model_type\": \"gpt2\", \"vocab_size\": 5, \"n_positions\": 4, \"n_embd\": 2,\n"
    " \"n_layer\": 1, \"n_head\": 1, \"n_inner\": 3, \"layer_norm_epsilon\": 1e-05,\n"
    " \"activation_function\": \"gelu_new\", \"task_specific_params\": {\"a\": [1, {}, []]},\n"
    " \"tie_word_embeddings\": true, \"resid_pdrop\": 0.1}\n";

static void write_file(const char *path, const void *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, size, file) != size || fclose(file) != 0) {
        fprintf(stderr, "%s: cannot be written\n", path);
        exit(1);
    }
}

static void append(Bytes *to, const void *bytes, size_t size) {
    if (size > LARGEST - to->size) abort();
    memcpy(to->bytes + to->size, bytes, size);
    to->size += size;
}

/* The weights of a model in which number i of all the parameters is i, and whatever else `extra` describes. */
static void make_weights(Bytes *file, const char *prefix, const char *extra, const Bytes *extra_data) {
    GPT2 *model;
    Tensor tensor;
    GPT2Options options = {0};
    char header[4096];
    size_t used = (size_t)snprintf(header, sizeof header, "{\"__metadata__\":{\"format\":\"pt\"}");
    long long offset = 0;
    SUCCEEDS(gpt2_create(&model, &SIZES, &options));
    for (int64_t i = 0; i < gpt2_num_tensors(model, PYGPT_PARAMETER); i++) {
        SUCCEEDS(gpt2_tensor(model, &tensor, PYGPT_PARAMETER, i));
        used += (size_t)snprintf(header + used, sizeof header - used, ",\"%s%s\":{\"dtype\":\"F32\",\"shape\":[%lld",
                                 prefix, tensor.name, (long long)tensor.shape[0]);
        if (tensor.ndim == 2)
            used += (size_t)snprintf(header + used, sizeof header - used, ",%lld", (long long)tensor.shape[1]);
        used += (size_t)snprintf(header + used, sizeof header - used, "],\"data_offsets\":[%lld,%lld]}", offset,
                                 offset + 4 * (long long)tensor.size);
        offset += 4 * tensor.size;
    }
    gpt2_free(model);
    used += (size_t)snprintf(header + used, sizeof header - used, "%s}", extra);
    unsigned char length[8] = {(unsigned char)used, (unsigned char)(used >> 8)};
    file->size = 0;
    append(file, length, 8);
    append(file, header, used);
    for (int i = 0; i < offset / 4; i++) {
        float value = (float)i;
        append(file, &value, 4);
    }
    append(file, extra_data->bytes, extra_data->size);
}

static void make_tokens(Bytes *file) {
    int32_t header[256] = {20240520, 1, 23};
    file->size = 0;
    append(file, header, sizeof header);
    for (int i = 0; i < 23; i++) {
        uint16_t token = (uint16_t)(i % SIZES.vocab_size);
        append(file, &token, 2);
    }
}

/* 0 if the model folder opens and loads, which fills its parameters. */
static int load(float *parameters) {
    Checkpoint checkpoint;
    GPT2Options options = {0};
    GPT2 *model = NULL;
    int status = checkpoint_open(&checkpoint, FOLDER);
    if (status) return status;
    if (gpt2_create(&model, &checkpoint.config, &options)) status = refuse("%s", pygpt_last_error());
    if (!status) status = checkpoint_load(&checkpoint, model);
    if (!status && parameters) {
        for (int64_t i = 0; i < gpt2_num_tensors(model, PYGPT_PARAMETER); i++) {
            Tensor tensor;
            SUCCEEDS(gpt2_tensor(model, &tensor, PYGPT_PARAMETER, i));
            SUCCEEDS(gpt2_read(model, parameters, PYGPT_PARAMETER, i, tensor.size));
            parameters += tensor.size;
        }
    }
    gpt2_free(model);
    checkpoint_close(&checkpoint);
    return status;
}

static void refuses(const char *sentence) {
    CHECK(load(NULL) != 0);
    if (!strstr(refusal(), sentence)) {
        failures++;
        fprintf(stderr, "refused with \"%s\", expected \"%s\"\n", refusal(), sentence);
    }
}

/* ---- JSON ---- */

static int is_json(const char *text) {
    JsonValue value;
    size_t place;
    return json_parse(&value, text, strlen(text), &place) == NULL;
}

static void test_json(void) {
    static const char *const good[] = {
        "0", "-1.5e+3", "\"\"", " [ ] ", "{}", "[1,[2,{\"a\":null}]]", "\"\\u00e4\\n\"", "true"};
    static const char *const bad[] = {"",     " ",       "01",   "1.",       "1e",      "-",         "+1",
                                      "\"",   "\"\\x\"", "[1,]", "[1 2]",    "{\"a\"}", "{a:1}",     "{,}",
                                      "nul",  "1 2",     "[",    "{\"a\":1", "\"\n\"",  "\"\\u12\"", "]",
                                      "\"\\", ",",       "NaN",  "{1:2}",    "[}",      "0x1"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) CHECK(is_json(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(!is_json(bad[i]));

    static const char zero[] = "\"\\\0\"";   // a backslash and a 0 in a string
    JsonValue unread;
    size_t at;
    CHECK(json_parse(&unread, zero, sizeof zero - 1, &at) && at == 2);

    char number[200], deep[2000], string[8];
    memset(number, '1', sizeof number);
    number[sizeof number - 1] = '\0';
    CHECK(!is_json(number));
    memset(deep, '[', sizeof deep);
    deep[sizeof deep - 1] = '\0';
    CHECK(!is_json(deep));

    const char text[] =
        "{\"a\": [1, -2, 2.5, \"]\\\"x\"], \"b\": 9223372036854775807, \"c\": 9223372036854775808, \"a\\u0062\": 3}";
    JsonValue object, value, rest;
    size_t place;
    int64_t integer;
    double real;
    CHECK(json_parse(&object, text, strlen(text), &place) == NULL);
    CHECK(json_member(object, "b", &value) && json_integer(value, &integer) && integer == INT64_MAX);
    CHECK(json_member(object, "c", &value) && !json_integer(value, &integer));
    CHECK(json_member(object, "ab", &value) && json_integer(value, &integer) && integer == 3);
    CHECK(!json_member(object, "x", &value));
    CHECK(json_member(object, "a", &value) && json_is_array(value));
    rest = json_inside(value);
    CHECK(json_next(&rest, NULL, &value) && json_integer(value, &integer) && integer == 1);
    CHECK(json_next(&rest, NULL, &value) && json_integer(value, &integer) && integer == -2);
    CHECK(json_next(&rest, NULL, &value) && !json_integer(value, &integer) && json_number(value, &real) && real == 2.5);
    CHECK(json_next(&rest, NULL, &value) && json_string(value, string, sizeof string) && strcmp(string, "]\"x") == 0);
    CHECK(!json_string(value, string, 3));
    CHECK(!json_next(&rest, NULL, &value));
}

/* ---- the model folder ---- */

static void test_good_folders(void) {
    static const char *const prefixes[] = {"", "transformer."};
    static Bytes file, nothing, mask = {4, {0}};
    float parameters[200];
    write_file(CONFIG, CONFIG_TEXT, strlen(CONFIG_TEXT));
    for (int i = 0; i < 2; i++) {
        make_weights(&file, prefixes[i], "", &nothing);
        write_file(WEIGHTS, file.bytes, file.size);
        CHECK(load(parameters) == 0);
        for (int j = 0; j < 71; j++) CHECK(parameters[j] == (float)j);
    }
    make_weights(&file, "", ",\"h.0.attn.masked_bias\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[284,288]}",
                 &mask);
    write_file(WEIGHTS, file.bytes, file.size);
    CHECK(load(NULL) == 0);
}

static void test_head(void) {
    static Bytes file, head;
    const char entry[] = ",\"lm_head.weight\":{\"dtype\":\"F32\",\"shape\":[5,2],\"data_offsets\":[284,324]}";
    for (int i = 0; i < 10; i++) {
        float value = (float)i;
        append(&head, &value, 4);
    }
    write_file(CONFIG, CONFIG_TEXT, strlen(CONFIG_TEXT));
    make_weights(&file, "transformer.", entry, &head);
    write_file(WEIGHTS, file.bytes, file.size);
    CHECK(load(NULL) == 0);
    head.bytes[39] ^= 1;
    make_weights(&file, "transformer.", entry, &head);
    write_file(WEIGHTS, file.bytes, file.size);
    refuses("lm_head.weight differs from wte.weight");
}

/* Every value of binary16, and of bfloat16, against its definition. */
static void test_half_precision(void) {
    static Bytes file;
    static float values[65536];
    char header[96];
    for (int is_half = 0; is_half <= 1; is_half++) {
        FILE *out = fopen(WEIGHTS, "wb");
        uint64_t length = (uint64_t)snprintf(header, sizeof header,
                                             "{\"a\":{\"dtype\":\"%s\",\"shape\":[65536],\"data_offsets\":[0,131072]}}",
                                             is_half ? "F16" : "BF16");
        file.size = 0;
        append(&file, &length, 8);
        append(&file, header, length);
        if (!out || fwrite(file.bytes, 1, file.size, out) != file.size) exit(1);
        for (int i = 0; i < 65536; i++) {
            uint16_t bits = (uint16_t)i;
            if (fwrite(&bits, 2, 1, out) != 1) exit(1);
        }
        fclose(out);
        TensorFile tensors;
        CHECK(tensor_file_open(&tensors, FOLDER, "model.safetensors") == 0);
        CHECK(tensor_file_read(&tensors, tensor_file_find(&tensors, "a"), values) == 0);
        tensor_file_close(&tensors);
        int exponent_bits = is_half ? 5 : 8, mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
        for (int i = 0; i < 65536; i++) {
            int exponent = i >> mantissa_bits & ((1 << exponent_bits) - 1), mantissa = i & ((1 << mantissa_bits) - 1);
            double size = ldexp(mantissa, 1 - bias - mantissa_bits);
            if (exponent) size = ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
            if (exponent == (1 << exponent_bits) - 1) size = mantissa ? NAN : INFINITY;
            double expected = i >> 15 ? -size : size;
            CHECK(isnan(expected) ? isnan(values[i]) : values[i] == expected && !signbit(values[i]) == !(i >> 15));
        }
    }
}

/* Each text of the good files, replaced by one that lies, and part of the sentence that says so. */
static void test_lies(void) {
    static const struct {
        int in_config;
        const char *good, *lie, *sentence;
    } cases[] = {
        {1, "\"vocab_size\": 5", "\"vocab_size\": 4", "tensor wte.weight has shape (5, 2), expected (4, 2)"},
        {1, "\"vocab_size\": 5", "\"vocab_size\": 6", "holds 71 numbers, too few for the 73 parameters of config.json"},
        {1, "\"vocab_size\": 5", "\"vocab_size\": 2147483647", "too few for the"},
        {1, "\"vocab_size\": 5", "\"vocab_size\": 5.0", "vocab_size is 5.0, expected an integer from 1 to 2147483647"},
        {1, "\"vocab_size\": 5", "\"vocab_size\": \"5\"", "vocab_size is \"5\", expected"},
        {1, "\"vocab_size\": 5", "\"size\": 5", "vocab_size is missing"},
        {1, "\"n_layer\": 1", "\"n_layer\": 2", "too few for the"},
        {1, "\"n_layer\": 1", "\"n_layer\": 2147483647", "too few for the 2147483647 layers"},
        {1, "\"n_layer\": 1", "\"n_layer\": 0", "n_layer is 0"},
        {1, "\"n_head\": 1", "\"n_head\": 3", "multiple of n_head"},
        {1, "\"n_embd\": 2", "\"n_embd\": -2", "n_embd is -2"},
        {1, "\"n_inner\": 3", "\"n_inner\": null", "too few for the"},
        {1, "gelu_new", "relu", "activation_function is \"relu\", expected \"gelu_new\" or \"gelu_pytorch_tanh\""},
        {1, "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false",
         "tie_word_embeddings is false, expected true"},
        {1, "\"gpt2\"", "\"llama\"", "model_type is \"llama\", expected \"gpt2\""},
        {1, "1e-05", "0", "layer_norm_epsilon is 0"},
        {1, "1e-05", "1e-99", "layer_norm_epsilon is 1e-99"},
        {1, "1e-05", "1e99", "layer_norm_epsilon is 1e99"},
        {1, "0.1", "1.5", "resid_pdrop is 1.5, expected a number below 1"},
        {1, "0.1}", "0.1", "config.json: is not JSON: expected ',' or '}' at byte"},
        {1, "{\"model", "[\"model", "is not JSON"},
        {0, "\"F32\"", "\"F64\"", "tensor wte.weight has 10 values of 8 bytes, but 40 bytes"},
        {0, "\"F32\"", "\"I32\"", "tensor wte.weight has dtype \"I32\", expected F32, F16 or BF16"},
        {0, "\"shape\":[5,2]", "\"shape\":[2,5]", "tensor wte.weight has shape (2, 5), expected (5, 2)"},
        {0, "\"shape\":[5,2]", "\"shape\":[1e1]", "the shape of tensor wte.weight"},
        {0, "\"shape\":[5,2]", "\"shape\":[-5]", "the shape of tensor wte.weight"},
        {0, "\"shape\":[5,2]", "\"shape\":{\"\":1}", "tensor wte.weight has no shape"},
        {0, "[0,40]", "[0,44]", "10 values of 4 bytes, but 44 bytes"},
        {0, "[0,40]", "[4,44]",
         "tensor wte.weight begins at byte 4 of the data, expected 0, where the one before it ends"},
        {0, "[0,40]", "[9,4]", "tensor wte.weight lies at bytes 9 ... 4"},
        {0, "[0,40]", "[0]", "tensor wte.weight has no two data_offsets"},
        {0, "[40,72]", "[90,122]", "where the one before it ends"},
        {0, "[40,72]", "[36,68]", "tensor wpe.weight begins at byte 36 of the data, expected 40"},
        {0, "[276,284]", "[999,1007]", "expected a place within"},
        {0, "\"wpe.weight\"", "\"wte.weight\"", "tensor wte.weight is there twice"},
        {0, "\"wpe.weight\"", "\"wxe.weight\"", "tensor wpe.weight is missing"},
        {0, "\"dtype\"", "\"dTypE\"", "tensor wte.weight has no dtype, shape and data_offsets"},
    };
    static Bytes weights, nothing;
    static char changed[LARGEST];
    make_weights(&weights, "", "", &nothing);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *good = cases[i].in_config ? CONFIG_TEXT : weights.bytes + 8;
        size_t size = cases[i].in_config ? strlen(CONFIG_TEXT) : weights.size - 8;
        size_t header = cases[i].in_config
                            ? size
                            : (size_t)(unsigned char)weights.bytes[0] + 256u * (unsigned char)weights.bytes[1];
        size_t at = 0, length = strlen(cases[i].good), new_length = strlen(cases[i].lie);
        while (at + length <= header && memcmp(good + at, cases[i].good, length) != 0) at++;
        CHECK(at + length <= header);
        uint64_t new_header = header - length + new_length;
        size_t start = cases[i].in_config ? 0 : 8;
        memcpy(changed, &new_header, 8);
        memcpy(changed + start, good, at);
        memcpy(changed + start + at, cases[i].lie, new_length);
        memcpy(changed + start + at + new_length, good + at + length, size - at - length);
        write_file(CONFIG, CONFIG_TEXT, strlen(CONFIG_TEXT));
        write_file(WEIGHTS, weights.bytes, weights.size);
        write_file(cases[i].in_config ? CONFIG : WEIGHTS, changed, start + size - length + new_length);
        refuses(cases[i].sentence);
    }
}

static void test_lengths(void) {
    static Bytes file, nothing;
    make_weights(&file, "", "", &nothing);
    write_file(CONFIG, CONFIG_TEXT, strlen(CONFIG_TEXT));
    write_file(WEIGHTS, file.bytes, 0);
    refuses("is truncated");
    write_file(WEIGHTS, file.bytes, 7);
    refuses("is truncated");
    write_file(WEIGHTS, file.bytes, 100);
    refuses("is truncated: 100 bytes, expected a header of");
    write_file(WEIGHTS, file.bytes, file.size - 1);
    refuses("tensor ln_f.bias lies at bytes 276 ... 284 of the data, expected a place within 283 bytes");
    append(&file, "x", 1);
    write_file(WEIGHTS, file.bytes, file.size);
    refuses("the tensors take 284 bytes, but the file has 285 after its header");
    memset(file.bytes, 255, 8);
    write_file(WEIGHTS, file.bytes, file.size);
    refuses("is truncated");
    remove(WEIGHTS);
    refuses("cannot be read");
    remove(CONFIG);
    refuses("config.json: cannot be read");
}

/* ---- the token file ---- */

static int read_tokens(int32_t *batch, int64_t B, int64_t T, int64_t number) {
    TokenFile tokens;
    int status = token_file_open(&tokens, TOKENS);
    if (status) return status;
    status = token_file_batch(&tokens, batch, B, T, number, SIZES.vocab_size);
    token_file_close(&tokens);
    return status;
}

static void test_tokens(void) {
    static Bytes file;
    int32_t batch[64], header[256];
    make_tokens(&file);
    write_file(TOKENS, file.bytes, file.size);
    for (int64_t number = 0; number < 9; number++) {   // 22 / (2 * 4) = 2 batches, then from the start
        CHECK(read_tokens(batch, 2, 4, number) == 0);
        for (int i = 0; i < 9; i++) CHECK(batch[i] == (number % 2 * 8 + i) % SIZES.vocab_size);
    }
    CHECK(read_tokens(batch, 1, 22, 0) == 0);
    CHECK(read_tokens(batch, 1, 23, 0) != 0 && strstr(refusal(), "holds 23 tokens, too few"));
    CHECK(read_tokens(batch, INT64_MAX, 2, 0) != 0);

    const int32_t lies[][3] = {{20240521, 1, 23}, {20240520, 2, 23}, {20240520, 1, 24},       {20240520, 1, 22},
                               {20240520, 1, -1}, {20240520, 1, 0},  {20240520, 1, INT32_MAX}};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        memcpy(header, file.bytes, sizeof header);
        memcpy(header, lies[i], sizeof lies[i]);
        write_file(TOKENS, header, sizeof header);
        CHECK(read_tokens(batch, 2, 4, 0) != 0);
        memcpy(file.bytes, header, sizeof header);
        write_file(TOKENS, file.bytes, file.size);
        CHECK(read_tokens(batch, 2, 4, 0) != 0);
        make_tokens(&file);
    }
    write_file(TOKENS, file.bytes, 1000);
    CHECK(read_tokens(batch, 2, 4, 0) != 0 && strstr(refusal(), "expected a header of 1024"));
    write_file(TOKENS, file.bytes, file.size - 1);
    CHECK(read_tokens(batch, 2, 4, 0) != 0);
    file.bytes[1024 + 2 * 10] = 99;
    write_file(TOKENS, file.bytes, file.size);
    CHECK(read_tokens(batch, 2, 4, 0) == 0);
    CHECK(read_tokens(batch, 2, 4, 1) != 0 && strstr(refusal(), "token 10 is 99, expected 0 ... 4"));
}

/* ---- mutations ---- */

static void mutate(Bytes *file, size_t interesting) {
    static const char *const words[] = {"0",  "-1",  "9223372036854775807", "1e999", "[", "{", "\"", "\\u0000", "]",
                                        "},", "null"};
    for (int64_t times = random_below(4) + 1; times > 0 && file->size; times--) {
        size_t range = random_below(8) ? interesting : file->size;
        size_t at = (size_t)random_below((int64_t)(range < file->size ? range : file->size));
        size_t length = (size_t)random_below(16), left = file->size - at;
        const char *word = words[random_below(11)];
        if (length > left) length = left;
        switch (random_below(7)) {
        case 0: file->bytes[at] ^= (char)(1 << random_below(8)); break;
        case 1: file->bytes[at] = (char)random_word(); break;
        case 2: file->bytes[at] = (char)('0' + random_below(10)); break;
        case 3: file->size = at; break;
        case 4:   // cut out
            memmove(file->bytes + at, file->bytes + at + length, left - length);
            file->size -= length;
            break;
        case 5:   // repeat
            if (file->size + length > LARGEST) break;
            memmove(file->bytes + at + length, file->bytes + at, left);
            file->size += length;
            break;
        default: memcpy(file->bytes + at, word, left < strlen(word) ? left : strlen(word));
        }
    }
}

static void test_mutations(void) {
    static Bytes weights, nothing, config, tokens, mutated;
    int32_t batch[64];
    int accepted[3] = {0};
    make_weights(&weights, "transformer.", "", &nothing);
    make_tokens(&tokens);
    append(&config, CONFIG_TEXT, strlen(CONFIG_TEXT));
    size_t header = 8 + (unsigned char)weights.bytes[0] + 256u * (unsigned char)weights.bytes[1];
    write_file(CONFIG, config.bytes, config.size);
    for (int i = 0; i < MUTATIONS; i++) {
        mutated = weights;
        mutate(&mutated, header);
        write_file(WEIGHTS, mutated.bytes, mutated.size);
        accepted[0] += load(NULL) == 0;
    }
    write_file(WEIGHTS, weights.bytes, weights.size);
    for (int i = 0; i < MUTATIONS; i++) {
        mutated = config;
        mutate(&mutated, config.size);
        write_file(CONFIG, mutated.bytes, mutated.size);
        accepted[1] += load(NULL) == 0;
    }
    for (int i = 0; i < MUTATIONS; i++) {
        mutated = tokens;
        mutate(&mutated, 12);
        write_file(TOKENS, mutated.bytes, mutated.size);
        accepted[2] += read_tokens(batch, 2, 4, i) == 0;
    }
    for (int i = 0; i < 3; i++) CHECK(accepted[i] < MUTATIONS / 2);   // most are felt
}

int main(void) {
    mkdir(FOLDER, 0777);
    test_json();
    test_good_folders();
    test_head();
    test_half_precision();
    test_lies();
    test_lengths();
    test_tokens();
    test_mutations();
    return failures != 0;
}
