/* AdamW (Loshchilov & Hutter 2019), and what clipping needs.
 *
 *   m ← β₁ m + (1 − β₁) g        m̂ = m / (1 − β₁ᵗ)
 *   v ← β₂ v + (1 − β₂) g²       v̂ = v / (1 − β₂ᵗ)
 *   w ← w − lr (m̂ / (√v̂ + ε) + λ w)
 */
#include <math.h>

#include "../internal.h"
#include "../threads.h"

enum { STRETCH = DIVIDES_WORK(1 << 14, 128) };   // summed by one thread at a time; divides PYGPT_SUMMED_APART

void adamw_step(float *w, float *m, float *v, const float *dw, int64_t n, float lr, float beta1, float beta2, float eps,
                float weight_decay, int64_t step) {
    float correction1 = (float)(1.0 - pow(beta1, (double)step)), correction2 = (float)(1.0 - pow(beta2, (double)step));
    #pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) {
        m[i] = beta1 * m[i] + (1.0f - beta1) * dw[i];
        v[i] = beta2 * v[i] + (1.0f - beta2) * dw[i] * dw[i];
        float m_hat = m[i] / correction1, v_hat = v[i] / correction2;
        w[i] -= lr * (m_hat / (sqrtf(v_hat) + eps) + weight_decay * w[i]);
    }
}

static double sum_of_stretch(const float *x, int64_t n, int64_t stretch) {
    double sum = 0.0;
    #pragma omp simd reduction(+ : sum)
    for (int64_t i = stretch * STRETCH; i < min64((stretch + 1) * STRETCH, n); i++) sum += (double)x[i] * x[i];
    return sum;
}

/* In double, because a float32 square overflows from 1.8e19 on, and over stretches of fixed size, because the order of a sum may
 * not depend on the number of threads. */
double sum_of_squares(const float *x, int64_t n) {
    int64_t stretches = divide_up(n, STRETCH);
    double total = 0.0;
    #pragma omp parallel for ordered schedule(static, 1)
    for (int64_t s = 0; s < stretches; s++) {
        double sum = sum_of_stretch(x, n, s);
        #pragma omp ordered
        total += sum;
    }
    return total;
}

int64_t pygpt_sums_of_squares(double *sums, const float *x, int64_t n) {
    int64_t stretches = divide_up(n, STRETCH);
    if (!sums) return stretches;
    use_threads();
    #pragma omp parallel for
    for (int64_t s = 0; s < stretches; s++) sums[s] = sum_of_stretch(x, n, s);
    return stretches;
}

void scale(float *x, float factor, int64_t n) {
    #pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) x[i] *= factor;
}
