/* The weights that a model begins with. */
#include "model.h"

#include "normal.h"

static void fill_normal(float *x, int64_t n, double deviation, uint32_t number, uint64_t seed) {
    #pragma omp parallel for
    for (int64_t i = 0; i < n; i += 4) {
        double normal[4];
        normal_numbers(normal, i / 4, number, seed);
        for (int64_t j = i; j < min64(i + 4, n); j++) x[j] = (float)(deviation * normal[j - i]);
    }
}

int gpt2_init_weights(GPT2 *m, uint64_t seed) {
    USE(m);
    double deviation = m->config.initializer_range, narrower = deviation / sqrt(2.0 * (double)m->config.n_layer);
    for (int64_t i = 0; i < m->weights.count; i++) {
        const Tensor *tensor = &m->weights.tensors[i];
        float *w = m->parameters + tensor->offset;
        if (tensor->initialisation == PYGPT_INIT_NORMAL || tensor->initialisation == PYGPT_INIT_RESIDUAL) {
            fill_normal(w, tensor->size, tensor->initialisation == PYGPT_INIT_NORMAL ? deviation : narrower,
                        (uint32_t)i, seed);
        } else {
            for (int64_t j = 0; j < tensor->size; j++) w[j] = tensor->initialisation == PYGPT_INIT_ONE ? 1.0f : 0.0f;
        }
    }
    return PYGPT_OK;
}
