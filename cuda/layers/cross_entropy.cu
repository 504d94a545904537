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
 *
 * Where two rows fit into a multiprocessor's shared memory, the row is kept there between the two: so it is read once,
 * and while one block waits for its row, another computes. Otherwise it is read again. A thread reads only what it has
 * copied itself. The bits are the same.
 */
#include "elements.cuh"
#include "layers.cuh"

#include <cfloat>

namespace {

constexpr int THREADS = DIVIDES_WORK(1024, 32);
constexpr int64_t BESIDE_ROW = 2048;   // bytes of shared memory that a block takes besides a row, at most

/* e^x, as exactly as the type deserves. */
template <class T> __device__ float exponential(float x) {
    return std::is_same<T, float>::value ? expf(x) : exp2_approx(x * log2_e);
}

template <class T, int W, bool backward, bool keep>
__global__ void __launch_bounds__(THREADS, 2)
    cross_entropy_rows(float *losses, T *dlogits, const float *dlosses, const T *logits, const int32_t *targets,
                       unsigned V, unsigned Vp) {
    DYNAMIC_SHARED(T, kept);   // (Vp)
    const int64_t n = blockIdx.x;
    const T *const z = logits + n * Vp, *const row = keep ? kept : z;
    const unsigned first = threadIdx.x * W, step = blockDim.x * W;
    if (keep)
        for (unsigned v = first; v < Vp; v += step) cp_async_16(kept + v, z + v);
    cp_async_commit();
    const int target = targets[n];
    const float dloss = backward && target >= 0 ? dlosses[n] : 0.0f;
    cp_async_wait<0>();

    auto read = [&](float (&x)[W], unsigned v) {
        load<W>(x, row + v);
        if (v + W <= V) return;
        for (unsigned i = 0; i < W; i++)
            if (v + i >= V) x[i] = -INFINITY;
    };

    float largest = -FLT_MAX, sum = 0;
    for (unsigned v = first; v < V; v += step) {
        float x[W], larger = largest;
        read(x, v);
        for (int i = 0; i < W; i++) larger = fmaxf(larger, x[i]);
        sum *= exponential<T>(largest - larger);
        for (int i = 0; i < W; i++) sum += exponential<T>(x[i] - larger);
        largest = larger;
    }
    const float most = block_max(largest);
    const float target_z = target < 0 ? 0.0f : static_cast<float>(row[target]);   // before dz takes its place
    const float lse = most + logf(block_sum(sum * exponential<T>(largest - most)));
    if (threadIdx.x == 0 && losses) losses[n] = target < 0 ? 0.0f : lse - target_z;

    for (unsigned v = first; backward && v < Vp; v += step) {
        float x[W] = {};
        if (target >= 0) {
            read(x, v);
            for (int i = 0; i < W; i++) x[i] = exponential<T>(x[i] - lse);
            const unsigned of_target = static_cast<unsigned>(target) - v;
            if (of_target < W)
                for (unsigned i = 0; i < W; i++) x[i] -= i == of_target ? 1.0f : 0.0f;
            for (int i = 0; i < W; i++) x[i] *= dloss;
        }
        store<W>(dlogits + n * Vp + v, x);
    }
}

template <class T, int W, bool backward, bool keep>
void enqueue(Queue &queue, float *losses, void *dlogits, const float *dlosses, const void *logits,
             const int32_t *targets, int64_t N, int64_t V, int64_t Vp) {
    const auto kernel = cross_entropy_rows<T, W, backward, keep>;
    const size_t bytes = keep ? static_cast<size_t>(Vp) * sizeof(T) : 0;
    if (keep)
        note(queue, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "shared memory of cross-entropy");
    const int64_t threads = min(int64_t{THREADS}, ceil_div<int64_t>(Vp, 32 * W) * 32);
    ENQUEUE(queue, kernel, static_cast<unsigned>(N), static_cast<unsigned>(threads), bytes, losses, as<T>(dlogits),
            dlosses, as<T>(logits), targets, static_cast<unsigned>(V), static_cast<unsigned>(Vp));
}

} // namespace

void cross_entropy_forward(Queue &queue, float *losses, const void *logits, const int32_t *targets, int64_t N,
                           int64_t V, int64_t Vp) {
    for_rows(queue.type, Vp, [&](auto element, auto width) {
        enqueue<decltype(element), decltype(width)::value, false, false>(queue, losses, nullptr, nullptr, logits,
                                                                         targets, N, V, Vp);
    });
}

void cross_entropy_backward(Queue &queue, float *losses, void *dlogits, const float *dlosses, const void *logits,
                            const int32_t *targets, int64_t N, int64_t V, int64_t Vp) {
    for_rows(queue.type, Vp, [&](auto element, auto width) {
        using T = decltype(element);
        constexpr int W = decltype(width)::value;
        const int64_t of_row = Vp * static_cast<int64_t>(sizeof(T)) + BESIDE_ROW;
        const bool keep = W > 1 && 2 * of_row <= queue.shared_of_multiprocessor;
        keep ? enqueue<T, W, true, (W > 1)>(queue, losses, dlogits, dlosses, logits, targets, N, V, Vp)
             : enqueue<T, W, true, false>(queue, losses, dlogits, dlosses, logits, targets, N, V, Vp);
    });
}
