/* The head: the embedding matrix once more, and cross-entropy.
 *
 *   forward    z = x wteᵀ      losses = cross-entropy(z, targets)
 *   backward   dx = dz wte      dwte += dzᵀ x
 *
 * z is (N,V), the largest tensor of the model by far. So it exists for `rows` rows at a time, and the backward pass
 * computes it again, together with the losses, and puts dz in its place.
 *
 * Tensor cores want rows that begin at multiples of 16 bytes: so z has Vp >= V columns, and wte Vp rows. Whatever the
 * rows from V on hold, if only finite numbers: their logits are not looked at, dz is 0 there, and so is what they add
 * to dx and get in dwte.
 */
#include "elements.cuh"
#include "layers.cuh"

/* A chunk of rows, from row n on. */
static const void *chunk(const Queue &queue, const void *x, int64_t n, int64_t C) {
    return static_cast<const char *>(x) + static_cast<size_t>(n * C) * element_size(queue.type);
}
static void *chunk(const Queue &queue, void *x, int64_t n, int64_t C) {
    return static_cast<char *>(x) + static_cast<size_t>(n * C) * element_size(queue.type);
}

void head_logits(Queue &queue, void *logits, const void *x, const void *wte, int64_t N, int64_t C, int64_t Vp) {
    Matmul m;
    m.c = logits, m.a = x, m.b = wte;
    m.M = N, m.N = Vp, m.K = C;
    m.transpose_b = true;
    m.ab_type = m.c_type = queue.type;
    product(queue, m);
}

void classifier_forward(Queue &queue, float *losses, const void *x, const void *wte, const int32_t *targets,
                        void *logits, int64_t rows, int64_t N, int64_t C, int64_t V, int64_t Vp) {
    for (int64_t n = 0; n < N; n += rows) {
        const int64_t count = min(rows, N - n);
        head_logits(queue, logits, chunk(queue, x, n, C), wte, count, C, Vp);
        cross_entropy_forward(queue, losses + n, logits, targets + n, count, V, Vp);
    }
}

void classifier_backward(Queue &queue, float *losses, void *dx, float *dwte, const float *dlosses, const void *x,
                         const void *wte, const int32_t *targets, void *logits, int64_t rows, int64_t N, int64_t C,
                         int64_t V, int64_t Vp) {
    for (int64_t n = 0; n < N; n += rows) {
        const int64_t count = min(rows, N - n);
        head_logits(queue, logits, chunk(queue, x, n, C), wte, count, C, Vp);
        cross_entropy_backward(queue, losses + n, logits, dlosses + n, logits, targets + n, count, V, Vp);

        Matmul to_x;
        to_x.c = chunk(queue, dx, n, C), to_x.a = logits, to_x.b = wte;
        to_x.M = count, to_x.N = C, to_x.K = Vp;
        to_x.ab_type = to_x.c_type = queue.type;
        product(queue, to_x);

        Matmul to_wte;
        to_wte.c = dwte, to_wte.a = logits, to_wte.b = chunk(queue, x, n, C);
        to_wte.M = Vp, to_wte.N = C, to_wte.K = count;
        to_wte.transpose_a = true;
        to_wte.ab_type = queue.type;
        to_wte.c_type = DataType::float32;
        to_wte.accumulate = true;
        product(queue, to_wte);
    }
}
