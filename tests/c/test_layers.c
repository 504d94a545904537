/* Each layer against itself: its backward pass against finite differences of its forward pass, identities that must
 * hold, gradients that are added or written as pygpt.h says, and the same bits whatever the number of threads. */
#include "check.h"

enum { INPUTS = 3, KEPT = 2, DIRECTIONS = 4 };

/* A layer as a function y(x0, x1, x2) with what its forward pass keeps for its backward pass. */
typedef struct Layer {
    const char *name;
    void (*forward)(struct Layer *l), (*backward)(struct Layer *l);
    int64_t size[4];   // the layer's own sizes, in the order of its arguments
    int64_t nx[INPUTS], ny, nkept[KEPT];
    float *x[INPUTS], *dx[INPUTS], *y, *dy, *kept[KEPT];
    int32_t *tokens;
    const Dropout *dropout;
    int adds[INPUTS];   // 1: dx is added to, 0: it is written
} Layer;

static const Kernels *k;

static double output_change(Layer *l, int input, const float *direction, float step) {
    float *x = floats(l->nx[input]);
    double difference = 0.0;
    memcpy(x, l->x[input], (size_t)l->nx[input] * sizeof *x);
    for (int sign = 1; sign >= -1; sign -= 2) {
        for (int64_t i = 0; i < l->nx[input]; i++) l->x[input][i] = x[i] + (float)sign * step * direction[i];
        l->forward(l);
        difference += sign * dot_of(l->dy, l->y, l->ny);
    }
    memcpy(l->x[input], x, (size_t)l->nx[input] * sizeof *x);
    free(x);
    return difference / (2.0 * step);
}

/* In a random direction of +-1, an error of the gradient shows with its norm; so that is what the bound is taken of. */
static void check_derivatives(Layer *l) {
    char what[64];
    for (int input = 0; input < INPUTS; input++) {
        int64_t n = l->nx[input];
        float *direction = floats(n);
        for (int repeat = 0; repeat < DIRECTIONS && n; repeat++) {
            for (int64_t i = 0; i < n; i++) direction[i] = random_word() & 1 ? 1.0f : -1.0f;
            snprintf(what, sizeof what, "%s, derivative by input %d", l->name, input);
            CHECK_NEAR(what, dot_of(l->dx[input], direction, n), output_change(l, input, direction, 4e-3f),
                       2e-3 * norm_of(l->dx[input], n));
        }
        free(direction);
    }
}

/* With this many threads; gradients that are added to begin at `start`, and those that are written must not be read. */
static void run(Layer *l, int threads, float start) {
    pygpt_set_threads(threads);
    l->forward(l);
    for (int input = 0; input < INPUTS; input++) {
        for (int64_t i = 0; i < l->nx[input]; i++) l->dx[input][i] = l->adds[input] ? start : NAN;
    }
    l->backward(l);
}

static void check_buffers_and_threads(Layer *l) {
    float *y = floats(l->ny), *dx[INPUTS];
    memcpy(y, l->y, (size_t)l->ny * sizeof *y);
    for (int input = 0; input < INPUTS; input++) {
        dx[input] = floats(l->nx[input]);
        memcpy(dx[input], l->dx[input], (size_t)l->nx[input] * sizeof(float));
    }
    run(l, 1, 1.0f);
    for (int input = 0; input < INPUTS; input++) {
        int64_t n = l->nx[input];
        for (int64_t i = 0; i < n; i++) l->dx[input][i] -= l->adds[input] ? 1.0f : 0.0f;
        double bound = 1e-5 * (sqrt((double)n) + norm_of(dx[input], n));
        for (int64_t i = 0; i < n; i++) l->dx[input][i] -= dx[input][i];
        CHECK_NEAR(l->name, norm_of(l->dx[input], n), 0.0, bound);
    }
    for (int threads = 2; threads <= 4; threads++) {
        run(l, threads, 0.0f);
        CHECK(same_bits(y, l->y, l->ny));
        for (int input = 0; input < INPUTS; input++) CHECK(same_bits(dx[input], l->dx[input], l->nx[input]));
    }
    free(y);
    for (int input = 0; input < INPUTS; input++) free(dx[input]);
}

static void begin(Layer *l) {
    for (int input = 0; input < INPUTS; input++) {
        l->x[input] = floats(l->nx[input]);
        l->dx[input] = floats(l->nx[input]);
        fill_random(l->x[input], l->nx[input], 1.5f);
    }
    for (int i = 0; i < KEPT; i++) l->kept[i] = floats(l->nkept[i]);
    l->y = floats(l->ny);
    l->dy = floats(l->ny);
    fill_random(l->dy, l->ny, 1.0f);
    run(l, 1, 0.0f);
}

static void end(Layer *l) {
    for (int input = 0; input < INPUTS; input++) {
        free(l->x[input]);
        free(l->dx[input]);
    }
    for (int i = 0; i < KEPT; i++) free(l->kept[i]);
    free(l->y);
    free(l->dy);
}

static void check_layer(Layer *l) {
    check_derivatives(l);
    run(l, 1, 0.0f);
    check_buffers_and_threads(l);
}

static int32_t *random_tokens(int64_t n, int64_t below) {
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);
    if (!tokens) abort();
    for (int64_t i = 0; i < n; i++) tokens[i] = (int32_t)random_below(below);
    return tokens;
}

/* ---- embedding ---- */

static void embedding_f(Layer *l) {
    k->embedding_forward(l->y, l->tokens, l->x[0], l->x[1], l->size[0], l->size[1], l->size[2]);
}

static void embedding_b(Layer *l) {
    k->embedding_backward(l->dx[0], l->dx[1], l->dy, l->tokens, l->size[0], l->size[1], l->size[2]);
}

static void test_embedding(int64_t B, int64_t T, int64_t C, int64_t V) {
    int64_t positions = T + 2;
    Layer l = {"embedding",     embedding_f,   embedding_b, .size = {B, T, C}, .nx = {V * C, positions * C},
               .ny = B * T * C, .adds = {1, 1}};
    l.tokens = random_tokens(B * T, V);
    begin(&l);
    check_layer(&l);
    for (int64_t i = T * C; i < positions * C; i++) CHECK(l.dx[1][i] == 0.0f);   // positions beyond T
    end(&l);
    free(l.tokens);
}

/* ---- layernorm ---- */

static void layernorm_f(Layer *l) {
    k->layernorm_forward(l->y, l->kept[0], l->kept[1], l->x[0], l->x[1], l->x[2], l->size[0], l->size[1], 1e-5f);
}

static void layernorm_b(Layer *l) {
    k->layernorm_backward(l->dx[0], l->dx[1], l->dx[2], l->dy, l->x[0], l->x[1], l->kept[0], l->kept[1], l->size[0],
                          l->size[1]);
}

static void test_layernorm(int64_t N, int64_t C) {
    Layer l = {"layernorm",         layernorm_f, layernorm_b,     .size = {N, C},
               .nx = {N * C, C, C}, .ny = N * C, .nkept = {N, N}, .adds = {1, 1, 1}};
    begin(&l);
    check_layer(&l);
    for (int64_t n = 0; n < N; n++) {   // the output does not change when a row is shifted or stretched
        const float *dxn = l.dx[0] + n * C, *xn = l.x[0] + n * C;
        double along_one = 0.0, along_x = 0.0, size = norm_of(dxn, C) * norm_of(xn, C);
        for (int64_t c = 0; c < C; c++) {
            along_one += dxn[c];
            along_x += dxn[c] * ((double)xn[c] - l.kept[0][n]);
        }
        CHECK_NEAR("layernorm, gradient along 1", along_one, 0.0, 1e-5 * size);
        CHECK_NEAR("layernorm, gradient along x", along_x, 0.0, 1e-3 * size);   // eps is felt
    }
    end(&l);
}

/* A row of mean 3000 and deviation 1 keeps its digits. */
static void test_layernorm_far_from_zero(void) {
    enum { C = 64 };
    float x[C], y[C], mean, rstd, one[C], zero[C] = {0.0f};
    double exact_mean = 0.0, squares = 0.0;
    fill_random(x, C, 1.7f);
    for (int c = 0; c < C; c++) {
        x[c] += 3000.0f;
        one[c] = 1.0f;
        exact_mean += x[c] / (double)C;
    }
    for (int c = 0; c < C; c++) squares += (x[c] - exact_mean) * (x[c] - exact_mean) / (double)C;
    k->layernorm_forward(y, &mean, &rstd, x, one, zero, 1, C, 1e-5f);
    CHECK_NEAR("rstd of a row far from zero", rstd, 1.0 / sqrt(squares + 1e-5), 1e-5 / sqrt(squares));
}

/* ---- linear ---- */

static void linear_f(Layer *l) {
    k->linear_forward(l->y, l->x[0], l->x[1], l->nx[2] ? l->x[2] : NULL, l->size[0], l->size[1], l->size[2]);
}

static void linear_b(Layer *l) {
    k->linear_backward(l->dx[0], l->dx[1], l->nx[2] ? l->dx[2] : NULL, l->dy, l->x[0], l->x[1], l->size[0], l->size[1],
                       l->size[2]);
}

static void test_linear(int64_t N, int64_t IC, int64_t OC, int bias) {
    Layer l = {"linear",     linear_f,         linear_b, .size = {N, IC, OC}, .nx = {N * IC, IC * OC, bias ? OC : 0},
               .ny = N * OC, .adds = {0, 1, 1}};
    begin(&l);
    check_layer(&l);
    float *alone = floats(l.nx[1]);   // any of the three gradients can be left out
    k->linear_backward(NULL, alone, NULL, l.dy, l.x[0], l.x[1], N, IC, OC);
    CHECK(same_bits(alone, l.dx[1], l.nx[1]));
    free(alone);
    end(&l);
}

/* ---- attention ---- */

static void rotary_f(Layer *l) {
    k->rotary_forward(l->y, l->x[0], l->size[0], l->size[1], l->size[2], l->size[3]);
}

static void rotary_b(Layer *l) {
    k->rotary_backward(l->dx[0], l->dy, l->size[0], l->size[1], l->size[2], l->size[3]);
}

static void test_rotary(int64_t B, int64_t T, int64_t NH, int64_t HS) {
    int64_t n = B * T * 3 * NH * HS;
    Layer l = {"rotary", rotary_f, rotary_b, .size = {B, T, NH, HS}, .nx = {n}, .ny = n};
    begin(&l);
    check_layer(&l);
    k->rotary_forward(l.x[0], l.x[0], B, T, NH, HS);   // in place
    CHECK(same_bits(l.x[0], l.y, n));
    end(&l);
}

static float scale_of(const Layer *l) {
    return 1.0f / sqrtf((float)l->size[3]);
}

static void attention_f(Layer *l) {
    k->attention_forward(l->y, l->kept[0], l->x[0], l->size[0], l->size[1], l->size[2], l->size[3], scale_of(l), 1,
                         l->dropout);
}

static void attention_b(Layer *l) {
    k->attention_backward(l->dx[0], l->dy, l->y, l->kept[0], l->x[0], l->size[0], l->size[1], l->size[2], l->size[3],
                          scale_of(l), 1, l->dropout);
}

static void check_attention_identities(Layer *l) {
    int64_t B = l->size[0], T = l->size[1], NH = l->size[2], HS = l->size[3], C = NH * HS;
    double bound = 1e-5 * norm_of(l->dx[0], l->nx[0]);
    for (int64_t b = 0; b < B; b++) {
        for (int64_t c = 0; c < C; c++) {   // the same vector added to every key changes nothing
            double sum = 0.0;
            for (int64_t t = 0; t < T; t++) sum += l->dx[0][(b * T + t) * 3 * C + C + c];
            CHECK_NEAR("attention, sum of the keys' gradients", sum, 0.0, bound);
        }
    }
    float *p = floats(B * NH * T * T);
    k->attention_probabilities(p, l->kept[0], l->x[0], B, T, NH, HS, scale_of(l), 1);
    for (int64_t row = 0; row < B * NH * T; row++) {
        double sum = 0.0;
        for (int64_t u = 0; u < T; u++) sum += p[row * T + u];
        CHECK_NEAR("attention, sum of a row's probabilities", sum, 1.0, 1e-5);
        for (int64_t u = row % T + 1; u < T; u++) CHECK(p[row * T + u] == 0.0f);
    }
    free(p);
}

/* The last position of each sequence changes; the outputs before it must not, by one bit. */
static void check_causality(Layer *l) {
    int64_t B = l->size[0], T = l->size[1], C = l->size[2] * l->size[3];
    float *y = floats(l->ny);
    memcpy(y, l->y, (size_t)l->ny * sizeof *y);
    for (int64_t b = 0; b < B; b++) fill_random(l->x[0] + (b * T + T - 1) * 3 * C, 3 * C, 9.0f);
    l->forward(l);
    for (int64_t b = 0; b < B; b++) CHECK(same_bits(y + b * T * C, l->y + b * T * C, (T - 1) * C));
    free(y);
}

static void test_attention(int64_t B, int64_t T, int64_t NH, int64_t HS, const Dropout *dropout) {
    int64_t C = NH * HS;
    Layer l = {"attention",           attention_f,     attention_b,           .size = {B, T, NH, HS},
               .nx = {B * T * 3 * C}, .ny = B * T * C, .nkept = {B * NH * T}, .dropout = dropout};
    begin(&l);
    check_layer(&l);
    check_attention_identities(&l);
    check_causality(&l);
    end(&l);
}

/* ---- element by element ---- */

static void gelu_f(Layer *l) {
    k->gelu_forward(l->y, l->x[0], l->ny);
}

static void gelu_b(Layer *l) {
    k->gelu_backward(l->dx[0], l->dy, l->x[0], l->ny);
}

static void exact_gelu_f(Layer *l) {
    k->exact_gelu_forward(l->y, l->x[0], l->ny);
}

static void exact_gelu_b(Layer *l) {
    k->exact_gelu_backward(l->dx[0], l->dy, l->x[0], l->ny);
}

static void relu_f(Layer *l) {
    k->relu_forward(l->y, l->x[0], l->ny);
}

static void relu_b(Layer *l) {
    k->relu_backward(l->dx[0], l->dy, l->x[0], l->ny);
}

static void residual_f(Layer *l) {
    k->residual_forward(l->y, l->x[0], l->x[1], l->ny);
}

static void residual_b(Layer *l) {
    k->residual_backward(l->dx[0], l->dx[1], l->dy, l->ny);
}

static void dropout_f(Layer *l) {
    k->dropout_forward(l->y, l->x[0], l->ny, l->dropout);
}

static void dropout_b(Layer *l) {
    k->dropout_backward(l->dx[0], l->dy, l->ny, l->dropout);
}

static void test_elementwise(int64_t n, const Dropout *dropout) {
    Layer gelu = {"gelu", gelu_f, gelu_b, .nx = {n}, .ny = n};
    Layer exact_gelu = {"exact_gelu", exact_gelu_f, exact_gelu_b, .nx = {n}, .ny = n};
    Layer relu = {"relu", relu_f, relu_b, .nx = {n}, .ny = n};
    Layer residual = {"residual", residual_f, residual_b, .nx = {n, n}, .ny = n};
    Layer drop = {"dropout", dropout_f, dropout_b, .nx = {n}, .ny = n, .dropout = dropout};
    Layer *const layers[] = {&gelu, &exact_gelu, &relu, &residual, &drop};
    for (int i = 0; i < 5; i++) {
        begin(layers[i]);
        check_layer(layers[i]);
        end(layers[i]);
    }
}

static void test_gelu_values(void) {
    const float x[] = {-100.0f, -1.0f, 0.0f, 1.0f, 100.0f};
    const double expected[] = {0.0, -0.158808009, 0.0, 0.841191991, 100.0};
    float y[5];
    k->gelu_forward(y, x, 5);
    for (int i = 0; i < 5; i++) CHECK_NEAR("gelu", y[i], expected[i], 1e-6 * fabs(expected[i]));
}

static void test_exact_gelu_values(void) {
    const float x[] = {-100.0f, -5.0f, -1.0f, 0.0f, 1.0f, 100.0f};
    const double expected[] = {0.0, -1.43325786e-6, -0.158655254, 0.0, 0.841344746, 100.0};
    float y[6];
    k->exact_gelu_forward(y, x, 6);
    for (int i = 0; i < 6; i++) CHECK_NEAR("exact_gelu", y[i], expected[i], 2e-6 * fabs(expected[i]));
}

/* The rate, and the same numbers from every set of kernels. */
static void test_dropout_mask(void) {
    enum { N = 20000 };
    Dropout dropout = {.p = 0.3f, .site = 1, .step = 2, .seed = 3};
    float *x = floats(N), *y = floats(N), *plain = floats(N);
    double dropped = 0.0;
    for (int i = 0; i < N; i++) x[i] = 1.0f;
    k->dropout_forward(y, x, N, &dropout);
    pygpt_kernels(PYGPT_PLAIN, PYGPT_FLOAT32)->dropout_forward(plain, x, N, &dropout);
    CHECK(memcmp(y, plain, N * sizeof(float)) == 0);
    for (int i = 0; i < N; i++) dropped += y[i] == 0.0f;
    CHECK_NEAR("dropout's rate", dropped / N, 0.3, 5.0 * sqrt(0.3 * 0.7 / N));   // five standard deviations
    free(x);
    free(y);
    free(plain);
}

/* ---- cross-entropy and the head ---- */

static void cross_entropy_f(Layer *l) {
    k->cross_entropy_forward(l->y, l->x[0], l->tokens, l->size[0], l->size[1], l->size[2]);
}

static void cross_entropy_b(Layer *l) {
    k->cross_entropy_backward(l->dx[0], l->dy, l->x[0], l->tokens, l->size[0], l->size[1], l->size[2]);
}

static void test_cross_entropy(int64_t N, int64_t V, int64_t Vp) {
    Layer l = {"cross-entropy", cross_entropy_f, cross_entropy_b, .size = {N, V, Vp}, .nx = {N * Vp}, .ny = N};
    l.tokens = random_tokens(N, V);
    l.tokens[0] = -1;   // left out
    begin(&l);
    check_layer(&l);
    CHECK(l.y[0] == 0.0f);
    for (int64_t n = 0; n < N; n++) {
        double sum = 0.0;
        for (int64_t v = 0; v < V; v++) sum += l.dx[0][n * Vp + v];
        CHECK_NEAR("cross-entropy, sum of a row's gradient", sum, 0.0, 1e-6 * sqrt((double)V) * fabs(l.dy[n]));
        for (int64_t v = n ? V : 0; v < Vp; v++) CHECK(l.dx[0][n * Vp + v] == 0.0f);
    }
    end(&l);
    free(l.tokens);
}

static void test_extreme_logits(void) {
    const float logits[] = {-300.0f, 300.0f, 300.0f, -300.0f};
    const int32_t targets[] = {0, 0};
    float losses[2], dlogits[4] = {0.0f}, dlosses[2] = {1.0f, 1.0f};
    k->cross_entropy_forward(losses, logits, targets, 2, 2, 2);
    k->cross_entropy_backward(dlogits, dlosses, logits, targets, 2, 2, 2);
    CHECK_NEAR("a hopeless loss", losses[0], 600.0, 6e-4);
    CHECK(losses[1] == 0.0f && dlogits[0] == -1.0f && dlogits[1] == 1.0f);
}

static void classifier_f(Layer *l) {
    int64_t N = l->size[0], C = l->size[1], V = l->size[2], rows = l->size[3];
    classifier_forward(k, l->y, l->x[0], l->x[1], l->tokens, l->kept[0], rows, N, C, V);
}

static void classifier_b(Layer *l) {
    int64_t N = l->size[0], C = l->size[1], V = l->size[2], rows = l->size[3];
    float *losses = floats(N);
    classifier_backward(k, losses, l->dx[0], l->dx[1], l->dy, l->x[0], l->x[1], l->tokens, l->kept[0], rows, N, C, V);
    CHECK(same_bits(losses, l->y, N));
    free(losses);
}

static void test_classifier(int64_t N, int64_t C, int64_t V, int64_t rows) {
    Layer l = {"classifier",         classifier_f, classifier_b,        .size = {N, C, V, rows},
               .nx = {N * C, V * C}, .ny = N,      .nkept = {rows * V}, .adds = {0, 1}};
    l.tokens = random_tokens(N, V);
    begin(&l);
    check_layer(&l);
    end(&l);
    free(l.tokens);
}

/* ---- matrix product ---- */

static void test_matmul(const Kernels *kernels, int64_t M, int64_t N, int64_t K, int bf16) {
    float *a = floats(M * K), *b = floats(K * N), *c = floats(M * N);
    fill_random(a, M * K, 1.0f);
    fill_random(b, K * N, 1.0f);
    if (bf16) {   // of 8 bits, so that rounding changes nothing
        for (int64_t i = 0; i < M * K; i++) a[i] = roundf(a[i] * 128.0f) / 128.0f;
        for (int64_t i = 0; i < K * N; i++) b[i] = roundf(b[i] * 128.0f) / 128.0f;
    }
    for (int way = 0; way < 8; way++) {
        int transpose_a = way & 1, transpose_b = way >> 1 & 1, accumulate = way >> 2;
        for (int64_t i = 0; i < M * N; i++) c[i] = accumulate ? 2.0f : NAN;
        kernels->matmul(c, a, b, M, N, K, transpose_a, transpose_b, accumulate);
        double worst = 0.0;
        for (int64_t i = 0; i < M; i++) {
            for (int64_t j = 0; j < N; j++) {
                double sum = accumulate ? 2.0 : 0.0;
                for (int64_t l = 0; l < K; l++) {
                    sum += (double)a[transpose_a ? l * M + i : i * K + l] * b[transpose_b ? j * K + l : l * N + j];
                }
                worst = fmax(worst, fabs(c[i * N + j] - sum));
            }
        }
        CHECK_NEAR("matmul", worst, 0.0, 1e-6 * (2.0 + sqrt((double)K)));
    }
    free(a);
    free(b);
    free(c);
}

/* ---- the optimizer ---- */

static void test_adamw(void) {
    enum { N = 37 };
    float w[N], m[N] = {0.0f}, v[N] = {0.0f}, dw[N];
    double w64[N], m64[N] = {0.0}, v64[N] = {0.0};
    const double lr = 1e-2, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, decay = 0.1;
    fill_random(w, N, 1.0f);
    for (int i = 0; i < N; i++) w64[i] = w[i];
    for (int step = 1; step <= 5; step++) {
        fill_random(dw, N, 1.0f);
        k->adamw_step(w, m, v, dw, N, (float)lr, (float)beta1, (float)beta2, (float)eps, (float)decay, step);
        for (int i = 0; i < N; i++) {
            m64[i] = beta1 * m64[i] + (1 - beta1) * dw[i];
            v64[i] = beta2 * v64[i] + (1 - beta2) * dw[i] * dw[i];
            double m_hat = m64[i] / (1 - pow(beta1, step)), v_hat = v64[i] / (1 - pow(beta2, step));
            w64[i] -= lr * (m_hat / (sqrt(v_hat) + eps) + decay * w64[i]);
        }
    }
    for (int i = 0; i < N; i++) CHECK_NEAR("AdamW", w[i], w64[i], 2e-6);   // of weights and updates up to 1
}

static void test_sgd(void) {
    enum { N = 37 };
    float w[N], m[N] = {0.0f}, plain[N], dw[N];
    double w64[N], m64[N] = {0.0}, plain64[N];
    const double lr = 1e-2, momentum = 0.75, decay = 0.5;
    fill_random(w, N, 1.0f);
    for (int i = 0; i < N; i++) w64[i] = plain64[i] = plain[i] = w[i];
    for (int step = 1; step <= 5; step++) {
        fill_random(dw, N, 1.0f);
        k->sgd_step(w, m, dw, N, (float)lr, (float)momentum, (float)decay);
        k->sgd_step(plain, NULL, dw, N, (float)lr, 0.0f, (float)decay);
        for (int i = 0; i < N; i++) {
            m64[i] = momentum * m64[i] + dw[i];
            w64[i] -= lr * (m64[i] + decay * w64[i]);
            plain64[i] -= lr * (dw[i] + decay * plain64[i]);
        }
    }
    for (int i = 0; i < N; i++) CHECK_NEAR("SGD with momentum", w[i], w64[i], 2e-6);
    for (int i = 0; i < N; i++) CHECK_NEAR("SGD", plain[i], plain64[i], 2e-6);
}

/* The gradient has one singular value, u vᵀ, so the update is u vᵀ times a number: p five times, of 1. In all other directions
 * there are rounding errors of the gradient, which are enlarged 3.4445⁵ = 485 times. */
static void test_muon(int64_t R, int64_t C) {
    int64_t shorter = R < C ? R : C;
    float *w = floats(R * C), *m = floats(R * C), *dw = floats(R * C), *u = floats(R), *v = floats(C);
    float *scratch = floats(2 * (R * C + shorter * shorter));
    fill_random(u, R, 1.0f);
    fill_random(v, C, 1.0f);
    double s = 1.0, u_norm = sqrt(k->sum_of_squares(u, R)), v_norm = sqrt(k->sum_of_squares(v, C));
    for (int i = 0; i < 5; i++) s = 3.4445 * s - 4.7750 * s * s * s + 2.0315 * s * s * s * s * s;
    for (int64_t i = 0; i < R * C; i++) {
        w[i] = m[i] = 0.0f;
        dw[i] = u[i / C] * v[i % C];
    }
    k->muon_step(w, m, dw, scratch, R, C, 1, 1.0f, 0.5f, 0.0f);
    double factor = s * sqrt(fmax(1.0, (double)C / (double)R)) / (u_norm * v_norm);
    for (int64_t i = 0; i < R * C; i++) {
        CHECK_NEAR("Muon's momentum", m[i], dw[i], 0.0);
        CHECK_NEAR("Muon", w[i], -factor * dw[i], 485 * 0x1p-24);
    }
    float *const buffers[] = {w, m, dw, u, v, scratch};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]);
}

static void test_norms(int64_t n) {
    float *x = floats(n), *y = floats(n);
    fill_random(x, n, 1.0f);
    memcpy(y, x, (size_t)n * sizeof *x);
    double expected = dot_of(x, x, n), found[4];
    for (int threads = 1; threads <= 4; threads++) {
        pygpt_set_threads(threads);
        found[threads - 1] = k->sum_of_squares(x, n);
        CHECK(found[threads - 1] == found[0]);
    }
    CHECK_NEAR("sum of squares", found[0], expected, 1e-12 * expected);
    int64_t count = pygpt_sums_of_squares(NULL, x, n);
    double *sums = malloc((size_t)(count + 1) * sizeof *sums), total = 0.0;
    sums[count] = -1.0;
    CHECK(pygpt_sums_of_squares(sums, x, n) == count && sums[count] == -1.0);
    for (int64_t i = 0; i < count; i++) total += sums[i];
    CHECK(total == found[0]);
    free(sums);
    k->scale(y, 0.25f, n);
    for (int64_t i = 0; i < n; i++) CHECK(y[i] == 0.25f * x[i]);
    free(x);
    free(y);
}

static void test_set(const Kernels *kernels, const Kernels *bf16) {
    Dropout dropout = {.p = 0.25f, .site = 4, .step = 5, .seed = 6};
    k = kernels;
    test_embedding(2, 5, 19, 7);
    test_layernorm(5, 67);
    test_layernorm(1, 3);
    test_layernorm_far_from_zero();
    test_linear(1, 1, 1, 1);
    test_linear(7, 13, 37, 1);
    test_linear(101, 17, 35, 0);
    test_rotary(2, 5, 3, 6);
    test_attention(2, 9, 3, 8, NULL);
    test_attention(1, 1, 1, 5, NULL);
    test_attention(1, 70, 2, 16, NULL);
    test_attention(2, 9, 3, 8, &dropout);
    test_elementwise(1, &dropout);
    test_elementwise(103, &dropout);
    test_gelu_values();
    test_exact_gelu_values();
    test_dropout_mask();
    test_cross_entropy(6, 11, 16);
    test_cross_entropy(3, 2, 2);
    test_extreme_logits();
    test_classifier(7, 9, 21, 3);
    test_adamw();
    test_sgd();
    test_muon(17, 40);
    test_muon(40, 17);
    test_norms(1);
    test_norms(100003);
    const int64_t shapes[][3] = {{1, 1, 1}, {5, 7, 3}, {33, 1, 17}, {1, 65, 4}, {98, 259, 131}};
    for (int i = 0; i < 5; i++) {
        test_matmul(kernels, shapes[i][0], shapes[i][1], shapes[i][2], 0);
        test_matmul(bf16, shapes[i][0], shapes[i][1], shapes[i][2], 1);
    }
}

int main(void) {
    if (!is_supported()) return SKIPPED;
    CHECK(pygpt_kernels(PYGPT_PLAIN, 7) == NULL && pygpt_kernels(7, PYGPT_FLOAT32) == NULL);
    for (int kernels = PYGPT_PLAIN; kernels <= PYGPT_FAST; kernels++) {
        const Kernels *float32 = pygpt_kernels(kernels, PYGPT_FLOAT32), *bf16 = pygpt_kernels(kernels, PYGPT_BFLOAT16);
        CHECK(float32 && bf16);
        if (float32 && bf16) test_set(float32, bf16);
    }
    return failures != 0;
}
