/* A pass that repeats the sizes of the one before is captured into a CUDA graph, and from then on launched as a whole. */
#include "model.cuh"

static const size_t MOST_GRAPHS = 16;

void forget_graphs(GPT2 *m) {
    for (const auto &entry : m->graphs) cudaGraphExecDestroy(entry.second);
    m->graphs.clear();
}

/* Captures the pass, or says why CUDA would not have it. */
static cudaError_t capture(cudaGraphExec_t *captured, GPT2 *m, Pass pass) {
    cudaGraph_t graph = nullptr;
    cudaError_t error = cudaStreamBeginCapture(m->queue.stream, cudaStreamCaptureModeThreadLocal);
    if (error == cudaSuccess) {
        enqueue_pass(m, pass);
        error = cudaStreamEndCapture(m->queue.stream, &graph);
        if (m->queue.error != cudaSuccess) error = m->queue.error;   // the first one says more
    }
    if (error == cudaSuccess) error = cudaGraphInstantiate(captured, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (error != cudaSuccess) cudaGetLastError();
    m->queue.error = cudaSuccess;
    return error;
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
    if (m->capture != Capture::never && repeated && found == m->graphs.end() && m->queue.error == cudaSuccess) {
        cudaGraphExec_t captured = nullptr;
        const cudaError_t error = capture(&captured, m, pass);
        if (error == cudaSuccess) {
            found = m->graphs.emplace(key, captured).first;
        } else {
            m->graphs_refused++;
            if (m->capture == Capture::always)
                return note(m->queue, error, "the capture of a pass, on which PYGPT_CUDA_GRAPH=1 insists");
            m->capture = Capture::never;
        }
    }
    if (found != m->graphs.end()) {
        m->graphs_launched++;
        note(m->queue, cudaGraphLaunch(found->second, m->queue.stream), "a captured pass");
    } else {
        enqueue_pass(m, pass);
    }
}

int gpt2_graphs(GPT2 *m, int64_t *launched, int64_t *refused) {
    USE(m);
    *launched = m->graphs_launched;
    *refused = m->graphs_refused;
    return PYGPT_OK;
}
