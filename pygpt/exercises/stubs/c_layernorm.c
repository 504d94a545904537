/* LayerNorm in C, forward and backward.
 *
 *   forward    x̂ = (x − μ) r      r = 1/√(σ² + ε)      y = x̂ ⊙ w + b
 *   backward   u = w ⊙ dy         dx += r (u − ⟨u⟩ − x̂ ⟨u ⊙ x̂⟩)      dw += Σ_n dy ⊙ x̂      db += Σ_n dy
 *
 * Rows lie C floats apart. σ² = ⟨x²⟩ − μ² would lose its digits in float32 where the mean is large: take it in a second
 * pass. All three gradients are added to what is there.
 *
 * Read: docs/layers/layernorm.md
 */
#include <math.h>

#include "pygpt.h"

void layernorm_forward(float *y, float *mean, float *rstd,                // (N,C) (N) (N)
                       const float *x, const float *w, const float *b,    // (N,C) (C) (C)
                       int64_t N, int64_t C, float eps) {
    // to be written
}

void layernorm_backward(float *dx, float *dw, float *db,                   // += (N,C), += (C), += (C)
                        const float *dy, const float *x, const float *w,   // (N,C) (N,C) (C)
                        const float *mean, const float *rstd, int64_t N, int64_t C) {   // (N) (N)
}
