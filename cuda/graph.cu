/* A pass that repeats the sizes of the one before is captured into a CUDA graph, and from then on launched as a whole. */
#include "model.cuh"

static const size_t MOST_GRAPHS = 16;

void forget_graphs(GPT2 *m) {
    for (const auto &entry : m->graphs) cudaGraphExecDestroy(entry.second);
    m->graphs.clear();
}

/* Captures the pass; NULL if CUDA would not have it. */
static cudaGraphExec_t capture(GPT2 *m, Pass pass) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t captured = nullptr;
    cudaError_t error = cudaStreamBeginCapture(m->queue.stream, cudaStreamCaptureModeThreadLocal);
    if (error == cudaSuccess) {
        enqueue_pass(m, pass);
        error = cudaStreamEndCapture(m->queue.stream, &graph);
    }
    if (error == cudaSuccess && m->queue.error == cudaSuccess) error = cudaGraphInstantiate(&captured, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (error != cudaSuccess || m->queue.error != cudaSuccess) {
        cudaGetLastError();
        m->queue.error = cudaSuccess;
        return nullptr;
    }
    return captured;
}

/* Each kernel by itself the first time, because then products are timed and scratch memory grows. */
void run_pass(GPT2 *m, Pass pass) {
    const GraphKey key{m->B, m->T, pass, m->training};
    const int64_t replaced = m->replaced + m->queue.replaced;
    if (replaced != m->graphs_replaced || m->graphs.size() >= MOST_GRAPHS) forget_graphs(m);
    const bool repeated = key == m->latest && replaced == m->graphs_replaced;
    m->graphs_replaced = replaced;
    m->latest = key;

    auto found = m->graphs.find(key);
    if (m->use_graphs && repeated && found == m->graphs.end()) {
        if (cudaGraphExec_t captured = capture(m, pass)) {
            found = m->graphs.emplace(key, captured).first;
        } else {
            m->use_graphs = false;
        }
    }
    if (found != m->graphs.end()) {
        note(m->queue, cudaGraphLaunch(found->second, m->queue.stream), "a captured pass");
    } else {
        enqueue_pass(m, pass);
    }
}
