/* Muon (Jordan et al. 2024): the momentum of a matrix, made nearly orthogonal.
 *
 *   m ← μ m + g        u = g + μ m        X = u / (‖u‖ + ε)
 *   five times:        X ← (a I + b A + c A²) X        A = X Xᵀ        (Newton–Schulz)
 *   w ← w − lr (√max(1, c/R) X + λ w)
 *
 * w: (R,c), inputs by outputs; ‖·‖ is Frobenius's norm. A matrix with more rows than columns is multiplied from the right, by
 * the polynomial of Xᵀ X, which is smaller and gives the same.
 */
#include <math.h>

#include "../internal.h"

static const float A1 = 3.4445f, A2 = -4.7750f, A3 = 2.0315f;   // a, b, c
static const float EPSILON = 1e-7f;

enum { ITERATIONS = 5 };

/* m of one of the matrices in rows of C floats, and its u, dense. */
static void nesterov(float *u, float *m, const float *dw, int64_t R, int64_t columns, int64_t C, float momentum) {
    #pragma omp parallel for
    for (int64_t r = 0; r < R; r++) {
        for (int64_t i = 0; i < columns; i++) {
            float g = dw[r * C + i], next = momentum * m[r * C + i] + g;
            m[r * C + i] = next;
            u[r * columns + i] = g + momentum * next;
        }
    }
}

/* square (n,n), that of a, becomes a I + b A + c A². */
static void polynomial(float *square, const float *a, int64_t n) {
    #pragma omp parallel for
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) square[i * n + j] = A2 * a[i * n + j] + A3 * square[i * n + j];
        square[i * n + i] += A1;
    }
}

void muon_step_by(void (*multiply)(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K,
                                   int transpose_a, int transpose_b, int accumulate),
                  float *w, float *m, const float *dw, float *scratch, int64_t R, int64_t C, int64_t parts, float lr,
                  float momentum, float weight_decay) {
    int64_t columns = C / parts, n = R * columns, shorter = min64(R, columns);
    int wide = R <= columns;
    float factor = sqrtf((float)max64(columns, R) / (float)R);   // √max(1, columns/R)
    for (int64_t part = 0; part < parts; part++) {
        float *x = scratch, *y = x + n, *gram = y + n, *square = gram + shorter * shorter;
        int64_t first = part * columns;
        nesterov(x, m + first, dw + first, R, columns, C, momentum);
        scale(x, 1.0f / ((float)sqrt(sum_of_squares(x, n)) + EPSILON), n);
        for (int i = 0; i < ITERATIONS; i++) {
            multiply(gram, x, x, shorter, shorter, max64(R, columns), !wide, wide, 0);
            multiply(square, gram, gram, shorter, shorter, shorter, 0, 0, 0);
            polynomial(square, gram, shorter);
            multiply(y, wide ? square : x, wide ? x : square, R, columns, shorter, 0, 0, 0);
            float *next = y;
            y = x;
            x = next;
        }
        #pragma omp parallel for
        for (int64_t r = 0; r < R; r++) {
            float *row = w + r * C + first;
            for (int64_t i = 0; i < columns; i++) row[i] -= lr * (factor * x[r * columns + i] + weight_decay * row[i]);
        }
    }
}

void muon_step(float *w, float *m, const float *dw, float *scratch, int64_t R, int64_t C, int64_t parts, float lr,
               float momentum, float weight_decay) {
    muon_step_by(matmul, w, m, dw, scratch, R, C, parts, lr, momentum, weight_decay);
}
