/* ReLU (Nair & Hinton 2010), with the derivative 0 at 0.
 *
 *   forward    y = max(x, 0)
 *   backward   dx = dy where x > 0, otherwise 0
 */
#include "../internal.h"

void relu_forward(float *y, const float *x, int64_t n) {
    #pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) y[i] = x[i] > 0.0f ? x[i] : 0.0f;
}

void relu_backward(float *dx, const float *dy, const float *x, int64_t n) {
    #pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) dx[i] = x[i] > 0.0f ? dy[i] : 0.0f;
}
