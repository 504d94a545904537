/* AdamW (Loshchilov & Hutter 2019), on all tensors at once, or those that Muon leaves to it.
 *
 *   m ← β₁ m + (1 − β₁) g        m̂ = m / (1 − β₁ᵗ)
 *   v ← β₂ v + (1 − β₂) g²       v̂ = v / (1 − β₂ᵗ)
 *   w ← w − lr (m̂ / (√v̂ + ε) + λ w)
 *
 * With bfloat16, w stays in float32, and what the layers read is a copy: the nearest bfloat16, or stochastically one
 * of the two neighbours, so that the mean of many copies is w. That choice is a function of w's own bits, its place,
 * and the seed. So it is drawn anew whenever w changes, and a run that is resumed from the w that were saved has the
 * copy that it had.
 */
#include <cmath>

#include "elements.cuh"
#include "layers.cuh"

namespace {

constexpr int W = 4;   // elements of a thread
static_assert(UPDATE_GROUP % W == 0, "a thread's elements are treated alike");

struct Update {
    float lr, beta1, beta2, eps, weight_decay, correction1, correction2;
};

/* P(up) is the share of the way from the lower neighbour to the upper one: add a random number below their distance,
 * cut off. */
__device__ float round_stochastically(float w, uint64_t element, uint64_t seed) {
    const uint32_t bits = __float_as_uint(w);
    if ((bits & 0x7f800000u) == 0x7f800000u) return w;   // infinite or NaN
    const uint32_t random = philox4x32(element, bits, UINT32_MAX, seed).word[0] & 0xffffu;
    return __uint_as_float((bits + random) & 0xffff0000u);
}

__device__ void write_copy(bf16 *copy, float (&w)[W], uint64_t element, const Rounding &rounding) {
    if (rounding.stochastic)
        for (int i = 0; i < W; i++)
            w[i] = round_stochastically(w[i], element + static_cast<uint64_t>(i), rounding.seed);
    store<W>(copy, w);
}

__global__ void __launch_bounds__(ELEMENT_THREADS)
    adamw(float *w, bf16 *copy, float *m, float *v, const float *dw, const uint8_t *treatment, int64_t n,
          int64_t element, Update update, Rounding rounding) {
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x) * W;
    if (first >= n) return;
    const uint8_t how = treatment[first / UPDATE_GROUP];
    if (how == UPDATE_SKIP) return;
    const float decay = how == UPDATE_PLAIN ? 0.0f : update.weight_decay;
    float wi[W], mi[W], vi[W], gi[W];
    load<W>(wi, w + first);
    load<W>(mi, m + first);
    load<W>(vi, v + first);
    load<W>(gi, dw + first);
    for (int i = 0; i < W; i++) {
        mi[i] = update.beta1 * mi[i] + (1.0f - update.beta1) * gi[i];
        vi[i] = update.beta2 * vi[i] + (1.0f - update.beta2) * gi[i] * gi[i];
        const float m_hat = mi[i] / update.correction1, v_hat = vi[i] / update.correction2;
        wi[i] -= update.lr * (m_hat / (sqrtf(v_hat) + update.eps) + decay * wi[i]);
    }
    store<W>(w + first, wi);
    store<W>(m + first, mi);
    store<W>(v + first, vi);
    if (copy) write_copy(copy + first, wi, static_cast<uint64_t>(element + first), rounding);
}

__global__ void __launch_bounds__(ELEMENT_THREADS)
    round_elements(bf16 *copy, const float *w, int64_t n, int64_t element, Rounding rounding) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
    if (i >= n) return;
    const float x =
        rounding.stochastic ? round_stochastically(w[i], static_cast<uint64_t>(element + i), rounding.seed) : w[i];
    copy[i] = static_cast<bf16>(x);
}

} // namespace

void adamw_step(Queue &queue, float *w, bf16 *copy, float *m, float *v, const float *dw, const uint8_t *treatment,
                int64_t n, int64_t element, const AdamW &s, const Rounding &rounding) {
    const Update update = {
        s.lr,
        s.beta1,
        s.beta2,
        s.eps,
        s.weight_decay,
        static_cast<float>(1.0 - std::pow(static_cast<double>(s.beta1), static_cast<double>(s.step))),
        static_cast<float>(1.0 - std::pow(static_cast<double>(s.beta2), static_cast<double>(s.step)))};
    ENQUEUE(queue, adamw, blocks_for(n, ELEMENT_THREADS * W), ELEMENT_THREADS, 0, w, copy, m, v, dw, treatment, n,
            element, update, rounding);
}

void round_weights(Queue &queue, bf16 *copy, const float *w, int64_t n, int64_t element, const Rounding &rounding) {
    ENQUEUE(queue, round_elements, blocks_for(n, ELEMENT_THREADS), ELEMENT_THREADS, 0, copy, w, n, element, rounding);
}
