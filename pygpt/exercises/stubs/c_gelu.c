/* GELU in C, forward and backward.
 *
 *   forward    y = ½ x (1 + t)      t = tanh(u)      u = √(2/π) (x + 0.044715 x³)
 *   backward   dx = dy (½ (1 + t) + ½ x (1 − t²) u′)      u′ = √(2/π) (1 + 3 · 0.044715 x²)
 *
 * One loop each. In float32: tanhf, and constants with an f, or every element goes through double.
 *
 * Read: docs/layers/gelu.md
 */
#include <math.h>

#include "pygpt.h"

void gelu_forward(float *y, const float *x, int64_t n) {
    // to be written
}

void gelu_backward(float *dx, const float *dy, const float *x, int64_t n) {
    // to be written
}
