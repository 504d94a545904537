/* Linear layer: each row of x times a matrix, plus a bias.
 *
 *   forward    y = x W + b
 *   backward   dx = dy Wᵀ      dW += xᵀ dy      db += Σ_n dy_n
 *
 * x: (N,IC)   W: (IC,OC)   b: (OC)   y: (N,OC). The products are in matmul.c.
 */
#include "../internal.h"

enum { COLUMNS = DIVIDES_WORK(64, 3) };   // summed by one thread at a time

typedef void Matmul(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K, int transpose_a,
                    int transpose_b, int accumulate);

static void linear_forward_with(Matmul *product, float *y, const float *x, const float *w, const float *b, int64_t N,
                                int64_t IC, int64_t OC) {
    product(y, x, w, N, OC, IC, 0, 0, 0);
    if (!b) return;
    #pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        #pragma omp simd
        for (int64_t o = 0; o < OC; o++) y[n * OC + o] += b[o];
    }
}

/* db_o += Σ_n dy_no, in double, because N rows of nearly cancelling gradients may be many */
static void bias_backward(float *db, const float *dy, int64_t N, int64_t OC) {
    #pragma omp parallel for
    for (int64_t first = 0; first < OC; first += COLUMNS) {
        int64_t columns = min64(COLUMNS, OC - first);
        double sums[COLUMNS] = {0.0};
        for (int64_t n = 0; n < N; n++) {
            #pragma omp simd
            for (int64_t o = 0; o < columns; o++) sums[o] += dy[n * OC + first + o];
        }
        for (int64_t o = 0; o < columns; o++) db[first + o] += (float)sums[o];
    }
}

static void linear_backward_with(Matmul *product, float *dx, float *dw, float *db, const float *dy, const float *x,
                                 const float *w, int64_t N, int64_t IC, int64_t OC) {
    if (dx) product(dx, dy, w, N, IC, OC, 0, 1, 0);
    if (dw) product(dw, x, dy, IC, OC, N, 1, 0, 1);
    if (db) bias_backward(db, dy, N, OC);
}

void linear_forward(float *y, const float *x, const float *w, const float *b, int64_t N, int64_t IC, int64_t OC) {
    linear_forward_with(matmul, y, x, w, b, N, IC, OC);
}

void linear_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, int64_t N,
                     int64_t IC, int64_t OC) {
    linear_backward_with(matmul, dx, dw, db, dy, x, w, N, IC, OC);
}

void linear_forward_bf16(float *y, const float *x, const float *w, const float *b, int64_t N, int64_t IC, int64_t OC) {
    linear_forward_with(matmul_bf16, y, x, w, b, N, IC, OC);
}

void linear_backward_bf16(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, int64_t N,
                          int64_t IC, int64_t OC) {
    linear_backward_with(matmul_bf16, dx, dw, db, dy, x, w, N, IC, OC);
}
