/* The whole model: its gradient against finite differences of its loss, and all the ways to compute it that must give the
 * same bits: recomputation, threads, one pass or two, buffers that were larger before. */
#include "check.h"

enum { MOST = 4 * 12 };   // tokens of a batch

static const GPT2Config SMALL = {
    .vocab_size = 65,
    .n_positions = 12,
    .n_embd = 24,
    .n_layer = 3,
    .n_head = 3,
    .n_inner = 40,
    .layer_norm_epsilon = 1e-5f,
    .initializer_range = 0.02f,
};

static int32_t tokens[MOST], targets[MOST];

/* Weights of a size at which every layer matters, and biases that are not zero. */
static GPT2 *create(const GPT2Config *config, const GPT2Options *options) {
    GPT2 *model;
    float *parameters;
    int64_t size;
    SUCCEEDS(gpt2_create(&model, config, options));
    if (!model) exit(1);
    SUCCEEDS(gpt2_init_weights(model, 1));
    SUCCEEDS(gpt2_buffer(model, &parameters, &size, PYGPT_PARAMETER));
    float *noise = floats(size);
    random_state = 7;
    fill_random(noise, size, 0.2f);
    for (int64_t i = 0; i < size; i++) parameters[i] += noise[i];
    free(noise);
    pygpt_release(parameters);
    return model;
}

/* A copy of all gradients. */
static float *gradients_of(GPT2 *model, int64_t *size) {
    float *buffer;
    SUCCEEDS(gpt2_buffer(model, &buffer, size, PYGPT_GRADIENT));
    float *copy = floats(*size);
    memcpy(copy, buffer, (size_t)*size * sizeof *copy);
    pygpt_release(buffer);
    return copy;
}

/* Loss and gradients of one batch, with gradients that start at zero. */
static float *backpropagate(GPT2 *model, float *loss, int64_t B, int64_t T, const Dropout *dropout, int64_t *size) {
    SUCCEEDS(gpt2_zero_grad(model));
    SUCCEEDS(gpt2_forward_backward(model, loss, tokens, targets, B, T, dropout, 1.0f));
    return gradients_of(model, size);
}

/* ---- the gradient is that of the loss ---- */

enum { ROWS = 2, LENGTH = 9 };

static double loss_change(GPT2 *model, float *w, int64_t n, const float *direction, double step,
                          const Dropout *dropout) {
    float *before = floats(n), loss[2];
    memcpy(before, w, (size_t)n * sizeof *w);
    for (int side = 0; side < 2; side++) {
        for (int64_t i = 0; i < n; i++) w[i] = (float)(before[i] + (side ? -step : step) * direction[i]);
        SUCCEEDS(gpt2_forward(model, &loss[side], tokens, targets, ROWS, LENGTH, dropout));
    }
    memcpy(w, before, (size_t)n * sizeof *w);
    free(before);
    return ((double)loss[0] - loss[1]) / (2.0 * step);
}

/* Along the gradient plus something random of its size: an error of any part of it shows. */
static void check_derivative(GPT2 *model, float *w, const float *dw, const Tensor *tensor, const Dropout *dropout) {
    int64_t n = tensor->size;
    float *direction = floats(n);
    double size = norm_of(dw, n);
    fill_random(direction, n, (float)(size / sqrt((double)n)));
    for (int64_t i = 0; i < n; i++) direction[i] += dw[i];
    double expected = dot_of(dw, direction, n);
    /* the loss is rounded to 2e-7: it should change by far more, but not so much that it bends */
    double change = loss_change(model, w, n, direction, 2e-3 / (size * size), dropout);
    CHECK_NEAR(tensor->name, change, expected, 0.01 * size * size);
    free(direction);
}

static void test_derivatives(const GPT2Options *options, const Dropout *dropout) {
    GPT2Config config = SMALL;
    if (dropout) config.embd_pdrop = config.attn_pdrop = config.resid_pdrop = 0.2f;
    GPT2 *model = create(&config, options);
    Tensor tensor;
    float loss, *w;
    int64_t size;
    float *dw = backpropagate(model, &loss, ROWS, LENGTH, dropout, &size);
    SUCCEEDS(gpt2_buffer(model, &w, &size, PYGPT_PARAMETER));
    for (int64_t i = 0; i < gpt2_num_tensors(model, PYGPT_PARAMETER); i++) {
        SUCCEEDS(gpt2_tensor(model, &tensor, PYGPT_PARAMETER, i));
        check_derivative(model, w + tensor.offset, dw + tensor.offset, &tensor, dropout);
        if (strcmp(tensor.name, "wpe.weight") == 0) {
            for (int64_t j = LENGTH * SMALL.n_embd; j < tensor.size; j++) CHECK(dw[tensor.offset + j] == 0.0f);
        }
    }
    pygpt_release(w);
    free(dw);
    gpt2_free(model);
}

/* ---- the same bits ---- */

static void test_one_pass_or_two(const GPT2Options *options, const Dropout *dropout) {
    GPT2Config config = SMALL;
    config.embd_pdrop = config.attn_pdrop = config.resid_pdrop = 0.2f;
    GPT2 *model = create(&config, options);
    float loss, again;
    int64_t size;
    float *once = backpropagate(model, &loss, 3, 7, dropout, &size);
    SUCCEEDS(gpt2_zero_grad(model));
    SUCCEEDS(gpt2_forward(model, &again, tokens, targets, 3, 7, dropout));
    SUCCEEDS(gpt2_backward(model, 1.0f));
    float *twice = gradients_of(model, &size);
    CHECK(loss == again);
    CHECK(same_bits(once, twice, size));

    SUCCEEDS(gpt2_backward(model, 1.0f));   // adds
    float *doubled = gradients_of(model, &size);
    for (int64_t i = 0; i < size; i++) doubled[i] -= twice[i];
    for (int64_t i = 0; i < size; i++) doubled[i] -= once[i];
    CHECK_NEAR("gradients added twice", norm_of(doubled, size), 0.0, 1e-6 * norm_of(once, size));
    free(once);
    free(twice);
    free(doubled);
    gpt2_free(model);
}

static void test_recomputation_and_threads(const GPT2Options *options) {
    GPT2Config config = SMALL;
    Dropout dropout = {.seed = 11, .step = 2};
    config.embd_pdrop = config.attn_pdrop = config.resid_pdrop = 0.1f;
    float first_loss = 0.0f, *first = NULL;
    for (int recompute = PYGPT_KEEP_ALL; recompute <= PYGPT_RECOMPUTE_BLOCK; recompute++) {
        GPT2Options now = *options;
        now.recompute = recompute;
        for (int threads = 1; threads <= 4; threads++) {
            float loss;
            int64_t size;
            pygpt_set_threads(threads);
            GPT2 *model = create(&config, &now);
            float *gradients = backpropagate(model, &loss, 4, 11, &dropout, &size);
            if (first) {
                CHECK(loss == first_loss);
                CHECK(same_bits(gradients, first, size));
                free(gradients);
            } else {
                first = gradients;
                first_loss = loss;
            }
            gpt2_free(model);
        }
    }
    free(first);
}

/* A model that has seen other sizes before gives what a new one gives. */
static void test_sizes_in_any_order(const GPT2Options *options) {
    static const int64_t shapes[][2] = {{1, 1}, {2, 7}, {4, 12}, {1, 5}, {4, 12}, {3, 1}, {1, 12}};
    GPT2 *old = create(&SMALL, options);
    for (int i = 0; i < 7; i++) {
        int64_t B = shapes[i][0], T = shapes[i][1], size;
        float loss, expected_loss;
        GPT2 *new = create(&SMALL, options);
        float *gradients = backpropagate(old, &loss, B, T, NULL, &size);
        float *expected = backpropagate(new, &expected_loss, B, T, NULL, &size);
        CHECK(loss == expected_loss);
        CHECK(same_bits(gradients, expected, size));
        free(gradients);
        free(expected);
        gpt2_free(new);
    }
    gpt2_free(old);
}

/* ---- what else can be asked ---- */

static void test_logits(const GPT2Options *options) {
    enum { B = 2, T = 9, N = B * T };
    int64_t V = SMALL.vocab_size;
    GPT2 *model = create(&SMALL, options);
    float loss, *logits = floats(N * V), *rows = floats(3 * V), *p = floats(B * SMALL.n_head * T * T);
    double sum = 0.0;
    SUCCEEDS(gpt2_forward(model, &loss, tokens, targets, B, T, NULL));
    SUCCEEDS(gpt2_logits(model, logits, 0, N));
    for (int64_t n = 0; n < N; n++) {
        double total = 0.0;
        for (int64_t v = 0; v < V; v++) total += exp(logits[n * V + v]);
        sum += log(total) - logits[n * V + targets[n]];
    }
    CHECK_NEAR("loss of the logits", sum / N, loss, 1e-5 * loss);
    SUCCEEDS(gpt2_logits(model, rows, N - 3, 3));
    for (int64_t i = 0; i < 3 * V; i++) {
        CHECK_NEAR("logits of some rows", rows[i], logits[(N - 3) * V + i],
                   1e-5 * norm_of(logits, N * V) / sqrt(N * V));
    }
    SUCCEEDS(gpt2_attention(model, p, SMALL.n_layer - 1, B * SMALL.n_head * T * T));
    for (int64_t row = 0; row < B * SMALL.n_head * T; row++) {
        double total = 0.0;
        for (int64_t u = 0; u < T; u++) total += p[row * T + u];
        CHECK_NEAR("sum of attention probabilities", total, 1.0, 1e-5);
    }

    /* no bit of a position knows what comes after it */
    float *before = floats(N * V);
    memcpy(before, logits, (size_t)(N * V) * sizeof *logits);
    int32_t kept = tokens[T - 1];
    tokens[T - 1] = (kept + 1) % (int32_t)V;
    SUCCEEDS(gpt2_forward(model, NULL, tokens, NULL, B, T, NULL));
    SUCCEEDS(gpt2_logits(model, logits, 0, N));
    tokens[T - 1] = kept;
    CHECK(same_bits(before, logits, (T - 1) * V));
    CHECK(!same_bits(before + (T - 1) * V, logits + (T - 1) * V, V));
    free(before);
    free(logits);
    free(rows);
    free(p);
    gpt2_free(model);
}

static void test_training(const GPT2Options *options) {
    GPT2 *model;
    float loss, first = 0.0f;
    double norm, clipped;
    SUCCEEDS(gpt2_create(&model, &SMALL, options));
    SUCCEEDS(gpt2_init_weights(model, 3));
    for (int64_t step = 1; step <= 20; step++) {
        SUCCEEDS(gpt2_zero_grad(model));
        SUCCEEDS(gpt2_forward_backward(model, &loss, tokens, targets, 2, 8, NULL, 1.0f));
        if (step == 1) first = loss;
        SUCCEEDS(gpt2_clip_grad_norm(model, &norm, 0.5f));
        SUCCEEDS(gpt2_clip_grad_norm(model, &clipped, 0.0f));
        CHECK_NEAR("clipped norm", clipped, fmin(norm, 0.5), 1e-5);
        SUCCEEDS(gpt2_adamw_step(model, 1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, step));
    }
    CHECK_NEAR("loss of a fresh model", first, log((double)SMALL.vocab_size), 0.02 * first);
    CHECK(loss < 0.5f * first);
    gpt2_free(model);
}

/* Buffers and tensors by name outlive what they came from. */
static void test_tensors(const GPT2Options *options) {
    GPT2 *model = create(&SMALL, options);
    Tensor tensor;
    float loss, *activations, *parameters, values[65 * 24];
    int64_t size;
    SUCCEEDS(gpt2_forward(model, &loss, tokens, targets, 1, 3, NULL));
    SUCCEEDS(gpt2_buffer(model, &activations, &size, PYGPT_ACTIVATION));
    float last = activations[size - 1];
    SUCCEEDS(gpt2_forward(model, &loss, tokens, targets, 4, 12, NULL));   // into a new buffer
    CHECK(activations[size - 1] == last);
    for (int64_t i = 0; i < gpt2_num_tensors(model, PYGPT_ACTIVATION); i++) {
        SUCCEEDS(gpt2_tensor(model, &tensor, PYGPT_ACTIVATION, i));
        int64_t product = 1;
        for (int32_t axis = 0; axis < tensor.ndim; axis++) product *= tensor.shape[axis];
        CHECK(product == tensor.size);
        float *copy = floats(tensor.size);
        SUCCEEDS(gpt2_read(model, copy, PYGPT_ACTIVATION, i, tensor.size));
        for (int64_t j = 0; j < tensor.size; j++) CHECK(isfinite(copy[j]));
        free(copy);
    }
    fill_random(values, 65 * 24, 1.0f);
    SUCCEEDS(gpt2_write(model, values, PYGPT_PARAMETER, 0, 65 * 24));
    SUCCEEDS(gpt2_tensor(model, &tensor, PYGPT_PARAMETER, 0));
    CHECK(strcmp(tensor.name, "wte.weight") == 0 && tensor.weight_decay);
    SUCCEEDS(gpt2_buffer(model, &parameters, &size, PYGPT_PARAMETER));
    gpt2_free(model);
    CHECK(same_bits(parameters + tensor.offset, values, 65 * 24));
    pygpt_release(parameters);
    pygpt_release(activations);
}

int main(void) {
    if (!is_supported()) return SKIPPED;
    for (int i = 0; i < MOST; i++) {
        tokens[i] = (int32_t)random_below(SMALL.vocab_size);
        targets[i] = (int32_t)random_below(SMALL.vocab_size);
    }
    for (int kernels = PYGPT_PLAIN; kernels <= PYGPT_FAST; kernels++) {
        for (int dtype = PYGPT_FLOAT32; dtype <= PYGPT_BFLOAT16; dtype++) {
            GPT2Options options = {.kernels = kernels, .dtype = dtype};
            Dropout dropout = {.seed = 5, .step = 1};
            pygpt_set_threads(2);
            if (dtype == PYGPT_FLOAT32) {   // a loss in bfloat16 is too coarse for differences
                test_derivatives(&options, NULL);
                test_derivatives(&options, &dropout);
            }
            test_one_pass_or_two(&options, NULL);
            test_one_pass_or_two(&options, &dropout);
            test_recomputation_and_threads(&options);
            test_sizes_in_any_order(&options);
            test_logits(&options);
            test_training(&options);
            test_tensors(&options);
        }
    }
    return failures != 0;
}
