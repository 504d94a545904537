/* The weights that a model begins with. */
#include "model.cuh"

#include "../csrc/normal.h"
#include "layers/elements.cuh"

#include <cmath>

static __global__ void __launch_bounds__(ELEMENT_THREADS)
    fill_normal(float *x, int64_t n, double deviation, uint32_t number, uint64_t seed) {
    const int64_t i = (static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x) * 4;
    if (i >= n) return;
    double normal[4];
    normal_numbers(normal, i / 4, number, seed);
    for (int j = 0; j < 4; j++)
        if (i + j < n) x[i + j] = static_cast<float>(deviation * normal[j]);
}

static __global__ void __launch_bounds__(ELEMENT_THREADS) fill(float *x, int64_t n, float value) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
    if (i < n) x[i] = value;
}

void copy_weights(GPT2 *m, int64_t offset, int64_t n) {
    m->weights_changed = true;
    if (m->queue.type == DataType::bfloat16 && n > 0)
        round_weights(m->queue, static_cast<bf16 *>(m->copy) + offset, master_weights(m, offset), n, offset,
                      m->rounding);
}

int gpt2_init_weights(GPT2 *m, uint64_t seed) {
    USE(m);
    if (const int status = check_whole(m, PYGPT_PARAMETER)) return status;
    const double deviation = m->config.initializer_range;
    const double narrower = deviation / std::sqrt(2.0 * static_cast<double>(m->config.n_layer));
    m->rounding.seed = seed;
    for (int64_t i = 0; i < m->weights.count; i++) {
        const Tensor &t = m->weights.tensors[i];
        float *const w = m->parameters + t.offset;
        if (t.initialisation == PYGPT_INIT_NORMAL || t.initialisation == PYGPT_INIT_RESIDUAL) {
            ENQUEUE(m->queue, fill_normal, blocks_for(t.size, ELEMENT_THREADS * 4), ELEMENT_THREADS, 0, w, t.size,
                    t.initialisation == PYGPT_INIT_NORMAL ? deviation : narrower, static_cast<uint32_t>(i), seed);
        } else {
            const float value = t.initialisation == PYGPT_INIT_ONE ? 1.0f : 0.0f;
            ENQUEUE(m->queue, fill, blocks_for(t.size, ELEMENT_THREADS), ELEMENT_THREADS, 0, w, t.size, value);
        }
    }
    copy_weights(m, 0, m->weights.size);
    return queue_status(m->queue);
}
