/* Residual connection: the branch's output is added to its input, so the gradient reaches both unchanged.
 *
 *   forward    y = x1 + x2
 *   backward   dx1 = dy      dx2 = dy
 */
#include "../internal.h"

void residual_forward(float *y, const float *x1, const float *x2, int64_t n) {
    #pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) y[i] = x1[i] + x2[i];
}

void residual_backward(float *dx1, float *dx2, const float *dy, int64_t n) {
    #pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) {
        dx1[i] = dy[i];
        dx2[i] = dy[i];
    }
}
