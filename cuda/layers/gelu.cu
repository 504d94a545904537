/* GELU in its tanh form, as GPT-2 has it (Hendrycks & Gimpel 2016).
 *
 *   forward    y = ½ x (1 + t)      t = tanh(u)      u = √(2/π) (x + 0.044715 x³)
 *   backward   dx = dy (½ (1 + t) + ½ x (1 − t²) u′)      u′ = √(2/π) (1 + 3 · 0.044715 x²)
 *
 * These are the simple twins of what linear.cu lets the matrix product do on its way.
 */
#include "gelu.cuh"
#include "elementwise.cuh"

namespace {

struct Forward {
    template <int W> __device__ void operator()(float (&y)[W], const float (&x)[1][W], int64_t) const {
        for (int i = 0; i < W; i++) y[i] = gelu_of(x[0][i]);
    }
};

struct Backward {
    template <int W> __device__ void operator()(float (&dx)[W], const float (&inputs)[2][W], int64_t) const {
        const auto &dy = inputs[0], &x = inputs[1];
        for (int i = 0; i < W; i++) dx[i] = dy[i] * dgelu_of(x[i]);
    }
};

} // namespace

void gelu_forward(Queue &queue, void *y, const void *x, int64_t n) {
    for_each_element(queue, "gelu_forward", n, Forward{}, y, x);
}

void gelu_backward(Queue &queue, void *dx, const void *dy, const void *x, int64_t n) {
    for_each_element(queue, "gelu_backward", n, Backward{}, dx, dy, x);
}
