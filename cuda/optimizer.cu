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

/* What every update needs: gradients, and those of the moments that the optimizer has, first ones or none, and so many
 * second ones. */
static int begin_update(GPT2 *m, bool first_moments, int64_t second_moments) {
    int status = reserve_gradients(m);
    if (status == PYGPT_OK && first_moments) status = reserve_moments(m, PYGPT_FIRST_MOMENT, m->weights.size);
    if (status == PYGPT_OK && second_moments) status = reserve_moments(m, PYGPT_SECOND_MOMENT, second_moments);
    return status;
}

static void enqueue_adamw(GPT2 *m, const Part &part, const AdamW &settings) {
    const auto [begin, size] = part;
    bf16 *const copy = m->queue.type == DataType::bfloat16 ? static_cast<bf16 *>(m->copy) + begin : nullptr;
    if (size > 0)
        adamw_step(m->queue, master_weights(m, begin), copy, m->first_moments, m->second_moments, m->gradients + begin,
                   m->treatment + begin / UPDATE_GROUP, size, begin, settings, m->rounding);
    m->weights_changed = true;
}

int gpt2_adamw_step(GPT2 *m, float lr, float beta1, float beta2, float eps, float weight_decay, int64_t step) {
    USE(m);
    int status = check_step(step);
    if (status == PYGPT_OK) status = begin_update(m, true, m->weights.size);
    if (status != PYGPT_OK) return status;
    enqueue_adamw(m, m->own, {lr, beta1, beta2, eps, weight_decay, step});
    return queue_status(m->queue);
}

int gpt2_sgd_step(GPT2 *m, float lr, float momentum, float weight_decay) {
    USE(m);
    const bool has_moments = momentum != 0.0f;
    const int status = begin_update(m, has_moments, 0);
    if (status != PYGPT_OK) return status;
    const auto [begin, size] = m->own;
    if (size > 0)
        sgd_step(m->queue, master_weights(m, begin), has_moments ? m->first_moments : nullptr, m->gradients + begin,
                 m->treatment + begin / UPDATE_GROUP, size, {lr, momentum, weight_decay});
    copy_weights(m, begin, size);
    return queue_status(m->queue);
}

int gpt2_muon_step(GPT2 *m, float muon_lr, float momentum, float lr, float beta1, float beta2, float eps,
                   float weight_decay, int64_t step) {
    USE(m);
    int status = check_step(step);
    if (status == PYGPT_OK) status = check_whole(m, PYGPT_FIRST_MOMENT);
    if (status == PYGPT_OK) status = begin_update(m, true, m->weights.without_muon);
    if (status == PYGPT_OK) status = reserve_muon(m);
    if (status != PYGPT_OK) return status;
    enqueue_adamw(m, {0, m->weights.without_muon}, {lr, beta1, beta2, eps, weight_decay, step});
    for (int64_t i = 0; i < m->weights.count; i++) {
        const Tensor &t = m->weights.tensors[i];
        if (!t.muon) continue;
        muon_step(m->queue, m->parameters + t.offset, m->first_moments + t.offset, m->gradients + t.offset,
                  m->muon_scratch, t.shape[0], t.shape[1], t.muon, {muon_lr, momentum, weight_decay});
        copy_weights(m, t.offset, t.size);
    }
    return queue_status(m->queue);
}
