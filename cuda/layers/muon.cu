/* Muon (Jordan et al. 2024): the momentum of a matrix, made nearly orthogonal.
 *
 *   m ← μ m + g        u = g + μ m        X = u / (‖u‖ + ε)
 *   five times:        X ← (a I + b A + c A²) X        A = X Xᵀ        (Newton–Schulz)
 *   w ← w − lr (√max(1, c/R) X + λ w)
 *
 * w: (R,c), inputs by outputs; ‖·‖ is Frobenius's norm. A matrix with more rows than columns is multiplied from the right, by
 * the polynomial of Xᵀ X, which is smaller and gives the same. The products are of float32, whatever the queue's type.
 */
#include "elements.cuh"
#include "layers.cuh"

#include <cmath>
#include <utility>

namespace {

constexpr float A1 = 3.4445f, A2 = -4.7750f, A3 = 2.0315f;   // a, b, c
constexpr float EPSILON = 1e-7f;
constexpr int ITERATIONS = 5;

__device__ inline int64_t element() {
    return static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
}

/* m of one of the matrices in rows of C floats, and its u, dense. */
__global__ void __launch_bounds__(ELEMENT_THREADS)
    nesterov(float *u, float *m, const float *dw, int64_t n, int64_t columns, int64_t C, float momentum) {
    const int64_t i = element();
    if (i >= n) return;
    const int64_t at = i / columns * C + i % columns;
    const float g = dw[at], next = momentum * m[at] + g;
    m[at] = next;
    u[i] = g + momentum * next;
}

__global__ void __launch_bounds__(ELEMENT_THREADS) divide_by_norm(float *x, const double *sum_of_squares, int64_t n) {
    const int64_t i = element();
    if (i < n) x[i] /= static_cast<float>(sqrt(*sum_of_squares)) + EPSILON;
}

/* square (n,n), that of a, becomes a I + b A + c A². */
__global__ void __launch_bounds__(ELEMENT_THREADS) polynomial(float *square, const float *a, int64_t n) {
    const int64_t i = element();
    if (i >= n * n) return;
    square[i] = A2 * a[i] + A3 * square[i] + (i / n == i % n ? A1 : 0.0f);
}

__global__ void __launch_bounds__(ELEMENT_THREADS)
    subtract(float *w, const float *x, int64_t n, int64_t columns, int64_t C, float factor, Muon update) {
    const int64_t i = element();
    if (i >= n) return;
    float *const wi = w + i / columns * C + i % columns;
    *wi -= update.lr * (factor * x[i] + update.weight_decay * *wi);
}

} // namespace

void muon_step(Queue &queue, float *w, float *m, const float *dw, float *scratch, int64_t R, int64_t C, int64_t parts,
               const Muon &s) {
    const int64_t columns = C / parts, n = R * columns, shorter = min(R, columns);
    const bool wide = R <= columns;
    const unsigned blocks = blocks_for(n, ELEMENT_THREADS);
    const float factor = std::sqrt(static_cast<float>(max(columns, R)) / static_cast<float>(R));   // √max(1, columns/R)
    for (int64_t part = 0; part < parts; part++) {
        float *x = scratch, *y = x + n, *const gram = y + n, *const square = gram + shorter * shorter;
        double *const norm = reinterpret_cast<double *>(scratch + 2 * (n + shorter * shorter));
        const int64_t first = part * columns;
        ENQUEUE(queue, nesterov, blocks, ELEMENT_THREADS, 0, x, m + first, dw + first, n, columns, C, s.momentum);
        sum_of_squares(queue, norm, x, n);
        ENQUEUE(queue, divide_by_norm, blocks, ELEMENT_THREADS, 0, x, norm, n);
        const auto multiply = [&](float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K,
                                  bool transpose_a, bool transpose_b) {
            Matmul p;
            p.c = c, p.a = a, p.b = b;
            p.M = M, p.N = N, p.K = K;
            p.transpose_a = transpose_a, p.transpose_b = transpose_b;
            product(queue, p);
        };
        for (int i = 0; i < ITERATIONS; i++) {
            multiply(gram, x, x, shorter, shorter, max(R, columns), !wide, wide);
            multiply(square, gram, gram, shorter, shorter, shorter, false, false);
            ENQUEUE(queue, polynomial, blocks_for(shorter * shorter, ELEMENT_THREADS), ELEMENT_THREADS, 0, square, gram,
                    shorter);
            multiply(y, wide ? square : x, wide ? x : square, R, columns, shorter, false, false);
            std::swap(x, y);
        }
        ENQUEUE(queue, subtract, blocks, ELEMENT_THREADS, 0, w + first, x, n, columns, C, factor, s);
    }
}
