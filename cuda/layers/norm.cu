/* What clipping needs: the norm of all gradients, and a factor on them.
 *
 *   norm = √Σ x²      x ← x min(1, max_norm / norm)
 *
 * Squares are summed in double, because a float32 square overflows from 1.8e19 on. Everything stays on the device.
 */
#include "elements.cuh"
#include "layers.cuh"
#include "sums.cuh"

namespace {

constexpr int MOST_BLOCKS = DIVIDES_WORK(512, 32);   // each leaves a partial sum
constexpr int W = 4;

__global__ void __launch_bounds__(ELEMENT_THREADS) partial_sums_of_squares(double *partial, const float *x, int64_t n) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * ELEMENT_THREADS * W;
    double sum = 0;
    for (int64_t i = (static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x) * W; i < n; i += stride) {
        if (i + W <= n) {
            float xi[W];
            load<W>(xi, x + i);
            for (int k = 0; k < W; k++) sum += static_cast<double>(xi[k]) * static_cast<double>(xi[k]);
        } else {
            for (int64_t k = i; k < n; k++) sum += static_cast<double>(x[k]) * static_cast<double>(x[k]);
        }
    }
    sum = block_sum_double(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(MOST_BLOCKS)
    sum_partial(double *result, const double *partial, int blocks, bool root) {
    const int i = static_cast<int>(threadIdx.x);
    const double sum = block_sum_double(i < blocks ? partial[i] : 0.0);
    if (i == 0) *result = root ? sqrt(sum) : sum;
}

/* With a norm on the device: the factor that clips to max_norm. */
__global__ void __launch_bounds__(ELEMENT_THREADS)
    scale_elements(float *x, float factor, const double *norm, float max_norm, int64_t n) {
    if (norm) {
        if (!(*norm > static_cast<double>(max_norm))) return;
        factor = static_cast<float>(static_cast<double>(max_norm) / *norm);
    }
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
    if (i < n) x[i] *= factor;
}

void sum(Queue &queue, double *result, const float *x, int64_t n, bool root) {
    double *const partial = as<double>(scratch(queue, norm_scratch()));
    const auto blocks =
        static_cast<unsigned>(max(int64_t{1}, min(ceil_div<int64_t>(n, ELEMENT_THREADS * W), int64_t{MOST_BLOCKS})));
    ENQUEUE(queue, partial_sums_of_squares, blocks, ELEMENT_THREADS, 0, partial, x, n);
    ENQUEUE(queue, sum_partial, 1, MOST_BLOCKS, 0, result, partial, static_cast<int>(blocks), root);
}

} // namespace

size_t norm_scratch() {
    return MOST_BLOCKS * sizeof(double);
}

void sum_of_squares(Queue &queue, double *result, const float *x, int64_t n) {
    sum(queue, result, x, n, false);
}

void scale(Queue &queue, float *x, float factor, int64_t n) {
    ENQUEUE(queue, scale_elements, blocks_for(n, ELEMENT_THREADS), ELEMENT_THREADS, 0, x, factor, nullptr, 0.0f, n);
}

void clip_norm(Queue &queue, double *norm, float *x, int64_t n, float max_norm) {
    sum(queue, norm, x, n, true);
    if (max_norm > 0.0f)
        ENQUEUE(queue, scale_elements, blocks_for(n, ELEMENT_THREADS), ELEMENT_THREADS, 0, x, 1.0f, norm, max_norm, n);
}
