/* Softmax with cross-entropy: minus the log-probability of the target.
 *
 *   forward    loss_n = lse_n − z_n,target      lse_n = max_v z_nv + log Σ_v exp(z_nv − max)
 *   backward   dz_nv = dloss_n (exp(z_nv − lse_n) − [v = target])
 *
 * −log p would lose the loss of a sure prediction, and overflow on a hopeless one; lse − z does neither. Rows of z lie
 * Vp ≥ V elements apart. A negative target is left out.
 *
 * A block works on a row. It finds maximum and sum in one go: each thread keeps the largest z it has met, and a sum
 * relative to it. In the second go dz may take the place of z.
 */
#include "elements.cuh"
#include "layers.cuh"

namespace {

constexpr int THREADS = DIVIDES_WORK(512, 32);

template <class T, int W, bool backward>
__global__ void __launch_bounds__(THREADS)
    cross_entropy_rows(float *losses, T *dlogits, const float *dlosses, const T *logits, const int32_t *targets,
                       int64_t V, int64_t Vp) {
    const int64_t n = blockIdx.x;
    const T *const z = logits + n * Vp;
    const int target = targets[n];
    const float target_z = target < 0 ? 0.0f : static_cast<float>(z[target]);   // before dz takes its place

    float largest = -INFINITY, sum = 0;
    for (int64_t v = static_cast<int64_t>(threadIdx.x) * W; v < V; v += blockDim.x * W) {
        float x[W];
        load<W>(x, z + v);
        float larger = largest;
        for (int i = 0; i < W; i++)
            if (v + i < V) larger = fmaxf(larger, x[i]);
        sum *= largest == larger ? 1.0f : expf(largest - larger);
        for (int i = 0; i < W; i++)
            if (v + i < V) sum += expf(x[i] - larger);
        largest = larger;
    }
    const float most = block_max(largest);
    const float lse = most + logf(block_sum(largest == -INFINITY ? 0.0f : sum * expf(largest - most)));
    if (threadIdx.x == 0 && losses) losses[n] = target < 0 ? 0.0f : lse - target_z;
    if (!backward) return;

    const float dloss = target < 0 ? 0.0f : dlosses[n];
    for (int64_t v = static_cast<int64_t>(threadIdx.x) * W; v < Vp; v += blockDim.x * W) {
        float x[W];
        load<W>(x, z + v);
        for (int i = 0; i < W; i++) {
            const float p = v + i < V ? expf(x[i] - lse) : 0.0f;
            x[i] = target < 0 || v + i >= V ? 0.0f : dloss * (p - (v + i == target ? 1.0f : 0.0f));
        }
        store<W>(dlogits + n * Vp + v, x);
    }
}

} // namespace

void cross_entropy_forward(Queue &queue, float *losses, const void *logits, const int32_t *targets, int64_t N,
                           int64_t V, int64_t Vp) {
    for_rows(queue.type, Vp, [&](auto element, auto width) {
        using T = decltype(element);
        ENQUEUE(queue, (cross_entropy_rows<T, decltype(width)::value, false>), static_cast<unsigned>(N), THREADS, 0,
                losses, nullptr, nullptr, as<T>(logits), targets, V, Vp);
    });
}

void cross_entropy_backward(Queue &queue, float *losses, void *dlogits, const float *dlosses, const void *logits,
                            const int32_t *targets, int64_t N, int64_t V, int64_t Vp) {
    for_rows(queue.type, Vp, [&](auto element, auto width) {
        using T = decltype(element);
        ENQUEUE(queue, (cross_entropy_rows<T, decltype(width)::value, true>), static_cast<unsigned>(N), THREADS, 0,
                losses, as<T>(dlogits), dlosses, as<T>(logits), targets, V, Vp);
    });
}
