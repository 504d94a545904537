/* Matrix product, the work under every linear layer.
 *
 *   c_ij = Σ_k op(a)_ik op(b)_kj          op(a): (M,K)   op(b): (K,N)   c: (M,N)
 *
 * A straightforward triple loop waits for memory: each element of b is fetched again for every row of a. So c is cut into
 * blocks of MC × NC, and the sum into stretches of KC; the two operands of one stretch are copied ("packed") side by
 * side, in the order in which they will be read, and are used from the cache for the whole block. The copy takes care
 * of the transpositions. Within a block, MR × NR sums at a time stay in registers.
 *
 * Each element of c is one sum over k in ascending order, whoever computes it: the number of threads changes no bit.
 */
#include "../bf16.h"
#include "../internal.h"

enum {
    MR = 4,
    NR = 32,
    MC = DIVIDES_WORK(96, 2 * MR),
    NC = DIVIDES_WORK(256, 2 * NR),
    KC = DIVIDES_WORK(128, 20),
};

/* packed[panel][k][i] = x[(panel·width + i)·stride + k·stride_k], zero from row `count` of x on. */
static inline void pack_panels(float *packed, const float *x, int64_t stride, int64_t stride_k, int64_t count,
                               int64_t K, int64_t width, int bf16) {
    for (int64_t panel = 0; panel < count; panel += width) {
        for (int64_t k = 0; k < K; k++, packed += width) {
            int64_t rows = min64(width, count - panel);
            const float *from = x + panel * stride + k * stride_k;
            for (int64_t i = 0; i < rows; i++) packed[i] = from[i * stride];
            for (int64_t i = rows; i < width; i++) packed[i] = 0.0f;
            if (bf16) {
                for (int64_t i = 0; i < width; i++) packed[i] = round_to_bf16(packed[i]);
            }
        }
    }
}

/* c (rows × columns of it, N floats apart) += a packed panel of MR rows times a packed panel of NR columns */
static inline void multiply_tile(float *c, const float *a, const float *b, int64_t N, int64_t K, int64_t rows,
                                 int64_t columns) {
    float sums[MR][NR] = {{0.0f}};
    for (int64_t k = 0; k < K; k++, a += MR, b += NR) {
        for (int i = 0; i < MR; i++) {
            #pragma omp simd
            for (int j = 0; j < NR; j++) sums[i][j] += a[i] * b[j];
        }
    }
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) c[i * N + j] += sums[i][j];
    }
}

static inline void multiply_blocks(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K,
                                   int transpose_a, int transpose_b, int accumulate, int bf16) {
    int64_t a_row = transpose_a ? 1 : K, a_k = transpose_a ? M : 1;
    int64_t b_column = transpose_b ? K : 1, b_k = transpose_b ? 1 : N;

    #pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t m = 0; m < M; m += MC) {
        for (int64_t n = 0; n < N; n += NC) {
            float a_packed[MC * KC], b_packed[NC * KC];
            int64_t rows = min64(MC, M - m), columns = min64(NC, N - n);
            if (!accumulate) {
                for (int64_t i = 0; i < rows; i++) memset(c + (m + i) * N + n, 0, (size_t)columns * sizeof *c);
            }
            for (int64_t k = 0; k < K; k += KC) {
                int64_t depth = min64(KC, K - k);
                pack_panels(a_packed, a + m * a_row + k * a_k, a_row, a_k, rows, depth, MR, bf16);
                pack_panels(b_packed, b + n * b_column + k * b_k, b_column, b_k, columns, depth, NR, bf16);
                for (int64_t j = 0; j < columns; j += NR) {
                    for (int64_t i = 0; i < rows; i += MR) {
                        multiply_tile(c + (m + i) * N + n + j, a_packed + i * depth, b_packed + j * depth, N, depth,
                                      min64(MR, rows - i), min64(NR, columns - j));
                    }
                }
            }
        }
    }
}

void matmul(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K, int transpose_a, int transpose_b,
            int accumulate) {
    multiply_blocks(c, a, b, M, N, K, transpose_a, transpose_b, accumulate, 0);
}

/* The same with both operands rounded to bfloat16; products and sums in float32. */
void matmul_bf16(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K, int transpose_a,
                 int transpose_b, int accumulate) {
    multiply_blocks(c, a, b, M, N, K, transpose_a, transpose_b, accumulate, 1);
}
