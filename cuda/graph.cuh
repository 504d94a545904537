/* Work that is captured into a CUDA graph when it repeats, and from then on launched as a whole. */
#pragma once

#include "layers/layers.cuh"

#include <array>
#include <functional>
#include <map>
#include <optional>

/* Whether work is captured into graphs; what CUDA would not have is an error with `always`. */
enum class Capture { never, where_possible, always };

/* What a graph was captured for. Work with the same key is the same kernels with the same arguments. */
using GraphKey = std::array<int64_t, 4>;

struct Graphs {
    Capture capture = Capture::never;
    int64_t launched = 0, refused = 0;

    /* enqueue(), or from the second time in a row on the graph of it. */
    void run(Queue &queue, const GraphKey &key, const std::function<void()> &enqueue);

    /* All of them: the addresses that they hold have changed, or nobody needs them any more. */
    void forget();

  private:
    std::optional<GraphKey> latest;
    std::map<GraphKey, cudaGraphExec_t> graphs;
};
