/* What is wrong is refused with a sentence, takes no memory with it, and leaves the model as usable as before. */
#include "check.h"

static const GPT2Config GOOD = {
    .vocab_size = 17,
    .n_positions = 8,
    .n_embd = 8,
    .n_layer = 2,
    .n_head = 2,
    .n_inner = 32,
    .layer_norm_epsilon = 1e-5f,
    .initializer_range = 0.02f,
};
static const GPT2Options OPTIONS = {.dtype = PYGPT_FLOAT32};

static void refused(GPT2Config config, GPT2Options options) {
    GPT2 *model = (GPT2 *)&config;
    FAILS(gpt2_create(&model, &config, &options));
    CHECK(model == NULL);
    CHECK(*pygpt_last_error() == '\0');   // reading the sentence cleared it
    gpt2_free(model);
}

static void test_configurations(void) {
    static const int64_t sizes[] = {0, -1, INT64_MIN, (int64_t)INT32_MAX + 1, INT64_MAX};
    for (int i = 0; i < 5; i++) {
        for (int field = 0; field < 6; field++) {
            GPT2Config config = GOOD;
            (&config.vocab_size)[field] = sizes[i];
            refused(config, OPTIONS);
            CHECK(gpt2_memory(&config, &OPTIONS, 1, 1, 1) == -1);
        }
    }
    const float probabilities[] = {-0.1f, 1.0f, NAN, INFINITY};
    for (int i = 0; i < 4; i++) {
        for (int field = 0; field < 3; field++) {
            GPT2Config config = GOOD;
            (&config.embd_pdrop)[field] = probabilities[i];
            refused(config, OPTIONS);
        }
    }
    GPT2Config config = GOOD;
    config.n_head = 3;   // does not divide n_embd
    refused(config, OPTIONS);
    refused(GOOD, (GPT2Options){.kernels = 2});
    refused(GOOD, (GPT2Options){.dtype = -1});
    refused(GOOD, (GPT2Options){.recompute = 3});
}

/* Sizes that overflow 64 bits, and sizes that only the machine cannot hold. */
static void test_too_large(void) {
    GPT2Config overflowing = GOOD, large = GOOD;
    overflowing.vocab_size = overflowing.n_embd = INT32_MAX - 1;
    refused(overflowing, OPTIONS);
    CHECK(gpt2_memory(&overflowing, &OPTIONS, 1, 1, 0) == -1);
    CHECK(gpt2_memory(&GOOD, &OPTIONS, INT64_MAX, 2, 1) == -1);
    CHECK(gpt2_memory(&GOOD, &OPTIONS, (int64_t)1 << 58, 2, 1) == -1);
    CHECK(gpt2_memory(&GOOD, &OPTIONS, 1, 1, PYGPT_ADAMW) > gpt2_memory(&GOOD, &OPTIONS, 1, 1, PYGPT_MOMENTUM));
    CHECK(gpt2_memory(&GOOD, &OPTIONS, 1, 1, PYGPT_MOMENTUM) > gpt2_memory(&GOOD, &OPTIONS, 1, 1, PYGPT_SGD));
    CHECK(gpt2_memory(&GOOD, &OPTIONS, 1, 1, PYGPT_SGD) > gpt2_memory(&GOOD, &OPTIONS, 1, 1, PYGPT_INFERENCE));
    CHECK(gpt2_memory(&GOOD, &OPTIONS, 1, 1, -1) == -1);
    CHECK(gpt2_memory(&GOOD, &OPTIONS, 1, 1, PYGPT_MUON + 1) == -1);
    CHECK(gpt2_memory(&GOOD, &OPTIONS, 1, 1, 0) > 0);
    large.vocab_size = INT32_MAX;
    large.n_embd = 1 << 21;
    refused(large, OPTIONS);
}

static void test_batches(void) {
    int32_t tokens[32] = {0}, targets[32] = {0};
    float loss = 0.0f, again = 0.0f, logits[32 * 17];
    double norm;
    GPT2 *model;
    SUCCEEDS(gpt2_create(&model, &GOOD, &OPTIONS));
    if (!model) return;
    SUCCEEDS(gpt2_init_weights(model, 1));

    FAILS(gpt2_backward(model, 1.0f));   // nothing to go back from
    FAILS(gpt2_logits(model, logits, 0, 1));
    FAILS(gpt2_attention(model, logits, 0, 2 * 2 * 4 * 4));
    FAILS(gpt2_logits(model, logits, 0, 0));
    SUCCEEDS(gpt2_forward(model, &loss, tokens, targets, 2, 4, NULL));

    FAILS(gpt2_forward(model, &again, tokens, targets, 0, 4, NULL));
    FAILS(gpt2_forward(model, &again, tokens, targets, 2, 0, NULL));
    FAILS(gpt2_forward(model, &again, tokens, targets, -1, 4, NULL));
    FAILS(gpt2_forward(model, &again, tokens, targets, 2, 9, NULL));   // beyond n_positions
    FAILS(gpt2_forward(model, &again, tokens, targets, (int64_t)1 << 62, 4, NULL));
    const int32_t bad[] = {-1, 17, INT32_MIN, INT32_MAX};
    for (int i = 0; i < 4; i++) {
        tokens[7] = bad[i];
        FAILS(gpt2_forward_backward(model, &again, tokens, targets, 2, 4, NULL, 1.0f));
        tokens[7] = 0;
        targets[7] = bad[i];
        if (bad[i] > 0) FAILS(gpt2_forward_backward(model, &again, tokens, targets, 2, 4, NULL, 1.0f));
        targets[7] = 0;
    }
    CHECK(again == 0.0f);
    FAILS(gpt2_forward_backward(model, &again, tokens, NULL, 2, 4, NULL, 1.0f));
    FAILS(gpt2_adamw_step(model, 1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0));   // steps count from 1
    FAILS(gpt2_muon_step(model, 1e-2f, 0.9f, 1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0));

    SUCCEEDS(gpt2_zero_grad(model));
    SUCCEEDS(gpt2_forward(model, &again, tokens, targets, 2, 4, NULL));
    SUCCEEDS(gpt2_backward(model, 1.0f));
    SUCCEEDS(gpt2_clip_grad_norm(model, &norm, 0.0f));
    CHECK(again == loss && norm > 0.0);
    FAILS(gpt2_logits(model, logits, 0, 9));
    FAILS(gpt2_logits(model, logits, -1, 1));
    FAILS(gpt2_logits(model, logits, 8, 1));
    FAILS(gpt2_logits(model, logits, 1, INT64_MAX));
    FAILS(gpt2_attention(model, logits, 2, 2 * 2 * 4 * 4));
    FAILS(gpt2_attention(model, logits, -1, 2 * 2 * 4 * 4));
    FAILS(gpt2_attention(model, logits, 0, 2 * 2 * 4 * 3));   // of another pass
    gpt2_free(model);
}

static void test_tensors(void) {
    GPT2 *model;
    Tensor tensor;
    float *data, value;
    int64_t size, count;
    SUCCEEDS(gpt2_create(&model, &GOOD, &OPTIONS));
    if (!model) return;
    count = gpt2_num_tensors(model, PYGPT_PARAMETER);
    CHECK(gpt2_num_tensors(model, 6) == -1);
    FAILS(gpt2_tensor(model, &tensor, PYGPT_PARAMETER, -1));
    FAILS(gpt2_tensor(model, &tensor, PYGPT_PARAMETER, count));
    FAILS(gpt2_tensor(model, &tensor, PYGPT_ACTIVATION, 0));   // before a forward pass
    FAILS(gpt2_read(model, &value, PYGPT_PARAMETER, count, 1));
    FAILS(gpt2_read(model, &value, PYGPT_PARAMETER, 0, 1));   // it has more
    FAILS(gpt2_write(model, &value, PYGPT_PARAMETER, 0, 1));
    FAILS(gpt2_write(model, &value, PYGPT_GRADIENT, INT64_MAX, 1));
    FAILS(gpt2_buffer(model, &data, &size, PYGPT_ACTIVATION));
    FAILS(gpt2_buffer(model, &data, &size, PYGPT_ACTIVATION_GRADIENT));
    FAILS(gpt2_buffer(model, &data, &size, 6));
    FAILS(gpt2_buffer(model, &data, &size, -1));
    gpt2_free(model);
    gpt2_free(NULL);
    pygpt_release(NULL);
}

int main(void) {
    test_configurations();
    test_too_large();
    test_batches();
    test_tensors();
    return failures != 0;
}
