/* The readers of pygpt-step: good files give their contents, bad ones a sentence, and thousands of mutated ones neither a
 * crash nor (with AddressSanitizer's limit on allocations) more memory than the file can justify. */
#include "check.h"

#include <unistd.h>

#include "step/model_file.h"
#include "step/refuse.h"
#include "step/token_file.h"

static const char MODEL[] = "model.bin", TOKENS[] = "tokens.bin";
enum { MUTATIONS = 3000, LARGEST = 1 << 16 };

typedef struct {
    size_t size;
    char bytes[LARGEST];
} Bytes;

/* n_positions, vocab_size, n_layer, n_head, n_embd, padded vocab_size, n_inner */
static const int32_t SIZES[] = {4, 5, 2, 1, 2, 7, 3};
enum { VOCAB_SIZE = 5, NUMBERS = 7 * 2 + 4 * 2 + 2 * 49 + 4, VALUES = NUMBERS - 2 * 2 };

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

/* Number i of the file is i; bfloat16 holds these small numbers, too. */
static void make_model(Bytes *file, int32_t version) {
    int32_t header[256] = {20240326, version};
    memcpy(header + 2, SIZES, sizeof SIZES);
    file->size = 0;
    append(file, header, sizeof header);
    for (int i = 0; i < NUMBERS; i++) {
        float value = (float)i;
        uint16_t half;
        memcpy(&half, (char *)&value + 2, 2);
        append(file, version == 3 ? (void *)&value : &half, version == 3 ? 4 : 2);
    }
}

static void make_tokens(Bytes *file) {
    int32_t header[256] = {20240520, 1, 23};
    file->size = 0;
    append(file, header, sizeof header);
    for (int i = 0; i < 23; i++) {
        uint16_t token = (uint16_t)(i % VOCAB_SIZE);
        append(file, &token, 2);
    }
}

/* 0 if the file opens and loads, which fills the parameters, in the order of the table. */
static int load(float *parameters) {
    ModelFile file;
    GPT2Options options = {0};
    GPT2 *model = NULL;
    int status = model_file_open(&file, MODEL);
    if (status) return status;
    if (gpt2_create(&model, &file.config, &options)) status = refuse("%s", pygpt_last_error());
    if (!status) status = model_file_load(&file, model);
    for (int64_t i = 0; !status && parameters && i < gpt2_num_tensors(model, PYGPT_PARAMETER); i++) {
        Tensor tensor;
        SUCCEEDS(gpt2_tensor(model, &tensor, PYGPT_PARAMETER, i));
        SUCCEEDS(gpt2_read(model, parameters, PYGPT_PARAMETER, i, tensor.size));
        parameters += tensor.size;
    }
    gpt2_free(model);
    model_file_close(&file);
    return status;
}

static void refuses(const char *sentence) {
    CHECK(load(NULL) != 0);
    if (!strstr(refusal(), sentence)) {
        failures++;
        fprintf(stderr, "refused with \"%s\", expected \"%s\"\n", refusal(), sentence);
    }
}

/* ---- the model file ---- */

/* Where each tensor of block l begins in the file, and its shape there. */
static const struct {
    int first, rows, columns;
} BLOCK[] = {{22, 2, 1}, {26, 2, 1}, {30, 6, 2}, {54, 6, 1}, {66, 2, 2},  {74, 2, 1},
             {78, 2, 1}, {82, 2, 1}, {86, 3, 2}, {98, 3, 1}, {104, 2, 3}, {116, 2, 1}};

static void test_good_files(void) {
    static Bytes file;
    float parameters[VALUES], expected[VALUES];
    int n = 0;
    for (int i = 0; i < 10; i++) expected[n++] = (float)i;   // wte; two rows of padding
    for (int i = 14; i < 22; i++) expected[n++] = (float)i;   // wpe
    for (int l = 0; l < 2; l++) {
        for (size_t k = 0; k < sizeof BLOCK / sizeof *BLOCK; k++) {
            int rows = BLOCK[k].rows, columns = BLOCK[k].columns, first = BLOCK[k].first + l * rows * columns;
            for (int c = 0; c < columns; c++) {
                for (int r = 0; r < rows; r++) expected[n++] = (float)(first + r * columns + c);
            }
        }
    }
    for (int i = NUMBERS - 4; i < NUMBERS; i++) expected[n++] = (float)i;   // ln_f
    CHECK(n == VALUES);
    for (int32_t version = 3; version <= 5; version += 2) {
        make_model(&file, version);
        write_file(MODEL, file.bytes, file.size);
        CHECK(load(parameters) == 0);
        CHECK(same_bits(parameters, expected, VALUES));
    }
}

static void test_configuration(void) {
    static Bytes file;
    ModelFile model;
    int32_t *header = (int32_t *)file.bytes;
    const float epsilon = 0.25f;
    make_model(&file, 3);
    header[8] = 0;
    append(&file, file.bytes, 4 * 2 * 5 * 5);   // n_inner 8, not 3: 5 more, with 5 numbers each, in 2 blocks
    write_file(MODEL, file.bytes, file.size);
    CHECK(model_file_open(&model, MODEL) == 0);
    CHECK(model.config.n_inner == 8 && model.config.layer_norm_epsilon == 1e-5f);
    model_file_close(&model);
    header[8] = 8;
    memcpy(&header[9], &epsilon, sizeof epsilon);
    write_file(MODEL, file.bytes, file.size);
    CHECK(model_file_open(&model, MODEL) == 0);
    CHECK(model.config.n_inner == 8 && model.config.layer_norm_epsilon == epsilon);
    model_file_close(&model);
}

static void test_lies(void) {
    static const struct {
        int field;
        int32_t value;
        const char *sentence;
    } cases[] = {
        {0, 20240520, "begins with 20240520, expected 20240326"},
        {1, 4, "version 4, expected 3 or 5"},
        {1, 5, "but a model of the sizes in its header takes"},
        {2, 0, "n_positions is 0, expected at least 1"},
        {2, 5, "has 1520 bytes, but a model of the sizes in its header takes 1528"},
        {3, INT32_MIN, "vocab_size is -2147483648"},
        {3, 8, "the padded vocab_size is 7, expected at least 8"},
        {4, INT32_MAX, "but a model of the sizes"},
        {4, 1, "but a model of the sizes"},
        {5, 0, "n_head is 0"},
        {5, 3, "multiple of n_head"},
        {6, INT32_MAX, "but a model of the sizes"},
        {7, INT32_MAX, "but a model of the sizes"},
        {7, -7, "the padded vocab_size is -7"},
        {8, 4, "but a model of the sizes"},
        {8, -3, "n_inner is -3, expected at least 1"},
        {9, -1, "layer_norm_epsilon is"},
        {15, 3, "activation_function is 3, expected 0 ... 2"},
        {17, 1, "but a model of the sizes in its header takes"},   // without biases
        {18, 2, "tie_word_embeddings is 2, expected 0 ... 1"},
        {200, 1, "field 200 of the header is 1, expected 0"},
        {255, -1, "field 255 of the header is -1, expected 0"},
    };
    static Bytes file;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        make_model(&file, 3);
        memcpy(file.bytes + 4 * cases[i].field, &cases[i].value, 4);
        write_file(MODEL, file.bytes, file.size);
        refuses(cases[i].sentence);
    }
}

static void test_lengths(void) {
    static Bytes file;
    make_model(&file, 3);
    write_file(MODEL, file.bytes, 0);
    refuses("has 0 bytes, expected a header of 1024");
    write_file(MODEL, file.bytes, 1023);
    refuses("has 1023 bytes");
    write_file(MODEL, file.bytes, file.size - 1);
    refuses("has 1519 bytes, but a model of the sizes in its header takes 1520");
    append(&file, "x", 1);
    write_file(MODEL, file.bytes, file.size);
    refuses("has 1521 bytes");
    remove(MODEL);
    refuses("model.bin: cannot be read");
    ModelFile model;
    CHECK(model_file_open(&model, ".") != 0 && strstr(refusal(), ".: is a folder, expected a file"));
}

/* ---- the token file ---- */

static int read_tokens(int32_t *batch, int64_t B, int64_t T, int64_t number) {
    TokenFile tokens;
    int status = token_file_open(&tokens, TOKENS);
    if (status) return status;
    status = token_file_batch(&tokens, batch, B, T, number, VOCAB_SIZE);
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
        for (int i = 0; i < 9; i++) CHECK(batch[i] == (number % 2 * 8 + i) % VOCAB_SIZE);
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

static void mutate(Bytes *file, int fields) {
    for (int64_t times = random_below(3) + 1; times > 0 && file->size >= 1024; times--) {
        char *field = file->bytes + 4 * random_below(random_below(8) ? fields : 256);
        int32_t value, change = (int32_t)random_below(5) - 2;
        size_t at = (size_t)random_below((int64_t)file->size);
        memcpy(&value, field, 4);
        switch (random_below(7)) {
        case 0: value ^= (int32_t)(1u << random_below(32)); break;
        case 1: value = (int32_t)random_word(); break;
        case 2: value = (int32_t)(value + (uint32_t)change); break;
        case 3: value = (int32_t)random_below(9); break;
        case 4: value = INT32_MAX - (int32_t)random_below(3); break;
        case 5: file->size = at; break;
        default: append(file, file->bytes, at);
        }
        memcpy(field, &value, 4);
    }
}

static void test_mutations(void) {
    static Bytes models[2], tokens, mutated;
    int32_t batch[64];
    int accepted[2] = {0};
    make_model(&models[0], 3);
    make_model(&models[1], 5);
    make_tokens(&tokens);
    for (int i = 0; i < 2 * MUTATIONS; i++) {
        mutated = models[i % 2];
        mutate(&mutated, 16);
        write_file(MODEL, mutated.bytes, mutated.size);
        accepted[0] += load(NULL) == 0;
    }
    for (int i = 0; i < MUTATIONS; i++) {
        mutated = tokens;
        mutate(&mutated, 3);
        write_file(TOKENS, mutated.bytes, mutated.size);
        accepted[1] += read_tokens(batch, 2, 4, i) == 0;
    }
    CHECK(accepted[0] > 0 && accepted[0] < MUTATIONS);   // some are harmless, most are felt
    CHECK(accepted[1] < MUTATIONS / 2);
}

int main(void) {
    char folder[] = "step_files_XXXXXX";
    if (!mkdtemp(folder) || chdir(folder)) return 1;
    test_good_files();
    test_configuration();
    test_lies();
    test_lengths();
    test_tokens();
    test_mutations();
    remove(MODEL);
    remove(TOKENS);
    if (chdir("..") || rmdir(folder)) return 1;
    return failures != 0;
}
