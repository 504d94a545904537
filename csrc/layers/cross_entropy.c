/* Softmax with cross-entropy: minus the log-probability of the target.
 *
 *   forward    loss_n = lse_n − z_n,target      lse_n = max_v z_nv + log Σ_v exp(z_nv − max)
 *   backward   dz_nv = dloss_n (exp(z_nv − lse_n) − [v = target])
 *
 * −log p would lose the loss of a sure prediction, and overflow on a hopeless one; lse − z does neither. Rows of z lie
 * Vp ≥ V floats apart. A negative target is left out.
 */
#include <math.h>

#include "../internal.h"

/* In two parts, because a float holds neither their sum nor what is subtracted from it to the digits that a gradient needs:
 * lse = largest + log_sum. */
typedef struct {
    float largest;
    double log_sum;
} LogSumExp;

static LogSumExp log_sum_exp(const float *z, int64_t V) {
    float largest = z[0];
    for (int64_t v = 1; v < V; v++) largest = z[v] > largest ? z[v] : largest;
    double sum = 0.0;
    for (int64_t v = 0; v < V; v++) sum += expf(z[v] - largest);
    return (LogSumExp){largest, log(sum)};
}

void cross_entropy_forward(float *losses,                                    // (N)
                           const float *logits, const int32_t *targets,      // (N,Vp) (N)
                           int64_t N, int64_t V, int64_t Vp) {
    #pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        losses[n] = 0.0f;
        if (targets[n] < 0) continue;
        const float *z = logits + n * Vp;
        LogSumExp lse = log_sum_exp(z, V);
        losses[n] = (float)(lse.log_sum + ((double)lse.largest - z[targets[n]]));
    }
}

/* dz of one row; z may be dz. */
static void gradient_of_row(float *dz, const float *z, LogSumExp lse, float dloss, int32_t target, int64_t V,
                            int64_t Vp) {
    float log_sum = (float)lse.log_sum;
    for (int64_t v = 0; v < V; v++) dz[v] = target < 0 ? 0.0f : dloss * expf(z[v] - lse.largest - log_sum);
    for (int64_t v = V; v < Vp; v++) dz[v] = 0.0f;
    if (target >= 0) dz[target] -= dloss;
}

void cross_entropy_backward(float *dlogits,                                                             // (N,Vp)
                            const float *dlosses, const float *logits, const int32_t *targets,   // (N) (N,Vp) (N)
                            int64_t N, int64_t V, int64_t Vp) {
    #pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        const float *z = logits + n * Vp;
        gradient_of_row(dlogits + n * Vp, z, log_sum_exp(z, V), dlosses[n], targets[n], V, Vp);
    }
}

void cross_entropy_in_place(float *losses, float *logits,                          // (N) (N,Vp)
                            const float *dlosses, const int32_t *targets,          // (N) (N)
                            int64_t N, int64_t V, int64_t Vp) {
    #pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        float *z = logits + n * Vp;
        LogSumExp lse = log_sum_exp(z, V);
        losses[n] = targets[n] < 0 ? 0.0f : (float)(lse.log_sum + ((double)lse.largest - z[targets[n]]));
        gradient_of_row(z, z, lse, dlosses[n], targets[n], V, Vp);
    }
}
