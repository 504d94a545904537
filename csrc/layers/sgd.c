/* Stochastic gradient descent, with momentum (Polyak 1964) or without.
 *
 *   m ← μ m + g            without momentum m is g
 *   w ← w − lr (m + λ w)
 */
#include "../internal.h"

void sgd_step(float *w, float *m, const float *dw, int64_t n, float lr, float momentum, float weight_decay) {
    if (m) {
        #pragma omp parallel for simd
        for (int64_t i = 0; i < n; i++) m[i] = momentum * m[i] + dw[i];
    }
    const float *direction = m ? m : dw;
    #pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) w[i] -= lr * (direction[i] + weight_decay * w[i]);
}
