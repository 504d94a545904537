/* What happens to gradients and weights after the backward pass. */
#include "model.h"

#include <math.h>

int gpt2_zero_grad(GPT2 *m) {
    USE(m);
    int status = reserve_gradients(m);
    if (status != PYGPT_OK) return status;
    #pragma omp parallel for simd
    for (int64_t i = 0; i < m->weights.size; i++) m->gradients[i] = 0.0f;
    m->summed_loss = 0.0;
    return PYGPT_OK;
}

int gpt2_summed_loss(GPT2 *m, double *loss) {
    USE(m);
    *loss = m->summed_loss;
    return PYGPT_OK;
}

int gpt2_clip_grad_norm(GPT2 *m, double *norm, float max_norm) {
    USE(m);
    int status = reserve_gradients(m);
    if (status != PYGPT_OK) return status;
    double found = sqrt(m->kernels->sum_of_squares(m->gradients, m->weights.size));
    if (max_norm > 0.0f && found > max_norm)
        m->kernels->scale(m->gradients, (float)(max_norm / found), m->weights.size);
    if (norm) *norm = found;
    return PYGPT_OK;
}

int gpt2_adamw_step(GPT2 *m, float lr, float beta1, float beta2, float eps, float weight_decay, int64_t step) {
    USE(m);
    int status = check_step(step);
    if (status == PYGPT_OK) status = reserve_gradients(m);
    if (status == PYGPT_OK) status = reserve_moments(m);
    if (status != PYGPT_OK) return status;
    for (int64_t i = 0; i < m->weights.count; i++) {
        const Tensor *t = &m->weights.tensors[i];
        m->kernels->adamw_step(m->parameters + t->offset, m->first_moments + t->offset, m->second_moments + t->offset,
                               m->gradients + t->offset, t->size, lr, beta1, beta2, eps,
                               t->weight_decay ? weight_decay : 0.0f, step);
    }
    return PYGPT_OK;
}
