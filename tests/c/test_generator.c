/* Generators: near the model that they were made of, and all the ways to feed them, which must give the same bits. */
#include "check.h"

enum { V = 71, POSITIONS = 44, SEQUENCES = 3, MOST = SEQUENCES * POSITIONS };

static const GPT2Config SMALL = {
    .vocab_size = V,
    .n_positions = POSITIONS,
    .n_embd = 42,   // neither whole groups, nor whole vectors in a head
    .n_layer = 2,
    .n_head = 3,
    .n_inner = 100,
    .layer_norm_epsilon = 1e-5f,
    .initializer_range = 0.02f,
};

static const char *const NAMES[] = {"float32", "bfloat16", "int8", "int4"};
/* How far logits may be from the model's, of the logits' own size: rounding of the sums, and of weights and inputs. */
static const double BOUNDS[] = {1e-5, 0.02, 0.02, 0.3};

static int32_t tokens[MOST];

static GPT2 *create(int kernels) {
    GPT2 *model;
    GPT2Options options = {PYGPT_FLOAT32, kernels, PYGPT_KEEP_ALL};
    float *parameters;
    int64_t size;
    SUCCEEDS(gpt2_create(&model, &SMALL, &options));
    if (!model) exit(1);
    SUCCEEDS(gpt2_init_weights(model, 1));
    SUCCEEDS(gpt2_buffer(model, &parameters, &size, PYGPT_PARAMETER));
    for (int64_t i = 0; i < size; i++) parameters[i] += 0.1f * (float)(random_word() / 2147483648.0 - 1.0);
    pygpt_release(parameters);
    return model;
}

/* Logits after each token of a sequence, (count,V), as the model computes them. */
static float *of_model(GPT2 *model, int64_t count) {
    float *logits = floats(count * V);
    SUCCEEDS(gpt2_forward(model, NULL, tokens, NULL, 1, count, NULL));
    SUCCEEDS(gpt2_logits(model, logits, 0, count));
    return logits;
}

/* The first `count` tokens in pieces of 1 ... longest, and the logits of each. */
static void feed_pieces(Generator *g, float *logits, int64_t count, int64_t longest) {
    for (int64_t at = 0, n; at < count; at += n) {
        n = 1 + random_below(longest);
        if (n > count - at) n = count - at;
        SUCCEEDS(generator_feed(g, logits + at * V, tokens + at, &n, 1));
    }
}

static void test_ways_to_feed(GPT2 *model, int weights, int cache) {
    const int64_t count = POSITIONS, zero = 0, keep = 17;
    float *expected = of_model(model, count), *found = floats(count * V), *last = floats(V);
    double error = 0.0;
    Generator *g;
    SUCCEEDS(generator_create(&g, model, weights, cache, 1, POSITIONS));
    SUCCEEDS(generator_feed(g, found, tokens, &count, 1));
    for (int64_t i = 0; i < count * V; i++) error += pow((double)found[i] - expected[i], 2.0);
    CHECK_NEAR(NAMES[weights], sqrt(error), 0.0,
               (BOUNDS[weights] + (cache == PYGPT_BFLOAT16 ? 0.01 : 0.0)) * norm_of(expected, count * V));
    memcpy(expected, found, (size_t)(count * V) * sizeof *found);

    for (int threads = 1; threads <= 3; threads += 2) {
        pygpt_set_threads(threads);
        for (int64_t longest = 1; longest <= 20; longest += 9) {
            SUCCEEDS(generator_rewind(g, &zero));
            memset(found, 0, (size_t)(count * V) * sizeof *found);
            feed_pieces(g, found, count, longest);
            CHECK(same_bits(found, expected, count * V));
        }
    }
    const int64_t rest = count - keep;   // after a rewind, and of the last token alone
    SUCCEEDS(generator_rewind(g, &keep));
    SUCCEEDS(generator_feed(g, last, tokens + keep, &rest, 0));
    CHECK(same_bits(last, expected + (count - 1) * V, V));
    generator_free(g);
    free(expected);
    free(found);
    free(last);
}

/* Sequences of different lengths, of which one gets nothing now and then, beside the same ones alone. */
static void test_batch(GPT2 *model, int weights) {
    const int64_t steps[][SEQUENCES] = {{5, 1, 20}, {0, 3, 1}, {1, 1, 1}, {0, 0, 0}, {2, 0, 0}, {30, 30, 20}};
    int64_t lengths[SEQUENCES] = {0}, zero = 0;
    Generator *together, *alone;
    SUCCEEDS(generator_create(&together, model, weights, PYGPT_FLOAT32, SEQUENCES, POSITIONS));
    SUCCEEDS(generator_create(&alone, model, weights, PYGPT_FLOAT32, 1, POSITIONS));
    for (size_t step = 0; step < sizeof steps / sizeof *steps; step++) {
        int32_t fed[MOST];
        int64_t count = 0, sequences = 0;
        for (int64_t b = 0; b < SEQUENCES; b++) {
            for (int64_t i = 0; i < steps[step][b]; i++) fed[count++] = tokens[b * POSITIONS + lengths[b] + i];
            sequences += steps[step][b] > 0;
            lengths[b] += steps[step][b];
        }
        float *found = floats(sequences * V), *expected = floats(V), *logits = found;
        SUCCEEDS(generator_feed(together, found, fed, steps[step], 0));
        for (int64_t b = 0; b < SEQUENCES; b++) {
            if (steps[step][b] == 0) continue;
            SUCCEEDS(generator_rewind(alone, &zero));
            SUCCEEDS(generator_feed(alone, expected, tokens + b * POSITIONS, &lengths[b], 0));
            CHECK(same_bits(logits, expected, V));
            logits += V;
        }
        free(found);
        free(expected);
    }
    generator_free(together);
    generator_free(alone);
}

/* What cannot be done leaves everything as it was. */
static void test_errors(GPT2 *model) {
    const int64_t two[] = {2, 0}, three[] = {3, 0}, less[] = {0, -1}, more[] = {2, 1}, most[] = {POSITIONS + 1, 0};
    const int32_t wrong[] = {1, V}, negative[] = {-1, 0};
    float *found = floats(V), *expected = floats(V);
    Generator *g, *none;
    FAILS(generator_create(&none, model, 4, PYGPT_FLOAT32, 1, 1));
    FAILS(generator_create(&none, model, -1, PYGPT_FLOAT32, 1, 1));
    FAILS(generator_create(&none, model, PYGPT_FLOAT32, PYGPT_INT8, 1, 1));
    FAILS(generator_create(&none, model, PYGPT_FLOAT32, PYGPT_FLOAT32, 0, 1));
    FAILS(generator_create(&none, model, PYGPT_FLOAT32, PYGPT_FLOAT32, 1, 0));
    FAILS(generator_create(&none, model, PYGPT_FLOAT32, PYGPT_FLOAT32, 1, POSITIONS + 1));
    FAILS(generator_create(&none, model, PYGPT_FLOAT32, PYGPT_FLOAT32, INT64_MAX / 2, POSITIONS));
    FAILS(generator_create(&none, model, PYGPT_FLOAT32, PYGPT_FLOAT32, INT64_MAX / POSITIONS, POSITIONS));
    CHECK(none == NULL);
    generator_free(NULL);

    SUCCEEDS(generator_create(&g, model, PYGPT_FLOAT32, PYGPT_FLOAT32, 2, POSITIONS));
    SUCCEEDS(generator_feed(g, expected, tokens, two, 0));
    FAILS(generator_feed(g, found, wrong, two, 0));
    FAILS(generator_feed(g, found, negative, two, 0));
    FAILS(generator_feed(g, found, tokens, less, 0));
    FAILS(generator_feed(g, found, tokens, most, 0));
    FAILS(generator_rewind(g, three));
    FAILS(generator_rewind(g, less));
    FAILS(generator_rewind(g, more));
    const int64_t one[] = {1, 0};
    SUCCEEDS(generator_rewind(g, one));
    SUCCEEDS(generator_feed(g, found, tokens + 1, one, 0));
    CHECK(same_bits(found, expected, V));
    generator_free(g);
    free(found);
    free(expected);
}

static void test_memory(void) {
    GPT2Config huge = SMALL;
    CHECK(generator_memory(&SMALL, PYGPT_INT4, PYGPT_BFLOAT16, 1, POSITIONS) > 0);
    CHECK(generator_memory(&SMALL, PYGPT_INT4, PYGPT_BFLOAT16, 1, POSITIONS + 1) == -1);
    CHECK(generator_memory(&SMALL, PYGPT_INT4, PYGPT_BFLOAT16, INT64_MAX / POSITIONS, POSITIONS) == -1);
    huge.n_layer = INT32_MAX;
    CHECK(generator_memory(&huge, PYGPT_FLOAT32, PYGPT_FLOAT32, 1, 1) > (int64_t)INT32_MAX * 4 * 12 * 42 * 42 / 4);
    huge.n_embd = huge.n_inner = INT32_MAX / 42 * 42;
    CHECK(generator_memory(&huge, PYGPT_FLOAT32, PYGPT_FLOAT32, 1, 1) == -1);
}

/* A snapshot: what becomes of the model afterwards changes nothing. */
static void test_snapshot(GPT2 *model) {
    const int64_t count = 3, zero = 0;
    float *before = floats(V), *after = floats(V);
    Generator *g;
    SUCCEEDS(generator_create(&g, model, PYGPT_FLOAT32, PYGPT_FLOAT32, 1, POSITIONS));
    SUCCEEDS(generator_feed(g, before, tokens, &count, 0));
    SUCCEEDS(gpt2_init_weights(model, 2));
    gpt2_free(model);
    SUCCEEDS(generator_rewind(g, &zero));
    SUCCEEDS(generator_feed(g, after, tokens, &count, 0));
    CHECK(same_bits(before, after, V));
    generator_free(g);
    free(before);
    free(after);
}

/* Weights that lie on a grid already stay what they are with its scales, whatever the largest of a group is. */
static void test_given_scales(GPT2 *model, int weights) {
    enum { C = 42, F = 100, GROUPS = (F + 31) / 32 };
    const int64_t count = 20, zero = 0;
    int64_t buffer_size, number = -1;
    Tensor tensor;
    float *parameters, *scales = floats(GROUPS * C), *found = floats(V), *expected = floats(V);
    for (int64_t i = 0; i < gpt2_num_tensors(model, PYGPT_PARAMETER); i++) {
        SUCCEEDS(gpt2_tensor(model, &tensor, PYGPT_PARAMETER, i));
        if (strcmp(tensor.name, "h.1.mlp.c_proj.weight") == 0) number = tensor.offset;
    }
    CHECK(number >= 0);
    SUCCEEDS(gpt2_buffer(model, &parameters, &buffer_size, PYGPT_PARAMETER));
    float *w = parameters + number;
    for (int64_t i = 0; i < GROUPS * C; i++) scales[i] = (float)(1 + random_below(100)) / 1024.0f;
    for (int64_t k = 0; k < F; k++) {
        for (int64_t n = 0; n < C; n++) w[k * C + n] = scales[k / 32 * C + n] * (float)(random_below(9) - 4);
    }
    Generator *g, *exact;
    SUCCEEDS(generator_create(&g, model, weights, PYGPT_FLOAT32, 1, POSITIONS));
    SUCCEEDS(generator_feed(g, found, tokens, &count, 0));
    SUCCEEDS(generator_write(g, 1, 3, w, scales, F * C));
    for (int64_t i = 0; i < GROUPS * C; i++) scales[i] *= 0.5f;   // twice the integers: only int8 has as many
    SUCCEEDS(generator_create(&exact, model, weights, PYGPT_FLOAT32, 1, POSITIONS));
    SUCCEEDS(generator_write(exact, 1, 3, w, scales, F * C));
    SUCCEEDS(generator_rewind(g, &zero));
    SUCCEEDS(generator_feed(g, expected, tokens, &count, 0));
    CHECK(!same_bits(found, expected, V));
    SUCCEEDS(generator_feed(exact, found, tokens, &count, 0));
    CHECK(same_bits(found, expected, V) == (weights == PYGPT_INT8));
    FAILS(generator_write(g, 1, 4, w, scales, F * C));
    FAILS(generator_write(g, 2, 3, w, scales, F * C));
    FAILS(generator_write(g, -1, 3, w, scales, F * C));
    FAILS(generator_write(g, 1, 3, w, scales, F * C - 1));
    generator_free(g);
    generator_free(exact);
    SUCCEEDS(generator_create(&g, model, PYGPT_BFLOAT16, PYGPT_FLOAT32, 1, POSITIONS));
    FAILS(generator_write(g, 1, 3, w, scales, F * C));
    generator_free(g);
    pygpt_release(parameters);
    free(scales);
    free(found);
    free(expected);
}

int main(void) {
    if (!is_supported()) return SKIPPED;
    for (int64_t i = 0; i < MOST; i++) tokens[i] = (int32_t)random_below(V);
    for (int kernels = PYGPT_PLAIN; kernels <= PYGPT_FAST; kernels++) {
        GPT2 *model = create(kernels);
        for (int weights = PYGPT_FLOAT32; weights <= PYGPT_INT4; weights++) {
            for (int cache = PYGPT_FLOAT32; cache <= PYGPT_BFLOAT16; cache++) test_ways_to_feed(model, weights, cache);
            test_batch(model, weights);
        }
        test_errors(model);
        for (int weights = PYGPT_INT8; weights <= PYGPT_INT4; weights++) test_given_scales(model, weights);
        test_snapshot(model);
    }
    test_memory();
    return failures > 0;
}
