/* Stochastic gradient descent, with momentum (Polyak 1964) or without, on all tensors at once.
 *
 *   m ← μ m + g            without momentum m is g
 *   w ← w − lr (m + λ w)
 */
#include "elements.cuh"
#include "layers.cuh"

namespace {

constexpr int W = 4;   // elements of a thread
static_assert(UPDATE_GROUP % W == 0, "a thread's elements are treated alike");

__global__ void __launch_bounds__(ELEMENT_THREADS)
    sgd(float *w, float *m, const float *dw, const uint8_t *treatment, int64_t n, SGD update) {
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x) * W;
    if (first >= n) return;
    const uint8_t how = treatment[first / UPDATE_GROUP];
    if (how == UPDATE_SKIP) return;
    const float decay = how == UPDATE_PLAIN ? 0.0f : update.weight_decay;
    float wi[W], direction[W];
    load<W>(wi, w + first);
    load<W>(direction, dw + first);
    if (m) {
        float mi[W];
        load<W>(mi, m + first);
        for (int i = 0; i < W; i++) direction[i] += update.momentum * mi[i];
        store<W>(m + first, direction);
    }
    for (int i = 0; i < W; i++) wi[i] -= update.lr * (direction[i] + decay * wi[i]);
    store<W>(w + first, wi);
}

} // namespace

void sgd_step(Queue &queue, float *w, float *m, const float *dw, const uint8_t *treatment, int64_t n, const SGD &s) {
    ENQUEUE(queue, sgd, blocks_for(n, ELEMENT_THREADS * W), ELEMENT_THREADS, 0, w, m, dw, treatment, n, s);
}
