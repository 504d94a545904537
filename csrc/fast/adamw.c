/* AdamW, csrc/layers/adamw.c with one division and one root an element.
 *
 *   m ← β₁ m + (1 − β₁) g      v ← β₂ v + (1 − β₂) g²      w ← w − lr (m̂ / (√v̂ + ε) + λ w)
 */
#include <math.h>

#include "../internal.h"
#include "fast.h"

enum { SMALL = DIVIDES_WORK(1 << 13, 0) };

void fast_adamw_step(float *w, float *m, float *v, const float *dw, int64_t n, float lr, float beta1, float beta2,
                     float eps, float weight_decay, int64_t step) {
    float scale1 = (float)(1.0 / (1.0 - pow(beta1, (double)step)));   // m̂ = scale1 m
    float scale2 = (float)(1.0 / (1.0 - pow(beta2, (double)step)));
    #pragma omp parallel for simd if (n > SMALL)
    for (int64_t i = 0; i < n; i++) {
        m[i] = beta1 * m[i] + (1.0f - beta1) * dw[i];
        v[i] = beta2 * v[i] + (1.0f - beta2) * dw[i] * dw[i];
        w[i] -= lr * (scale1 * m[i] / (sqrtf(scale2 * v[i]) + eps) + weight_decay * w[i]);
    }
}
