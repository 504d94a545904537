/* A launch: a kernel, its arguments, and in which order its blocks and threads run. */
#pragma once

#include "vector_types.h"

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulation {

/* PYGPT_EMULATION_ORDER=forward|reverse|random:SEED. A correct kernel gives the same bits in each. */
struct Order {
    enum Kind { forward, reverse, random } kind = forward;
    uint64_t seed = 0;
    unsigned fill = 0;       // varies what undefined memory holds
    bool asked_for = false;  // then blocks run one after another
};

struct Launch {
    const char *kernel = nullptr;
    dim3 grid, block;
    size_t shared_bytes = 0;                        // dynamic
    size_t shared_limit = 0;                        // dynamic and static together
    void (*call)(const void *arguments) = nullptr;  // runs the kernel's body for the current thread
    const void *arguments = nullptr;
    Order order;
    mutable char start = 0, end = 0;   // what the race search knows the beginning and the end of the launch by
};

/* Runs one block on the calling host thread. Returns "", or "block (x,y,z)..." with what went wrong. */
std::string run_block(const Launch &launch, uint64_t block);

/* Runs every block; with OpenMP several at a time. Returns "", or a sentence on the first failing block. */
std::string run_grid(Launch launch);

/* The order that the environment asks for. False: it makes no sense. */
bool read_order(Order &order);

uint64_t next_random(uint64_t &state);

}   // namespace emulation
