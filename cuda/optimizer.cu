/* What happens to gradients and weights after the backward pass. */
#include "model.cuh"

#include "layers/elements.cuh"

int gpt2_zero_grad(GPT2 *m) {
    USE(m);
    int status = reserve_gradients(m);
    if (status == PYGPT_OK) status = clear(m, m->gradients, flat_bytes(m));
    m->read_state->summed_loss = 0;
    return status == PYGPT_OK ? clear(m, &m->state->summed_loss, sizeof m->state->summed_loss) : status;
}

int gpt2_summed_loss(GPT2 *m, double *loss) {
    USE(m);
    const int status = check_pass(m);
    *loss = m->read_state->summed_loss;
    return status;
}

int gpt2_clip_grad_norm(GPT2 *m, double *norm, float max_norm) {
    USE(m);
    int status = reserve_gradients(m);
    if (status != PYGPT_OK) return status;
    clip_norm(m->queue, &m->state->norm, m->gradients, m->weights.size, max_norm);
    if (!norm) return queue_status(m->queue);
    m->unread = true;   // the norm, and perhaps the passes before: one wait for all
    status = check_pass(m);
    if (status == PYGPT_OK) *norm = m->read_state->norm;
    return status;
}

int gpt2_adamw_step(GPT2 *m, float lr, float beta1, float beta2, float eps, float weight_decay, int64_t step) {
    USE(m);
    int status = check_step(step);
    if (status == PYGPT_OK) status = reserve_gradients(m);
    if (status == PYGPT_OK) status = reserve_moments(m);
    if (status != PYGPT_OK) return status;
    bf16 *const copy = m->queue.type == DataType::bfloat16 ? static_cast<bf16 *>(m->copy) : nullptr;
    adamw_step(m->queue, m->parameters, copy, m->first_moments, m->second_moments, m->gradients, m->treatment,
               m->weights.size, {lr, beta1, beta2, eps, weight_decay, step}, m->rounding);
    m->weights_changed = true;
    return queue_status(m->queue);
}
