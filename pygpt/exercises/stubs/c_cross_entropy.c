/* Softmax with cross-entropy in C, row by row.
 *
 *   forward    loss_n = lse_n − z_n,target      lse_n = max_v z_nv + log Σ_v exp(z_nv − max)
 *   backward   dz_nv = dloss_n (exp(z_nv − lse_n) − [v = target_n])
 *
 * Rows of z lie Vp ≥ V floats apart; columns from V on are padding, and their gradient is 0. A negative target is left out:
 * loss 0, gradient 0. Sum in double: V may be 50,257.
 *
 * Read: docs/layers/cross_entropy.md
 */
#include <math.h>

#include "pygpt.h"

void cross_entropy_forward(float *losses,                                    // (N)
                           const float *logits, const int32_t *targets,      // (N,Vp) (N)
                           int64_t N, int64_t V, int64_t Vp) {
    // to be written
}

void cross_entropy_backward(float *dlogits,                                                      // (N,Vp)
                            const float *dlosses, const float *logits, const int32_t *targets,   // (N) (N,Vp) (N)
                            int64_t N, int64_t V, int64_t Vp) {
    // to be written
}
