/* Linear layer, and the matrix product under it: csrc/layers/linear.c and matmul.c from packed panels.
 *
 *   forward    y = x W + b
 *   backward   dx = dy Wᵀ      dW += xᵀ dy      db += Σ_n dy_n
 */
#include "../internal.h"
#include "fast.h"
#include "few_rows.h"
#include "gemm.h"

/* c = from + op(a) op(b); rows of from lie from_stride apart */
static void multiply_operands(PanelType type, float *c, const float *from, int64_t from_stride, const float *a,
                              const float *b, int64_t M, int64_t N, int64_t K, int transpose_a, int transpose_b) {
    Product product = {
        .type = type,
        .c = c,
        .c_stride = N,
        .from = from,
        .from_stride = from_stride,
        .a = {a, transpose_a ? M : K, !transpose_a},
        .b = {b, transpose_b ? K : N, transpose_b},
        .M = M,
        .N = N,
        .K = K,
    };
    if (M <= FEW_ROWS && !transpose_a && K > 0) {
        multiply_few_rows(&product);
    } else if (!gemm(&product)) {   // no memory for panels, of which the plain product needs none
        for (int64_t i = 0; i < M && from != c; i++) {
            for (int64_t j = 0; j < N; j++) c[i * N + j] = from ? from[i * from_stride + j] : 0.0f;
        }
        (type == PANEL_BF16 ? matmul_bf16 : matmul)(c, a, b, M, N, K, transpose_a, transpose_b, 1);
    }
}

/* db_o += Σ_n dy_no: sums over stretches of rows in float32, those in double */
static void fast_bias_backward(float *db, const float *dy, int64_t N, int64_t OC) {
    enum {
        COLUMNS = DIVIDES_WORK(128, LANES),
        VECTORS = COLUMNS / LANES,
        STRETCH = DIVIDES_WORK(32, 3),
        SMALL = DIVIDES_WORK(1 << 15, 0),
    };
    #pragma omp parallel for if (N * OC > SMALL)
    for (int64_t first = 0; first < OC; first += COLUMNS) {
        int64_t columns = min64(COLUMNS, OC - first);
        double total[COLUMNS] = {0.0};
        for (int64_t n0 = 0; n0 < N; n0 += STRETCH) {
            Floats sum[VECTORS] = {{0.0f}};
            for (int64_t n = n0; n < min64(n0 + STRETCH, N); n++) {
                for (int j = 0; j < VECTORS; j++)
                    sum[j] += load_first(dy + n * OC + first + j * LANES, columns - j * LANES);
            }
            for (int j = 0; j < VECTORS; j++) {
                for (int lane = 0; lane < LANES; lane++) total[j * LANES + lane] += sum[j][lane];
            }
        }
        for (int64_t o = 0; o < columns; o++) db[first + o] += (float)total[o];
    }
}

static void fast_linear_backward_in(PanelType type, float *dx, float *dw, float *db, const float *dy, const float *x,
                                    const float *w, int64_t N, int64_t IC, int64_t OC) {
    if (dx) multiply_operands(type, dx, NULL, 0, dy, w, N, IC, OC, 0, 1);
    if (dw) multiply_operands(type, dw, dw, OC, x, dy, IC, OC, N, 1, 0);
    if (db) fast_bias_backward(db, dy, N, OC);
}

void fast_matmul(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K, int transpose_a,
                 int transpose_b, int accumulate) {
    multiply_operands(PANEL_F32, c, accumulate ? c : NULL, N, a, b, M, N, K, transpose_a, transpose_b);
}

void fast_matmul_bf16(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K, int transpose_a,
                      int transpose_b, int accumulate) {
    multiply_operands(PANEL_BF16, c, accumulate ? c : NULL, N, a, b, M, N, K, transpose_a, transpose_b);
}

void fast_linear_forward(float *y, const float *x, const float *w, const float *b, int64_t N, int64_t IC, int64_t OC) {
    multiply_operands(PANEL_F32, y, b, 0, x, w, N, OC, IC, 0, 0);
}

void fast_linear_forward_bf16(float *y, const float *x, const float *w, const float *b, int64_t N, int64_t IC,
                              int64_t OC) {
    multiply_operands(PANEL_BF16, y, b, 0, x, w, N, OC, IC, 0, 0);
}

void fast_linear_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, int64_t N,
                          int64_t IC, int64_t OC) {
    fast_linear_backward_in(PANEL_F32, dx, dw, db, dy, x, w, N, IC, OC);
}

void fast_linear_backward_bf16(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w,
                               int64_t N, int64_t IC, int64_t OC) {
    fast_linear_backward_in(PANEL_BF16, dx, dw, db, dy, x, w, N, IC, OC);
}
