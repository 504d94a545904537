/* Linear layer: each row of x times a matrix, plus a bias.
 *
 *   forward    y = x W + b
 *   backward   dx = dy Wᵀ      dW += xᵀ dy      db += Σ_n dy_n
 *
 * x: (N,IC)   W: (IC,OC)   b: (OC)   y: (N,OC). The products are in matmul.cuh. They add the bias and, with bfloat16,
 * apply GELU or its derivative on their way; the simple kernels do each of that by itself. How exactly cuBLAS computes
 * GELU it does not say: enough for bfloat16, but not sure to be enough for float32.
 */
#include "column_sums.cuh"
#include "elements.cuh"
#include "layers.cuh"

extern "C" {
#include "../../csrc/pygpt.h"
}

namespace {

/* xw may be y. */
template <class T>
__global__ void __launch_bounds__(ELEMENT_THREADS) add_bias(T *y, const float *xw, const T *b, int64_t n, int64_t OC) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
    if (i < n) y[i] = static_cast<T>(xw[i] + static_cast<float>(b[i % OC]));
}

Matmul forward_product(const Queue &queue, void *y, const void *x, const void *w, int64_t N, int64_t IC, int64_t OC) {
    Matmul m;
    m.c = y, m.a = x, m.b = w;
    m.M = N, m.N = OC, m.K = IC;
    m.ab_type = m.c_type = queue.type;
    return m;
}

Matmul input_product(const Queue &queue, void *dx, const void *dy, const void *w, int64_t N, int64_t IC, int64_t OC) {
    Matmul m;
    m.c = dx, m.a = dy, m.b = w;
    m.M = N, m.N = IC, m.K = OC;
    m.transpose_b = true;
    m.ab_type = m.c_type = queue.type;
    return m;
}

Matmul weight_product(const Queue &queue, float *dw, const void *x, const void *dy, int64_t N, int64_t IC, int64_t OC) {
    Matmul m;
    m.c = dw, m.a = x, m.b = dy;
    m.M = IC, m.N = OC, m.K = N;
    m.transpose_a = true;
    m.ab_type = queue.type;
    m.c_type = DataType::float32;
    m.accumulate = true;
    return m;
}

} // namespace

size_t linear_scratch(int64_t N, int64_t OC) {
    return static_cast<size_t>(N * OC) * sizeof(float);
}

void linear_forward(Queue &queue, void *y, const void *x, const void *w, const void *b, int64_t N, int64_t IC,
                    int64_t OC) {
    Matmul m = forward_product(queue, y, x, w, N, IC, OC);
    if (queue.fast || !b) {
        m.bias = b;
        product(queue, m);
        return;
    }
    if (queue.type != DataType::float32) {   // the sum is rounded once
        m.c = scratch(queue, linear_scratch(N, OC));
        m.c_type = DataType::float32;
    }
    product(queue, m);
    for_type(queue.type, [&](auto element) {
        using T = decltype(element);
        ENQUEUE(queue, add_bias<T>, blocks_for(N * OC, ELEMENT_THREADS), ELEMENT_THREADS, 0, as<T>(y), as<float>(m.c),
                as<T>(b), N * OC, OC);
    });
}

Activation activation_of(int activation_function, DataType type, bool fast) {
    switch (activation_function) {
    case PYGPT_GELU: return {exact_gelu_forward, exact_gelu_backward, false};
    case PYGPT_RELU: return {relu_forward, relu_backward, false};
    default: return {gelu_forward, gelu_backward, fast && type == DataType::bfloat16};
    }
}

void linear_activation_forward(Queue &queue, const Activation &activation, void *pre, void *y, const void *x,
                               const void *w, const void *b, int64_t N, int64_t IC, int64_t OC) {
    if (!activation.fused) {
        linear_forward(queue, pre, x, w, b, N, IC, OC);
        activation.forward(queue, y, pre, N * OC);
        return;
    }
    Matmul m = forward_product(queue, y, x, w, N, IC, OC);
    m.bias = b;
    m.pre_gelu = pre;
    product(queue, m);
}

static void weight_backward(Queue &queue, float *dw, float *db, const void *dy, const void *x, int64_t N, int64_t IC,
                            int64_t OC) {
    if (dw) product(queue, weight_product(queue, dw, x, dy, N, IC, OC));
    if (db) add_column_sums(queue, db, dy, N, OC);
}

void linear_backward(Queue &queue, void *dx, float *dw, float *db, const void *dy, const void *x, const void *w,
                     int64_t N, int64_t IC, int64_t OC) {
    if (dx) product(queue, input_product(queue, dx, dy, w, N, IC, OC));
    weight_backward(queue, dw, db, dy, x, N, IC, OC);
}

void activation_linear_backward(Queue &queue, const Activation &activation, void *dpre, void *dx, float *dw, float *db,
                                const void *dy, const void *pre, const void *x, const void *w, int64_t N, int64_t IC,
                                int64_t OC) {
    if (activation.fused) {
        Matmul m = input_product(queue, dpre, dy, w, N, IC, OC);
        m.dgelu = pre;
        product(queue, m);
        weight_backward(queue, dw, db, dy, x, N, IC, OC);
    } else {
        linear_backward(queue, dx, dw, db, dy, x, w, N, IC, OC);
        activation.backward(queue, dpre, dx, pre, N * IC);
    }
}
