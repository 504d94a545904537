/* Rotary position embedding (Su et al. 2021): queries and keys are turned by angles that grow with the position t.
 *
 *   forward    y_i = x_i cos θ_ti − x_j sin θ_ti      y_j = x_j cos θ_ti + x_i sin θ_ti      j = i + HS/2,  i < HS/2
 *   backward   the same with −θ
 *              θ_ti = t / 10000^(2i/HS)
 *
 * Values stay. A thread has a pair of channels in all heads of a row, so that it finds its angle once.
 */
#include "rotary.cuh"
#include "elements.cuh"
#include "layers.cuh"

namespace {

template <class T>
__global__ void __launch_bounds__(ELEMENT_THREADS)
    rotate(T *y, const T *x, int64_t N, int64_t length, int64_t NH, int64_t HS, int sign) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x, half = HS / 2;
    if (at >= N * half) return;
    const int64_t n = at / half, i = at % half;
    const Turn turn(static_cast<double>(sign * (n % length)), i, HS);
    y += n * 3 * NH * HS + i;
    x += n * 3 * NH * HS + i;
    for (int64_t h = 0; h < 2 * NH; h++) turn(y + h * HS, x + h * HS, half);
    for (int64_t h = 2 * NH; h < 3 * NH; h++) {
        y[h * HS] = x[h * HS];
        y[h * HS + half] = x[h * HS + half];
    }
}

void rotate_all(Queue &queue, void *y, const void *x, int64_t B, int64_t T, int64_t NH, int64_t HS, int sign) {
    for_type(queue.type, [&](auto element) {
        using E = decltype(element);
        ENQUEUE(queue, rotate<E>, blocks_for(B * T * (HS / 2), ELEMENT_THREADS), ELEMENT_THREADS, 0, as<E>(y), as<E>(x),
                B * T, T, NH, HS, sign);
    });
}

}   // namespace

void rotary_forward(Queue &queue, void *y, const void *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS) {
    rotate_all(queue, y, qkv, B, T, NH, HS, 1);
}

void rotary_backward(Queue &queue, void *dqkv, const void *dy, int64_t B, int64_t T, int64_t NH, int64_t HS) {
    rotate_all(queue, dqkv, dy, B, T, NH, HS, -1);
}
