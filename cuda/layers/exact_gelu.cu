/* GELU in its exact form (Hendrycks & Gimpel 2016): x times the probability of a normal number below x.
 *
 *   forward    y = x Φ(x)      Φ(x) = ½ erfc(−x/√2)
 *   backward   dx = dy (Φ(x) + x φ(x))      φ(x) = exp(−½ x²)/√(2π)
 */
#include "exact_gelu.cuh"
#include "elementwise.cuh"

namespace {

struct Forward {
    template <int W> __device__ void operator()(float (&y)[W], const float (&x)[1][W], int64_t) const {
        for (int i = 0; i < W; i++) y[i] = exact_gelu_of(x[0][i]);
    }
};

struct Backward {
    template <int W> __device__ void operator()(float (&dx)[W], const float (&inputs)[2][W], int64_t) const {
        const auto &dy = inputs[0], &x = inputs[1];
        for (int i = 0; i < W; i++) dx[i] = dy[i] * dexact_gelu_of(x[i]);
    }
};

} // namespace

void exact_gelu_forward(Queue &queue, void *y, const void *x, int64_t n) {
    for_each_element(queue, "exact_gelu_forward", n, Forward{}, y, x);
}

void exact_gelu_backward(Queue &queue, void *dx, const void *dy, const void *x, int64_t n) {
    for_each_element(queue, "exact_gelu_backward", n, Backward{}, dx, dy, x);
}
