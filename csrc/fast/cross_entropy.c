/* Softmax with cross-entropy, csrc/layers/cross_entropy.c in vectors.
 *
 *   forward    loss_n = lse_n − z_n,target      lse_n = max_v z_nv + log Σ_v exp(z_nv − max)
 *   backward   dz_nv += dloss_n (exp(z_nv − lse_n) − [v = target])
 *
 * A NaN may pass by the maximum, but not by the sum.
 */
#include <math.h>

#include "../internal.h"
#include "fast.h"
#include "vector_math.h"

typedef double Doubles __attribute__((vector_size(8 * LANES)));

/* lse = largest + log_sum. Of a sure prediction, log_sum is small, and exact where lse would be rounded. */
typedef struct {
    float largest;
    double log_sum;
} LogSumExp;

static LogSumExp log_sum_exp(const float *z, int64_t V) {
    Floats largest_lanes = broadcast(-INFINITY);
    int64_t whole = V / LANES * LANES;
    for (int64_t v = 0; v < whole; v += LANES) largest_lanes = larger(largest_lanes, load(z + v));
    float largest = max_lanes(largest_lanes);
    for (int64_t v = whole; v < V; v++) largest = z[v] > largest ? z[v] : largest;

    Doubles sum = {0.0};   // a sure prediction's loss is what the small terms add to exp(0) = 1
    for (int64_t v = 0; v < V; v += LANES) {
        Floats e = vector_exp(load_first(z + v, V - v) - largest);
        sum += __builtin_convertvector(V - v < LANES ? keep_first(e, V - v) : e, Doubles);
    }
    double total = 0.0;
    for (int lane = 0; lane < LANES; lane++) total += sum[lane];
    return (LogSumExp){largest, log(total)};
}

void fast_cross_entropy_forward(float *losses, const float *logits, const int32_t *targets, int64_t N, int64_t V,
                                int64_t Vp) {
    #pragma omp parallel for schedule(dynamic)
    for (int64_t n = 0; n < N; n++) {
        const float *z = logits + n * Vp;
        if (targets[n] < 0) {
            losses[n] = 0.0f;
            continue;
        }
        LogSumExp lse = log_sum_exp(z, V);
        losses[n] = (float)((double)lse.largest - z[targets[n]] + lse.log_sum);
    }
}

void fast_cross_entropy_backward(float *dlogits, const float *dlosses, const float *logits, const int32_t *targets,
                                 int64_t N, int64_t V, int64_t Vp) {
    #pragma omp parallel for schedule(dynamic)
    for (int64_t n = 0; n < N; n++) {
        if (targets[n] < 0) continue;
        const float *z = logits + n * Vp;
        float *dz = dlogits + n * Vp;
        LogSumExp lse = log_sum_exp(z, V);
        float log_sum = (float)lse.log_sum;
        for (int64_t v = 0; v < V; v += LANES) {
            Floats p = vector_exp(load_first(z + v, V - v) - lse.largest - log_sum);
            store_first(dz + v, load_first(dz + v, V - v) + dlosses[n] * p, V - v);
        }
        dz[targets[n]] -= dlosses[n];
    }
}
