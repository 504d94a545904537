/* What one of several processes does that train a model together: sums of gradients, and parts of flat buffers; with Python,
 * pygpt/parallel/, which knows who has which part. */
#include "model.cuh"

#include <cinttypes>

/* ---- the tree of sums over micro-batches ---- */

int gpt2_keep_gradients(GPT2 *m, int64_t level) {
    USE(m);
    const int64_t levels = static_cast<int64_t>(m->kept.size());
    if (level < 0 || level > levels)
        return fail(PYGPT_ERROR_ARGUMENT, "level is %" PRId64 ", expected 0 ... %" PRId64, level, levels);
    int status = reserve_gradients(m);
    if (status == PYGPT_OK && level == levels) {
        float *sum;
        status = allocate(m, address(&sum), weights_bytes(m), "a sum of gradients");
        if (status == PYGPT_OK) m->kept.push_back(sum);
    }
    if (status != PYGPT_OK) return status;
    note(m->queue,
         cudaMemcpyAsync(m->kept[static_cast<size_t>(level)], m->gradients, static_cast<size_t>(weights_bytes(m)),
                         cudaMemcpyDeviceToDevice, m->queue.stream),
         "a copy of the gradients");
    return queue_status(m->queue);
}

int gpt2_add_kept_gradients(GPT2 *m, int64_t level) {
    USE(m);
    if (level < 0 || level >= static_cast<int64_t>(m->kept.size()))
        return fail(PYGPT_ERROR_ARGUMENT, "no gradients were kept on level %" PRId64, level);
    add_to(m->queue, m->gradients, m->kept[static_cast<size_t>(level)], m->weights.size);
    return queue_status(m->queue);
}

/* ---- parts of flat buffers ---- */

static bool is_within(const Part &part, const Part &whole) {
    return part.begin >= whole.begin && part.size >= 0 && part.size <= whole.size &&
           part.begin - whole.begin <= whole.size - part.size;
}

static bool is_moment(int kind) {
    return kind == PYGPT_FIRST_MOMENT || kind == PYGPT_SECOND_MOMENT;
}

/* What this process has of a buffer. */
static Part held(const GPT2 *m, int kind) {
    return is_moment(kind) ? m->own : kind == PYGPT_PARAMETER ? m->masters : Part{0, m->weights.size};
}

int check_whole(const GPT2 *m, int kind) {
    if (held(m, kind).size == m->weights.size) return PYGPT_OK;
    return fail(PYGPT_ERROR_ARGUMENT, "of the %s this process has only a part",
                is_moment(kind) ? "moments" : "float32 weights");
}

DataType type_of_part(const GPT2 *m, int kind) {
    return kind == PYGPT_ROUNDED ? m->queue.type : DataType::float32;
}

int locate_part(GPT2 *m, char **data, int kind, const Part &part) {
    if ((kind < PYGPT_PARAMETER || kind > PYGPT_SECOND_MOMENT) && kind != PYGPT_ROUNDED)
        return fail(PYGPT_ERROR_ARGUMENT, "tensor kind is %d, expected 0 ... 3 or 6", kind);
    const Part whole = held(m, kind);
    if (!is_within(part, whole)) {
        return fail(PYGPT_ERROR_ARGUMENT,
                    "%" PRId64 " numbers from %" PRId64 " on were asked for, expected some of %" PRId64 " from %" PRId64
                    " on",
                    part.size, part.begin, whole.size, whole.begin);
    }
    *data = nullptr;
    if (part.size == 0) return PYGPT_OK;
    float *buffer = static_cast<float *>(m->copy);
    int status = is_moment(kind) ? reserve_moments(m, kind, part.begin + part.size) : PYGPT_OK;
    if (status == PYGPT_OK && kind != PYGPT_ROUNDED) status = find_buffer(m, &buffer, kind);
    if (status != PYGPT_OK) return status;
    const auto size = static_cast<int64_t>(element_size(type_of_part(m, kind)));
    *data = reinterpret_cast<char *>(buffer) + (part.begin - whole.begin) * size;
    return PYGPT_OK;
}

void after_writing(GPT2 *m, int kind, const Part &part) {
    if (kind == PYGPT_PARAMETER) copy_weights(m, part.begin, part.size);
    if (kind == PYGPT_ROUNDED) m->weights_changed = true;
}

int gpt2_read_part(GPT2 *m, float *values, int kind, int64_t begin, int64_t size) {
    USE(m);
    char *data;
    const int status = locate_part(m, &data, kind, {begin, size});
    if (status != PYGPT_OK || size == 0) return status;
    download(m->queue, values, data, type_of_part(m, kind), size);
    return queue_status(m->queue);
}

int gpt2_write_part(GPT2 *m, const float *values, int kind, int64_t begin, int64_t size) {
    USE(m);
    char *data;
    const int status = locate_part(m, &data, kind, {begin, size});
    if (status != PYGPT_OK || size == 0) return status;
    upload(m->queue, data, type_of_part(m, kind), values, size);
    after_writing(m, kind, {begin, size});
    return queue_status(m->queue);
}

int gpt2_add_to_gradients(GPT2 *m, const float *values, int64_t begin, int64_t size) {
    USE(m);
    char *data;
    if (begin % PYGPT_SUMMED_APART != 0)
        return fail(PYGPT_ERROR_ARGUMENT, "parts of gradients are added from a multiple of %d on, not from %" PRId64,
                    PYGPT_SUMMED_APART, begin);
    const int status = locate_part(m, &data, PYGPT_GRADIENT, {begin, size});
    if (status != PYGPT_OK || size == 0) return status;
    auto *const room = static_cast<float *>(scratch(m->queue, static_cast<size_t>(size) * sizeof(float)));
    upload(m->queue, room, DataType::float32, values, size);
    add_to(m->queue, reinterpret_cast<float *>(data), room, size);
    return queue_status(m->queue);
}

/* ---- the update of a part ---- */

int gpt2_own(GPT2 *m, int64_t begin, int64_t size) {
    USE(m);
    if (!is_within({begin, size}, {0, m->weights.size}) || begin % PYGPT_SUMMED_APART != 0) {
        return fail(PYGPT_ERROR_ARGUMENT,
                    "%" PRId64 " numbers from %" PRId64 " on, expected some of %" PRId64 " from a multiple of %d on",
                    size, begin, m->weights.size, PYGPT_SUMMED_APART);
    }
    if (m->first_moments || m->second_moments) return fail(PYGPT_ERROR_ARGUMENT, "the moments are there already");
    int status = check_whole(m, PYGPT_PARAMETER);
    if (status == PYGPT_OK && m->queue.type == DataType::bfloat16 && size < m->weights.size)
        status = keep_masters(m, {begin, size});
    if (status == PYGPT_OK) m->own = {begin, size};
    return status;
}

int gpt2_sums_of_squares(GPT2 *m, double *sums) {
    USE(m);
    const int status = reserve_gradients(m);
    if (status != PYGPT_OK || m->own.size == 0) return status;
    Queue &q = m->queue;
    auto *const found = static_cast<double *>(scratch(q, norm_scratch(m->own.size)));
    sums_of_squares(q, found, m->gradients + m->own.begin, m->own.size);
    if (q.error == cudaSuccess)
        note(q, cudaMemcpyAsync(sums, found, norm_scratch(m->own.size), cudaMemcpyDeviceToHost, q.stream), "a norm");
    if (q.error == cudaSuccess) note(q, cudaStreamSynchronize(q.stream), "a norm");
    return queue_status(q);
}

int gpt2_clip_part(GPT2 *m, double *norm, const double *sums, int64_t count, float max_norm) {
    USE(m);
    if (count != stretches(m->weights.size)) {
        return fail(PYGPT_ERROR_ARGUMENT, "%" PRId64 " sums were given, expected %" PRId64, count,
                    stretches(m->weights.size));
    }
    int status = reserve_gradients(m);
    if (status != PYGPT_OK) return status;
    Queue &q = m->queue;
    const size_t bytes = norm_scratch(m->weights.size);
    auto *const all = static_cast<double *>(scratch(q, bytes));
    if (q.error == cudaSuccess) note(q, cudaMemcpyAsync(all, sums, bytes, cudaMemcpyHostToDevice, q.stream), "a norm");
    norm_of_sums(q, &m->state->norm, all, count);
    clip(q, m->gradients + m->own.begin, &m->state->norm, m->own.size, max_norm);
    m->unread = true;
    status = check_pass(m);
    if (status == PYGPT_OK) *norm = m->read_state->norm;
    return status;
}
