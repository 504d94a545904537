#include "grid.h"
#include "sanitizers.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

namespace emulation {

bool read_order(Order &order) {
    order = {};
    const char *text = getenv("PYGPT_EMULATION_ORDER");
    if (!text || !*text) return true;
    order.asked_for = true;
    if (strcmp(text, "forward") == 0) return true;
    order.fill = 16;
    order.kind = Order::reverse;
    if (strcmp(text, "reverse") == 0) return true;
    if (strncmp(text, "random:", 7) != 0) return false;
    char *end;
    order.kind = Order::random;
    order.seed = strtoull(text + 7, &end, 10);
    order.fill = static_cast<unsigned>(1 + order.seed % 14);
    return end != text + 7 && !*end;
}

std::string run_grid(Launch launch) {
    const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
    std::vector<uint64_t> permutation;
    if (launch.order.kind == Order::random) {
        permutation.resize(blocks);
        std::iota(permutation.begin(), permutation.end(), 0);
        uint64_t state = launch.order.seed;
        for (uint64_t i = blocks; i > 1; i--) std::swap(permutation[i - 1], permutation[next_random(state) % i]);
    }
    std::mutex mutex;
    std::atomic<bool> failed{false};
    std::string error;
    uint64_t failing = blocks;
    [[maybe_unused]] const bool parallel = blocks > 1 && !launch.order.asked_for;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) if (parallel)
#endif
    for (uint64_t i = 0; i < blocks; i++) {
        if (failed) continue;
        uint64_t block = i;
        if (launch.order.kind == Order::reverse)
            block = blocks - 1 - i;
        else if (!permutation.empty())
            block = permutation[i];
        std::string sentence = run_block(launch, block);
        if (!sentence.empty()) {
            const std::lock_guard<std::mutex> lock(mutex);
            failed = true;
            if (block < failing) {
                failing = block;
                error = std::string("kernel ") + launch.kernel + ", " + sentence;
            }
        }
    }
    observe(&launch.end);
    return error;
}

} // namespace emulation
