/* LayerNorm in CUDA: a warp for each row.
 *
 *   x̂ = (x − μ) r      r = 1/√(σ² + ε)      y = x̂ ⊙ w + b
 *
 * The 32 threads of a warp share a row: thread `lane` has columns lane, lane + 32, ... Each sums its own; warp_sum(x), of
 * reduce.cuh, then gives every thread the sum over the warp, by five exchanges with __shfl_xor_sync. Write that yourself
 * first. All 32 threads have to call it: no thread may leave before, but where the whole warp does. The mean first, then
 * the variance in a second pass; one thread writes mean and rstd.
 *
 * Read: docs/layers/layernorm.md, docs/emulation.md
 */
#include "elements.cuh"
#include "layers.cuh"

void layernorm_forward(Queue &queue, void *y, float *mean, float *rstd,   // (N,C) (N) (N)
                       const void *x, const void *w, const void *b,       // (N,C) (C) (C)
                       int64_t N, int64_t C, float eps) {
    // to be written
}
