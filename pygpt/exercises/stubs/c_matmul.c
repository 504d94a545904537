/* The matrix product in C.
 *
 *   c_ij = Σ_k op(a)_ik op(b)_kj          op(a): (M,K)   op(b): (K,N)   c: (M,N)
 *
 * A transposed operand is stored (K,M) or (N,K). With accumulate, c is added to; here it is 0, and c is written. Three
 * loops solve it. Then look at their order: in which one does the innermost loop read and write neighbouring floats?
 * docs/performance.md goes on from there, to a kernel that uses the processor to the full.
 *
 * Read: docs/layers/linear.md, docs/performance.md
 */
#include "pygpt.h"

void matmul(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K, int transpose_a, int transpose_b,
            int accumulate) {
    // to be written
}
