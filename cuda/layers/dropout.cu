/* Dropout: an element is zero with probability p, and scaled by 1/(1−p) otherwise, so that its mean stays.
 *
 *   forward    y_i = m_i x_i          m_i = 0 with probability p, else 1/(1−p)
 *   backward   dx_i = m_i dy_i
 *
 * The mask m is drawn again in the backward pass: philox.cuh gives the same number for the same element.
 */
#include "elementwise.cuh"

namespace {

struct Mask {
    DropoutMask mask;

    __device__ void operator()(float (&y)[1], const float (&x)[1][1], int64_t first) const {
        y[0] = dropout_factor(static_cast<uint64_t>(first), mask) * x[0][0];
    }
    template <int W> __device__ void operator()(float (&y)[W], const float (&x)[1][W], int64_t first) const {
        static_assert(W % 4 == 0, "whole draws");
        for (int group = 0; group < W; group += 4) {
            const uint64_t index = static_cast<uint64_t>(first + group) / 4;
            const PhiloxWords words = philox4x32(index, mask.site, mask.draw->step, mask.draw->seed);
            for (int i = 0; i < 4; i++)
                y[group + i] = words.word[i] < mask.threshold ? 0.0f : mask.scale * x[0][group + i];
        }
    }
};

} // namespace

void dropout_forward(Queue &queue, void *y, const void *x, int64_t n, const DropoutMask &dropout) {
    if (dropout.draw) {
        for_each_element(queue, "dropout_forward", n, Mask{dropout}, y, x);
    } else {
        copy(queue, y, x, n);
    }
}

void dropout_backward(Queue &queue, void *dx, const void *dy, int64_t n, const DropoutMask &dropout) {
    dropout_forward(queue, dx, dy, n, dropout);
}
