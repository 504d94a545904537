/* ReLU (Nair & Hinton 2010), with the derivative 0 at 0.
 *
 *   forward    y = max(x, 0)
 *   backward   dx = dy where x > 0, otherwise 0
 */
#include "elementwise.cuh"

namespace {

struct Forward {
    template <int W> __device__ void operator()(float (&y)[W], const float (&x)[1][W], int64_t) const {
        for (int i = 0; i < W; i++) y[i] = x[0][i] > 0.0f ? x[0][i] : 0.0f;
    }
};

struct Backward {
    template <int W> __device__ void operator()(float (&dx)[W], const float (&inputs)[2][W], int64_t) const {
        const auto &dy = inputs[0], &x = inputs[1];
        for (int i = 0; i < W; i++) dx[i] = x[i] > 0.0f ? dy[i] : 0.0f;
    }
};

} // namespace

void relu_forward(Queue &queue, void *y, const void *x, int64_t n) {
    for_each_element(queue, "relu_forward", n, Forward{}, y, x);
}

void relu_backward(Queue &queue, void *dx, const void *dy, const void *x, int64_t n) {
    for_each_element(queue, "relu_backward", n, Backward{}, dx, dy, x);
}
