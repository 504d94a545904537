/* Muon, csrc/layers/muon.c by the fast products, in which its time is spent. */
#include "../internal.h"
#include "fast.h"

void fast_muon_step(float *w, float *m, const float *dw, float *scratch, int64_t R, int64_t C, int64_t parts, float lr,
                    float momentum, float weight_decay) {
    muon_step_by(fast_matmul, w, m, dw, scratch, R, C, parts, lr, momentum, weight_decay);
}
