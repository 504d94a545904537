/* Softmax with cross-entropy: minus the log-probability of the target.
 *
 *   forward    loss_n = lse_n − z_n,target      lse_n = max_v z_nv + log Σ_v exp(z_nv − max)
 *   backward   dz_nv += dloss_n (exp(z_nv − lse_n) − [v = target])
 *
 * −log p would lose the loss of a sure prediction, and overflow on a hopeless one; lse − z does neither. Rows of z lie
 * Vp ≥ V floats apart. A negative target is left out.
 */
#include <math.h>

#include "../internal.h"

static double log_sum_exp(const float *z, int64_t V) {
    float largest = z[0];
    for (int64_t v = 1; v < V; v++) largest = z[v] > largest ? z[v] : largest;
    double sum = 0.0;
    for (int64_t v = 0; v < V; v++) sum += expf(z[v] - largest);
    return largest + log(sum);
}

void cross_entropy_forward(float *losses,                                    // (N)
                           const float *logits, const int32_t *targets,      // (N,Vp) (N)
                           int64_t N, int64_t V, int64_t Vp) {
    #pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        const float *z = logits + n * Vp;
        losses[n] = targets[n] < 0 ? 0.0f : (float)(log_sum_exp(z, V) - z[targets[n]]);
    }
}

void cross_entropy_backward(float *dlogits,                                                             // (N,Vp)
                            const float *dlosses, const float *logits, const int32_t *targets,   // (N) (N,Vp) (N)
                            int64_t N, int64_t V, int64_t Vp) {
    #pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        if (targets[n] < 0) continue;
        const float *z = logits + n * Vp;
        float *dz = dlogits + n * Vp;
        float lse = (float)log_sum_exp(z, V);
        for (int64_t v = 0; v < V; v++) dz[v] += dlosses[n] * expf(z[v] - lse);
        dz[targets[n]] -= dlosses[n];
    }
}
