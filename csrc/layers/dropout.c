/* Dropout: an element is zero with probability p, and scaled by 1/(1−p) otherwise, so that its mean stays.
 *
 *   forward    y_i = m_i x_i          m_i = 0 with probability p, else 1/(1−p)
 *   backward   dx_i = m_i dy_i
 *
 * The mask m is drawn again in the backward pass: philox.h gives the same number for the same element.
 */
#include "../internal.h"
#include "../philox.h"

void dropout_forward(float *y, const float *x, int64_t n, const Dropout *dropout) {
    #pragma omp parallel for
    for (int64_t i = 0; i < n; i++) y[i] = dropout_factor((uint64_t)i, dropout) * x[i];
}

void dropout_backward(float *dx, const float *dy, int64_t n, const Dropout *dropout) {
    #pragma omp parallel for
    for (int64_t i = 0; i < n; i++) dx[i] = dropout_factor((uint64_t)i, dropout) * dy[i];
}
