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

/* What every update needs: gradients, and those of the moments that the optimizer has, first ones or none, and so many
 * second ones. */
static int begin_update(GPT2 *m, int first_moments, int64_t second_moments) {
    int status = reserve_gradients(m);
    if (status == PYGPT_OK && first_moments) status = reserve_moments(m, PYGPT_FIRST_MOMENT, m->weights.size);
    if (status == PYGPT_OK && second_moments) status = reserve_moments(m, PYGPT_SECOND_MOMENT, second_moments);
    return status;
}

static void adamw_tensor(GPT2 *m, const Tensor *t, float lr, float beta1, float beta2, float eps, float weight_decay,
                         int64_t step) {
    m->kernels->adamw_step(m->parameters + t->offset, m->first_moments + t->offset, m->second_moments + t->offset,
                           m->gradients + t->offset, t->size, lr, beta1, beta2, eps,
                           t->weight_decay ? weight_decay : 0.0f, step);
}

int gpt2_adamw_step(GPT2 *m, float lr, float beta1, float beta2, float eps, float weight_decay, int64_t step) {
    USE(m);
    int status = check_step(step);
    if (status == PYGPT_OK) status = begin_update(m, 1, m->weights.size);
    if (status != PYGPT_OK) return status;
    for (int64_t i = 0; i < m->weights.count; i++)
        adamw_tensor(m, &m->weights.tensors[i], lr, beta1, beta2, eps, weight_decay, step);
    return PYGPT_OK;
}

int gpt2_sgd_step(GPT2 *m, float lr, float momentum, float weight_decay) {
    USE(m);
    int has_moments = momentum != 0.0f, status = begin_update(m, has_moments, 0);
    if (status != PYGPT_OK) return status;
    for (int64_t i = 0; i < m->weights.count; i++) {
        const Tensor *t = &m->weights.tensors[i];
        m->kernels->sgd_step(m->parameters + t->offset, has_moments ? m->first_moments + t->offset : NULL,
                             m->gradients + t->offset, t->size, lr, momentum, t->weight_decay ? weight_decay : 0.0f);
    }
    return PYGPT_OK;
}

int gpt2_muon_step(GPT2 *m, float muon_lr, float momentum, float lr, float beta1, float beta2, float eps,
                   float weight_decay, int64_t step) {
    USE(m);
    int status = check_step(step);
    if (status == PYGPT_OK) status = begin_update(m, 1, m->weights.without_muon);
    if (status == PYGPT_OK) status = reserve_muon(m);
    if (status != PYGPT_OK) return status;
    for (int64_t i = 0; i < m->weights.count; i++) {
        const Tensor *t = &m->weights.tensors[i];
        if (t->muon) {
            m->kernels->muon_step(m->parameters + t->offset, m->first_moments + t->offset, m->gradients + t->offset,
                                  m->muon_scratch, t->shape[0], t->shape[1], t->muon, muon_lr, momentum, weight_decay);
        } else {
            adamw_tensor(m, t, lr, beta1, beta2, eps, weight_decay, step);
        }
    }
    return PYGPT_OK;
}
