/* Sums of whole gradients: of micro-batches, and of ranks. */
#include "elements.cuh"
#include "layers.cuh"

namespace {

constexpr int W = 4;

__global__ void __launch_bounds__(ELEMENT_THREADS) add_elements(float *y, const float *x, int64_t n) {
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x) * W;
    if (first + W <= n) {
        float a[W], b[W];
        load<W>(a, y + first);
        load<W>(b, x + first);
        for (int k = 0; k < W; k++) a[k] += b[k];
        store<W>(y + first, a);
    } else {
        for (int64_t i = first; i < n; i++) y[i] += x[i];
    }
}

} // namespace

void add_to(Queue &queue, float *y, const float *x, int64_t n) {
    if (n > 0) ENQUEUE(queue, add_elements, blocks_for(n, ELEMENT_THREADS * W), ELEMENT_THREADS, 0, y, x, n);
}
