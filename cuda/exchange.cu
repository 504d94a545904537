/* Two ranks send each other parts of their gradients, or of their weights, from one device's memory to the other's. */
#include "model.cuh"
#include "nccl.cuh"

#include <algorithm>
#include <cstring>

constexpr int64_t PIECE = int64_t{1} << 22;   // numbers that are received before they are added

int gpt2_connect(GPT2 *m, const char id[128], int ranks, int rank) {
    USE(m);
    if (!nccl()) return fail(PYGPT_ERROR_ARGUMENT, "NCCL is not open");
    NcclId known;
    memcpy(known.bytes, id, sizeof known.bytes);
    disconnect(m);
    const NcclResult result = nccl()->CommInitRank(&m->communicator, ranks, known, rank);
    return result ? fail_nccl(result, "connecting the ranks") : PYGPT_OK;
}

void disconnect(GPT2 *m) {
    if (!m->communicator) return;
    m->exchange_failed ? nccl()->CommAbort(m->communicator) : nccl()->CommDestroy(m->communicator);
    m->communicator = nullptr;
    m->exchange_failed = false;
}

/* Both at once: each of two ranks would else wait for the other to receive. */
static NcclResult send_and_receive(GPT2 *m, int partner, const char *from, int64_t sent, char *to, int64_t received) {
    NcclResult result = nccl()->GroupStart();
    if (!result && sent > 0)
        result = nccl()->Send(from, static_cast<size_t>(sent), NCCL_BYTES, partner, m->communicator, m->queue.stream);
    if (!result && received > 0)
        result = nccl()->Recv(to, static_cast<size_t>(received), NCCL_BYTES, partner, m->communicator, m->queue.stream);
    const NcclResult end = nccl()->GroupEnd();
    return result ? result : end;
}

int gpt2_exchange(GPT2 *m, int kind, int partner, int64_t sent, int64_t sent_size, int64_t kept, int64_t kept_size,
                  int adding) {
    USE(m);
    if (adding && kind != PYGPT_GRADIENT) return fail(PYGPT_ERROR_ARGUMENT, "only gradients are added");
    if (!m->communicator) return fail(PYGPT_ERROR_ARGUMENT, "the ranks are not connected");
    char *from, *to;
    int status = locate_part(m, &from, kind, {sent, sent_size});
    if (status == PYGPT_OK) status = locate_part(m, &to, kind, {kept, kept_size});
    if (status != PYGPT_OK) return status;
    Queue &q = m->queue;
    const auto size = static_cast<int64_t>(element_size(type_of_part(m, kind)));
    char *const room =
        adding ? static_cast<char *>(scratch(q, static_cast<size_t>(std::min(PIECE, kept_size) * size))) : nullptr;
    for (int64_t done = 0; done < std::max(sent_size, kept_size) && q.error == cudaSuccess; done += PIECE) {
        const int64_t leaving = std::clamp<int64_t>(sent_size - done, 0, PIECE);
        const int64_t coming = std::clamp<int64_t>(kept_size - done, 0, PIECE);
        char *const place = to + done * size;
        const NcclResult result =
            send_and_receive(m, partner, from + done * size, leaving * size, adding ? room : place, coming * size);
        if (result) {
            m->exchange_failed = true;
            return fail_nccl(result, "an exchange between ranks");
        }
        if (adding) add_to(q, reinterpret_cast<float *>(place), reinterpret_cast<float *>(room), coming);
    }
    after_writing(m, kind, {kept, kept_size});
    return queue_status(q);
}
