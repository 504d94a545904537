/* The function tables: each layer alone, on buffers in the host's memory. A call copies them to the device, runs the
 * layer, and copies the results back. It is for tests and comparisons; the model keeps everything on the device.
 *
 * Values are rounded to the table's element type on their way. LayerNorm's dx, which the interface adds to, is written
 * on the device and added on the host. If something fails, nothing is copied back, and the sentence is in
 * pygpt_last_error(). */
#include "call.cuh"

#include <algorithm>

extern "C" {
#include "../csrc/arguments.h"
#include "../csrc/threads.h"
}

namespace {

int64_t rows_of_tokens(const int32_t *tokens, int64_t n) {
    return n ? int64_t{*std::max_element(tokens, tokens + n)} + 1 : 1;
}

/* The treatment of so many groups of weights that all decay. */
uint8_t *decay_all(Call &call, int64_t groups) {
    uint8_t *const treatment = static_cast<uint8_t *>(call.room(groups, DataType::float32));
    Queue &queue = call.queue();
    if (queue.error == cudaSuccess)
        note(queue, cudaMemsetAsync(treatment, UPDATE_DECAY, static_cast<size_t>(groups), queue.stream),
             "the optimizer's table");
    return treatment;
}

template <DataType type, bool fast> struct Layers {
    static void matmul(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K, int transpose_a,
                       int transpose_b, int accumulate) {
        Call call(type, fast);
        float *const sum = accumulate ? call.float_input(c, M * N) : call.floats(M * N);
        Matmul m;
        m.c = sum, m.a = call.input(a, M * K), m.b = call.input(b, K * N);
        m.M = M, m.N = N, m.K = K;
        m.transpose_a = transpose_a, m.transpose_b = transpose_b, m.accumulate = accumulate;
        m.ab_type = type;
        product(call.queue(), m);
        call.float_output(c, sum, M * N);
    }

    static void embedding_forward(float *x, const int32_t *tokens, const float *wte, const float *wpe, int64_t B,
                                  int64_t T, int64_t C) {
        Call call(type, fast);
        void *const to = call.room(B * T * C);
        ::embedding_forward(call.queue(), to, call.input(tokens, B * T),
                            call.input(wte, rows_of_tokens(tokens, B * T) * C), call.input(wpe, T * C), B, T, C);
        call.output(x, to, B * T * C);
    }

    static void embedding_backward(float *dwte, float *dwpe, const float *dx, const int32_t *tokens, int64_t B,
                                   int64_t T, int64_t C) {
        Call call(type, fast);
        const int64_t V = rows_of_tokens(tokens, B * T);
        float *const to_wte = call.float_input(dwte, V * C), *const to_wpe = call.float_input(dwpe, T * C);
        ::embedding_backward(call.queue(), to_wte, to_wpe, call.input(dx, B * T * C), call.input(tokens, B * T), B, T,
                             C, V);
        call.float_output(dwte, to_wte, V * C);
        call.float_output(dwpe, to_wpe, T * C);
    }

    static void layernorm_forward(float *y, float *mean, float *rstd, const float *x, const float *w, const float *b,
                                  int64_t N, int64_t C, float eps) {
        Call call(type, fast);
        void *const to = call.room(N * C);
        float *const to_mean = call.floats(N), *const to_rstd = call.floats(N);
        ::layernorm_forward(call.queue(), to, to_mean, to_rstd, call.input(x, N * C), call.input(w, C),
                            call.input(b, C), N, C, eps);
        call.output(y, to, N * C);
        call.float_output(mean, to_mean, N);
        call.float_output(rstd, to_rstd, N);
    }

    static void layernorm_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w,
                                   const float *mean, const float *rstd, int64_t N, int64_t C) {
        Call call(type, fast);
        void *const to_x = call.room(N * C);
        float *const to_w = call.float_input(dw, C), *const to_b = call.float_input(db, C);
        ::layernorm_backward(call.queue(), to_x, to_w, to_b, nullptr, nullptr, call.input(dy, N * C),
                             call.input(x, N * C), call.input(w, C), call.float_input(mean, N),
                             call.float_input(rstd, N), N, C);
        call.add_output(dx, to_x, N * C);
        call.float_output(dw, to_w, C);
        call.float_output(db, to_b, C);
    }

    static void linear_forward(float *y, const float *x, const float *w, const float *b, int64_t N, int64_t IC,
                               int64_t OC) {
        Call call(type, fast);
        void *const to = call.room(N * OC);
        ::linear_forward(call.queue(), to, call.input(x, N * IC), call.input(w, IC * OC), call.input(b, OC), N, IC, OC);
        call.output(y, to, N * OC);
    }

    static void linear_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w,
                                int64_t N, int64_t IC, int64_t OC) {
        Call call(type, fast);
        void *const to_x = dx ? call.room(N * IC) : nullptr;
        float *const to_w = call.float_input(dw, IC * OC), *const to_b = call.float_input(db, OC);
        ::linear_backward(call.queue(), to_x, to_w, to_b, call.input(dy, N * OC), call.input(x, N * IC),
                          call.input(w, IC * OC), N, IC, OC);
        call.output(dx, to_x, N * IC);
        call.float_output(dw, to_w, IC * OC);
        call.float_output(db, to_b, OC);
    }

    static void rotary_forward(float *y, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS) {
        Call call(type, fast);
        const int64_t n = 3 * B * T * NH * HS;
        void *const to = call.room(n);
        ::rotary_forward(call.queue(), to, call.input(qkv, n), B, T, NH, HS);
        call.output(y, to, n);
    }

    static void rotary_backward(float *dqkv, const float *dy, int64_t B, int64_t T, int64_t NH, int64_t HS) {
        Call call(type, fast);
        const int64_t n = 3 * B * T * NH * HS;
        void *const to = call.room(n);
        ::rotary_backward(call.queue(), to, call.input(dy, n), B, T, NH, HS);
        call.output(dqkv, to, n);
    }

    static void attention_forward(float *y, float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                                  float scale, int causal, const Dropout *dropout) {
        Call call(type, fast);
        const int64_t n = B * T * NH * HS;
        void *const to = call.room(n);
        float *const to_lse = call.floats(B * NH * T);
        ::attention_forward(call.queue(), to, to_lse, call.input(qkv, 3 * n), B, T, NH, HS, scale, causal != 0,
                            call.mask(dropout));
        call.output(y, to, n);
        call.float_output(lse, to_lse, B * NH * T);
    }

    static void attention_backward(float *dqkv, const float *dy, const float *y, const float *lse, const float *qkv,
                                   int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal,
                                   const Dropout *dropout) {
        Call call(type, fast);
        const int64_t n = B * T * NH * HS;
        void *const to = call.room(3 * n);
        ::attention_backward(call.queue(), to, call.input(dy, n), call.input(y, n), call.float_input(lse, B * NH * T),
                             call.input(qkv, 3 * n), B, T, NH, HS, scale, causal != 0, call.mask(dropout));
        call.output(dqkv, to, 3 * n);
    }

    static void attention_probabilities(float *p, const float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH,
                                        int64_t HS, float scale, int causal) {
        Call call(type, fast);
        float *const to = call.floats(B * NH * T * T);
        ::attention_probabilities(call.queue(), to, call.float_input(lse, B * NH * T),
                                  call.input(qkv, 3 * B * T * NH * HS), B, T, NH, HS, scale, causal != 0);
        call.float_output(p, to, B * NH * T * T);
    }

    using Forward = void(Queue &, void *, const void *, int64_t);
    using Backward = void(Queue &, void *, const void *, const void *, int64_t);

    template <Forward *layer> static void elementwise_forward(float *y, const float *x, int64_t n) {
        Call call(type, fast);
        void *const to = call.room(n);
        layer(call.queue(), to, call.input(x, n), n);
        call.output(y, to, n);
    }

    template <Backward *layer> static void elementwise_backward(float *dx, const float *dy, const float *x, int64_t n) {
        Call call(type, fast);
        void *const to = call.room(n);
        layer(call.queue(), to, call.input(dy, n), call.input(x, n), n);
        call.output(dx, to, n);
    }

    static void residual_forward(float *y, const float *x1, const float *x2, int64_t n) {
        Call call(type, fast);
        void *const to = call.room(n);
        ::residual_forward(call.queue(), to, call.input(x1, n), call.input(x2, n), n);
        call.output(y, to, n);
    }

    static void residual_backward(float *dx1, float *dx2, const float *dy, int64_t n) {
        Call call(type, fast);
        void *const to_1 = call.room(n), *const to_2 = call.room(n);
        ::residual_backward(call.queue(), to_1, to_2, call.input(dy, n), n);
        call.output(dx1, to_1, n);
        call.output(dx2, to_2, n);
    }

    static void dropout_forward(float *y, const float *x, int64_t n, const Dropout *dropout) {
        Call call(type, fast);
        void *const to = call.room(n);
        ::dropout_forward(call.queue(), to, call.input(x, n), n, call.mask(dropout));
        call.output(y, to, n);
    }

    static void dropout_backward(float *dx, const float *dy, int64_t n, const Dropout *dropout) {
        Call call(type, fast);
        void *const to = call.room(n);
        ::dropout_backward(call.queue(), to, call.input(dy, n), n, call.mask(dropout));
        call.output(dx, to, n);
    }

    static void cross_entropy_forward(float *losses, const float *logits, const int32_t *targets, int64_t N, int64_t V,
                                      int64_t Vp) {
        Call call(type, fast);
        float *const to = call.floats(N);
        ::cross_entropy_forward(call.queue(), to, call.input(logits, N * Vp), call.input(targets, N), N, V, Vp);
        call.float_output(losses, to, N);
    }

    static void cross_entropy_backward(float *dlogits, const float *dlosses, const float *logits,
                                       const int32_t *targets, int64_t N, int64_t V, int64_t Vp) {
        Call call(type, fast);
        void *const to = call.room(N * Vp);
        ::cross_entropy_backward(call.queue(), nullptr, to, call.float_input(dlosses, N), call.input(logits, N * Vp),
                                 call.input(targets, N), N, V, Vp);
        call.output(dlogits, to, N * Vp);
    }

    static void cross_entropy_in_place(float *losses, float *logits, const float *dlosses, const int32_t *targets,
                                       int64_t N, int64_t V, int64_t Vp) {
        Call call(type, fast);
        float *const to = call.floats(N);
        void *const to_logits = call.room(N * Vp);
        ::cross_entropy_backward(call.queue(), to, to_logits, call.float_input(dlosses, N), call.input(logits, N * Vp),
                                 call.input(targets, N), N, V, Vp);
        call.float_output(losses, to, N);
        call.output(logits, to_logits, N * Vp);
    }

    static void classifier_forward(float *losses, const float *x, const float *wte, const int32_t *targets,
                                   int64_t rows, int64_t N, int64_t C, int64_t V) {
        Call call(type, fast);
        const int64_t Vp = padded_vocabulary(V);
        float *const to = call.floats(N);
        ::classifier_forward(call.queue(), to, call.input(x, N * C), call.input(wte, V * C, (Vp - V) * C),
                             call.input(targets, N), call.room(rows * Vp), rows, N, C, V, Vp);
        call.float_output(losses, to, N);
    }

    static void classifier_backward(float *losses, float *dx, float *dwte, const float *dlosses, const float *x,
                                    const float *wte, const int32_t *targets, int64_t rows, int64_t N, int64_t C,
                                    int64_t V) {
        Call call(type, fast);
        const int64_t Vp = padded_vocabulary(V);
        float *const to = call.floats(N), *const to_wte = call.float_input(dwte, V * C, (Vp - V) * C);
        void *const to_x = call.room(N * C);
        ::classifier_backward(call.queue(), to, to_x, to_wte, call.float_input(dlosses, N), call.input(x, N * C),
                              call.input(wte, V * C, (Vp - V) * C), call.input(targets, N), call.room(rows * Vp), rows,
                              N, C, V, Vp);
        call.float_output(losses, to, N);
        call.output(dx, to_x, N * C);
        call.float_output(dwte, to_wte, V * C);
    }

    static void adamw_step(float *w, float *m, float *v, const float *dw, int64_t n, float lr, float beta1, float beta2,
                           float eps, float weight_decay, int64_t step) {
        Call call(type, fast);
        const int64_t groups = ceil_div<int64_t>(n, UPDATE_GROUP), more = groups * UPDATE_GROUP - n;
        float *const to_w = call.float_input(w, n, more), *const to_m = call.float_input(m, n, more);
        float *const to_v = call.float_input(v, n, more);
        ::adamw_step(call.queue(), to_w, nullptr, to_m, to_v, call.float_input(dw, n, more), decay_all(call, groups),
                     groups * UPDATE_GROUP, 0, {lr, beta1, beta2, eps, weight_decay, step}, {});
        call.float_output(w, to_w, n);
        call.float_output(m, to_m, n);
        call.float_output(v, to_v, n);
    }

    static void sgd_step(float *w, float *m, const float *dw, int64_t n, float lr, float momentum, float weight_decay) {
        Call call(type, fast);
        const int64_t groups = ceil_div<int64_t>(n, UPDATE_GROUP), more = groups * UPDATE_GROUP - n;
        float *const to_w = call.float_input(w, n, more), *const to_m = call.float_input(m, n, more);
        ::sgd_step(call.queue(), to_w, to_m, call.float_input(dw, n, more), decay_all(call, groups),
                   groups * UPDATE_GROUP, {lr, momentum, weight_decay});
        call.float_output(w, to_w, n);
        call.float_output(m, to_m, n);
    }

    static void muon_step(float *w, float *m, const float *dw, float *, int64_t R, int64_t C, int64_t parts, float lr,
                          float momentum, float weight_decay) {
        Call call(type, fast);
        const int64_t n = R * (C / parts), shorter = std::min(R, C / parts);
        float *const to_w = call.float_input(w, R * C), *const to_m = call.float_input(m, R * C);
        ::muon_step(call.queue(), to_w, to_m, call.float_input(dw, R * C), call.floats(2 * (n + shorter * shorter) + 2),
                    R, C, parts, {lr, momentum, weight_decay});
        call.float_output(w, to_w, R * C);
        call.float_output(m, to_m, R * C);
    }

    static double sum_of_squares(const float *x, int64_t n) {
        Call call(type, fast);
        Queue &queue = call.queue();
        double sum = 0, *const to = static_cast<double *>(call.room(2, DataType::float32));
        ::sum_of_squares(queue, to, call.float_input(x, n), n);
        if (queue.error == cudaSuccess)
            note(queue, cudaMemcpyAsync(&sum, to, sizeof sum, cudaMemcpyDeviceToHost, queue.stream),
                 "a sum of squares");
        if (queue.error == cudaSuccess) note(queue, cudaStreamSynchronize(queue.stream), "a sum of squares");
        return sum;
    }

    static void scale(float *x, float factor, int64_t n) {
        Call call(type, fast);
        float *const to = call.float_input(x, n);
        ::scale(call.queue(), to, factor, n);
        call.float_output(x, to, n);
    }
};

template <DataType type, bool fast> const Kernels *table() {
    using L = Layers<type, fast>;
    static const Kernels kernels = {L::matmul,
                                    L::embedding_forward,
                                    L::embedding_backward,
                                    L::layernorm_forward,
                                    L::layernorm_backward,
                                    L::linear_forward,
                                    L::linear_backward,
                                    L::rotary_forward,
                                    L::rotary_backward,
                                    L::attention_forward,
                                    L::attention_backward,
                                    L::attention_probabilities,
                                    L::template elementwise_forward<gelu_forward>,
                                    L::template elementwise_backward<gelu_backward>,
                                    L::template elementwise_forward<exact_gelu_forward>,
                                    L::template elementwise_backward<exact_gelu_backward>,
                                    L::template elementwise_forward<relu_forward>,
                                    L::template elementwise_backward<relu_backward>,
                                    L::residual_forward,
                                    L::residual_backward,
                                    L::dropout_forward,
                                    L::dropout_backward,
                                    L::cross_entropy_forward,
                                    L::cross_entropy_backward,
                                    L::cross_entropy_in_place,
                                    L::adamw_step,
                                    L::sgd_step,
                                    L::muon_step,
                                    L::sum_of_squares,
                                    L::scale};
    return &kernels;
}

/* f(layers): with the set of layers that a table belongs to. */
template <class F> void with_layers(const Kernels *k, F f) {
    if (k == table<DataType::float32, false>()) f(Layers<DataType::float32, false>{});
    if (k == table<DataType::float32, true>()) f(Layers<DataType::float32, true>{});
    if (k == table<DataType::bfloat16, false>()) f(Layers<DataType::bfloat16, false>{});
    if (k == table<DataType::bfloat16, true>()) f(Layers<DataType::bfloat16, true>{});
}

}   // namespace

const Kernels *pygpt_kernels(int kernels, int dtype) {
    if (check_kernels(kernels, dtype) != PYGPT_OK || check_device(data_type(dtype)) != PYGPT_OK) return NULL;
    use_threads();   // of the emulation
    if (dtype == PYGPT_FLOAT32)
        return kernels == PYGPT_FAST ? table<DataType::float32, true>() : table<DataType::float32, false>();
    return kernels == PYGPT_FAST ? table<DataType::bfloat16, true>() : table<DataType::bfloat16, false>();
}

void classifier_forward(const Kernels *k, float *losses, const float *x, const float *wte, const int32_t *targets,
                        float *, int64_t rows, int64_t N, int64_t C, int64_t V) {
    with_layers(k, [&](auto layers) { layers.classifier_forward(losses, x, wte, targets, rows, N, C, V); });
}

void classifier_backward(const Kernels *k, float *losses, float *dx, float *dwte, const float *dlosses, const float *x,
                         const float *wte, const int32_t *targets, float *, int64_t rows, int64_t N, int64_t C,
                         int64_t V) {
    with_layers(
        k, [&](auto layers) { layers.classifier_backward(losses, dx, dwte, dlosses, x, wte, targets, rows, N, C, V); });
}
