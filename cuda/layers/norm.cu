/* What clipping needs: the norm of all gradients, and a factor on them.
 *
 *   norm = √Σ x²      x ← x min(1, max_norm / norm)
 *
 * Squares are summed in double, because a float32 square overflows from 1.8e19 on. Everything stays on the device. Each block
 * sums one stretch, whose place does not depend on how much there is: so ranks that have parts of a gradient find its norm to
 * the bit.
 */
#include "elements.cuh"
#include "layers.cuh"
#include "sums.cuh"

namespace {

constexpr int W = 4;

__global__ void __launch_bounds__(ELEMENT_THREADS) partial_sums_of_squares(double *partial, const float *x, int64_t n) {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * PYGPT_SUMMED_APART,
                  last = min(n, first + PYGPT_SUMMED_APART);
    double sum = 0;
    for (int64_t i = first + threadIdx.x * W; i < last; i += ELEMENT_THREADS * W) {
        if (i + W <= last) {
            float xi[W];
            load<W>(xi, x + i);
            for (int k = 0; k < W; k++) sum += static_cast<double>(xi[k]) * static_cast<double>(xi[k]);
        } else {
            for (int64_t k = i; k < last; k++) sum += static_cast<double>(x[k]) * static_cast<double>(x[k]);
        }
    }
    sum = block_sum_double(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(SINGLE_BLOCK_THREADS)
    sum_partial(double *result, const double *partial, int64_t count, bool root) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += SINGLE_BLOCK_THREADS) sum += partial[i];
    sum = block_sum_double(sum);
    if (threadIdx.x == 0) *result = root ? sqrt(sum) : sum;
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

void sum_all(Queue &queue, double *result, const float *x, int64_t n, bool root) {
    double *const partial = as<double>(scratch(queue, norm_scratch(n)));
    sums_of_squares(queue, partial, x, n);
    ENQUEUE(queue, sum_partial, 1, SINGLE_BLOCK_THREADS, 0, result, partial, stretches(n), root);
}

} // namespace

int64_t stretches(int64_t n) {
    return ceil_div<int64_t>(n, PYGPT_SUMMED_APART);
}

size_t norm_scratch(int64_t n) {
    return static_cast<size_t>(stretches(n)) * sizeof(double);
}

void sums_of_squares(Queue &queue, double *sums, const float *x, int64_t n) {
    if (n > 0)
        ENQUEUE(queue, partial_sums_of_squares, static_cast<unsigned>(stretches(n)), ELEMENT_THREADS, 0, sums, x, n);
}

void sum_of_squares(Queue &queue, double *result, const float *x, int64_t n) {
    sum_all(queue, result, x, n, false);
}

void scale(Queue &queue, float *x, float factor, int64_t n) {
    ENQUEUE(queue, scale_elements, blocks_for(n, ELEMENT_THREADS), ELEMENT_THREADS, 0, x, factor, nullptr, 0.0f, n);
}

void norm_of_sums(Queue &queue, double *norm, const double *sums, int64_t count) {
    ENQUEUE(queue, sum_partial, 1, SINGLE_BLOCK_THREADS, 0, norm, sums, count, true);
}

void clip(Queue &queue, float *x, const double *norm, int64_t n, float max_norm) {
    if (max_norm > 0.0f && n > 0)
        ENQUEUE(queue, scale_elements, blocks_for(n, ELEMENT_THREADS), ELEMENT_THREADS, 0, x, 1.0f, norm, max_norm, n);
}

void clip_norm(Queue &queue, double *norm, float *x, int64_t n, float max_norm) {
    sum_all(queue, norm, x, n, true);
    clip(queue, x, norm, n, max_norm);
}
