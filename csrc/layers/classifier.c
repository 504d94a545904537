/* The head: the embedding matrix once more, and cross-entropy.
 *
 *   forward    z = x wteᵀ      losses = cross-entropy(z, targets)
 *   backward   dx = dz wte      dwte += dzᵀ x
 *
 * z is (N,V), the largest tensor of the model by far. So it exists for `rows` rows at a time, and the backward pass
 * recomputes it, together with the losses, and overwrites it with dz: calling only the backward pass saves one product.
 */
#include "../internal.h"

void classifier_forward(const Kernels *k, float *losses,                                      // (N)
                        const float *x, const float *wte, const int32_t *targets,             // (N,C) (V,C) (N)
                        float *logits, int64_t rows, int64_t N, int64_t C, int64_t V) {       // scratch (rows,V)
    for (int64_t n = 0; n < N; n += rows) {
        int64_t count = min64(rows, N - n);
        k->matmul(logits, x + n * C, wte, count, V, C, 0, 1, 0);
        k->cross_entropy_forward(losses + n, logits, targets + n, count, V, V);
    }
}

void classifier_backward(const Kernels *k, float *losses, float *dx, float *dwte,   // (N), (N,C), += (V,C)
                         const float *dlosses, const float *x, const float *wte, const int32_t *targets, float *logits,
                         int64_t rows, int64_t N, int64_t C, int64_t V) {
    for (int64_t n = 0; n < N; n += rows) {
        int64_t count = min64(rows, N - n);
        k->matmul(logits, x + n * C, wte, count, V, C, 0, 1, 0);
        k->cross_entropy_in_place(losses + n, logits, dlosses + n, targets + n, count, V, V);
        k->matmul(dx + n * C, logits, wte, count, C, V, 0, 0, 0);
        k->matmul(dwte, logits, x + n * C, V, C, count, 1, 0, 1);
    }
}
