/* Attention's forward pass in C, without a T × T matrix.
 *
 *   s_tu = scale q_t·k_u  (u ≤ t)     lse_t = log Σ_u exp(s_tu)     P_tu = exp(s_tu − lse_t)     y_t = Σ_u P_tu v_u
 *
 * For each sequence b and head h. The query of position t begins at qkv + (b T + t) 3 C + h HS with C = NH HS, its key C
 * floats on, its value 2 C floats on. One row of scores at a time is enough: or none, if the sums are corrected
 * whenever a larger score appears, as FlashAttention does. Here dropout is NULL, and causal is 1.
 *
 * Read: docs/layers/attention.md
 */
#include <math.h>

#include "pygpt.h"

void attention_forward(float *y, float *lse,      // (B,T,NH,HS) (B,NH,T)
                       const float *qkv,          // (B,T,3,NH,HS)
                       int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal, const Dropout *dropout) {
    // to be written
}
