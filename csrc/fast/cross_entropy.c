/* Softmax with cross-entropy, csrc/layers/cross_entropy.c in vectors.
 *
 *   forward    loss_n = lse_n − z_n,target      lse_n = max_v z_nv + log Σ_v exp(z_nv − max)
 *   backward   dz_nv = dloss_n (exp(z_nv − lse_n) − [v = target])
 *
 * A NaN may pass by the maximum, but not by the sum.
 */
#include <math.h>
#include <string.h>

#include "../internal.h"
#include "fast.h"
#include "vector_math.h"

enum { AT_ONCE = DIVIDES_WORK(1 << 14, 0) };   // logits, or one row, that a thread takes

typedef double Doubles __attribute__((vector_size(8 * LANES)));

/* Half of them, which is what fits a register: gcc would keep sums of twice the size in memory. */
typedef double HalfDoubles __attribute__((vector_size(4 * LANES)));

INLINE void add_in_double(HalfDoubles sum[2], Floats x) {
    Doubles doubles = __builtin_convertvector(x, Doubles);
    HalfDoubles half[2];
    memcpy(half, &doubles, sizeof half);
    sum[0] += half[0];
    sum[1] += half[1];
}

/* lse = largest + log_sum. Of a sure prediction, log_sum is small, and exact where lse would be rounded. */
typedef struct {
    float largest;
    double log_sum;
} LogSumExp;

static float largest_of(const float *z, int64_t V) {
    enum { SIDE_BY_SIDE = 4, STEP = SIDE_BY_SIDE * LANES };   // one alone would wait for itself
    Floats lanes[SIDE_BY_SIDE];
    UNROLL
    for (int j = 0; j < SIDE_BY_SIDE; j++) lanes[j] = broadcast(-INFINITY);
    int64_t whole = V / STEP * STEP;
    for (int64_t v = 0; v < whole; v += STEP) {
        UNROLL
        for (int j = 0; j < SIDE_BY_SIDE; j++) lanes[j] = larger(lanes[j], load(z + v + j * LANES));
    }
    float largest = max_lanes(larger(larger(lanes[0], lanes[1]), larger(lanes[2], lanes[3])));
    for (int64_t v = whole; v < V; v++) largest = z[v] > largest ? z[v] : largest;
    return largest;
}

/* Σ_v e_v, e_v = exp(z_v − largest); e may be z, or NULL where only the sum is wanted. */
INLINE double sum_exp(float *e, const float *z, int64_t V, float largest) {
    HalfDoubles sum[2] = {{0.0}};   // a sure prediction's loss is what the small terms add to exp(0) = 1
    int64_t whole = V / LANES * LANES, rest = V - whole;
    for (int64_t v = 0; v < whole; v += LANES) {
        Floats ev = vector_exp(load(z + v) - largest);
        if (e) store(e + v, ev);
        add_in_double(sum, ev);
    }
    Floats last = keep_first(vector_exp(load_first(z + whole, rest) - largest), rest);
    if (e) store_first(e + whole, last, rest);
    add_in_double(sum, last);
    double total = 0.0;
    for (int lane = 0; lane < LANES; lane++) total += sum[lane / (LANES / 2)][lane % (LANES / 2)];
    return total;
}

static LogSumExp fast_log_sum_exp(const float *z, int64_t V) {
    float largest = largest_of(z, V);
    return (LogSumExp){largest, log(sum_exp(NULL, z, V, largest))};
}

void fast_cross_entropy_forward(float *losses, const float *logits, const int32_t *targets, int64_t N, int64_t V,
                                int64_t Vp) {
    #pragma omp parallel for schedule(dynamic, AT_ONCE / V + 1)
    for (int64_t n = 0; n < N; n++) {
        const float *z = logits + n * Vp;
        if (targets[n] < 0) {
            losses[n] = 0.0f;
            continue;
        }
        LogSumExp lse = fast_log_sum_exp(z, V);
        losses[n] = (float)((double)lse.largest - z[targets[n]] + lse.log_sum);
    }
}

void fast_cross_entropy_backward(float *dlogits, const float *dlosses, const float *logits, const int32_t *targets,
                                 int64_t N, int64_t V, int64_t Vp) {
    #pragma omp parallel for schedule(dynamic, AT_ONCE / V + 1)
    for (int64_t n = 0; n < N; n++) {
        const float *z = logits + n * Vp;
        float *dz = dlogits + n * Vp;
        if (targets[n] < 0) {
            memset(dz, 0, (size_t)Vp * sizeof *dz);
            continue;
        }
        LogSumExp lse = fast_log_sum_exp(z, V);
        float log_sum = (float)lse.log_sum;
        for (int64_t v = 0; v < V; v += LANES) {
            Floats p = vector_exp(load_first(z + v, V - v) - lse.largest - log_sum);
            store_first(dz + v, dlosses[n] * p, V - v);
        }
        dz[targets[n]] -= dlosses[n];
        for (int64_t v = V; v < Vp; v++) dz[v] = 0.0f;
    }
}

/* Each exponential is computed once, and takes the place of its logit. */
void fast_cross_entropy_in_place(float *losses, float *logits, const float *dlosses, const int32_t *targets, int64_t N,
                                 int64_t V, int64_t Vp) {
    #pragma omp parallel for schedule(dynamic, AT_ONCE / V + 1)
    for (int64_t n = 0; n < N; n++) {
        float *z = logits + n * Vp;
        losses[n] = 0.0f;
        if (targets[n] < 0) {
            memset(z, 0, (size_t)Vp * sizeof *z);
            continue;
        }
        float largest = largest_of(z, V);
        double below = (double)largest - z[targets[n]], sum = sum_exp(z, z, V, largest);
        losses[n] = (float)(below + log(sum));
        float factor = (float)(dlosses[n] / sum);
        for (int64_t v = 0; v < V; v += LANES) store_first(z + v, factor * load_first(z + v, V - v), V - v);
        z[targets[n]] -= dlosses[n];
        for (int64_t v = V; v < Vp; v++) z[v] = 0.0f;
    }
}
