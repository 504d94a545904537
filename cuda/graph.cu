/* Work that is captured into a CUDA graph when it repeats; see graph.cuh. */
#include "model.cuh"

static const size_t MOST_GRAPHS = 16;

void Graphs::forget() {
    for (const auto &entry : graphs) cudaGraphExecDestroy(entry.second);
    graphs.clear();
    latest.reset();
}

/* Captures the work, or says why CUDA would not have it. */
static cudaError_t capture_work(cudaGraphExec_t *captured, Queue &queue, const std::function<void()> &enqueue) {
    cudaGraph_t graph = nullptr;
    cudaError_t error = cudaStreamBeginCapture(queue.stream, cudaStreamCaptureModeThreadLocal);
    if (error == cudaSuccess) {
        enqueue();
        error = cudaStreamEndCapture(queue.stream, &graph);
        if (queue.error != cudaSuccess) error = queue.error;   // the first one says more
    }
    if (error == cudaSuccess) error = cudaGraphInstantiate(captured, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (error != cudaSuccess) cudaGetLastError();
    queue.error = cudaSuccess;
    return error;
}

/* Each kernel by itself the first time, because then products are timed and scratch memory grows. */
void Graphs::run(Queue &queue, const GraphKey &key, const std::function<void()> &enqueue) {
    const bool repeated = latest == key;
    if (graphs.size() >= MOST_GRAPHS) forget();
    latest = key;

    auto found = graphs.find(key);
    if (capture != Capture::never && repeated && found == graphs.end() && queue.error == cudaSuccess) {
        cudaGraphExec_t captured = nullptr;
        const cudaError_t error = capture_work(&captured, queue, enqueue);
        if (error == cudaSuccess) {
            found = graphs.emplace(key, captured).first;
        } else {
            refused++;
            if (capture == Capture::always)
                return note(queue, error, "the capture of a pass, on which PYGPT_CUDA_GRAPH=1 insists");
            capture = Capture::never;
        }
    }
    if (found != graphs.end()) {
        launched++;
        note(queue, cudaGraphLaunch(found->second, queue.stream), "a captured pass");
    } else {
        enqueue();
    }
}

void run_pass(GPT2 *m, Pass pass) {
    const int64_t replaced = m->replaced + m->queue.replaced;
    if (replaced != m->graphs_replaced) m->graphs.forget();
    m->graphs_replaced = replaced;
    m->graphs.run(m->queue, {m->B, m->T, static_cast<int64_t>(pass), m->training}, [=] { enqueue_pass(m, pass); });
}

int gpt2_graphs(GPT2 *m, int64_t *launched, int64_t *refused) {
    USE(m);
    *launched = m->graphs.launched;
    *refused = m->graphs.refused;
    return PYGPT_OK;
}
