/* The running block as its threads see it: where they are, how they wait for each other, what they share.
 *
 * Each thread of a block is a fiber, and a block stays on one host thread. A thread runs until it must wait, at a
 * barrier or for the other lanes of a warp operation; then the next one that can run goes on. */
#pragma once

#include "vector_types.h"

#include <cstddef>
#include <cstdint>

/* Variables, not macros, so that a debugger can print them. Every switch to another thread sets threadIdx. */
#define EMULATION_THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))
extern EMULATION_THREAD_LOCAL uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

/* A place in the source: what a report names, and what tells one barrier from another. As a default argument,
 * Site::here() is the place of the call. */
struct Site {
    const char *file;
    int line;

    static constexpr Site here(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

/* Waits until every thread of the block is here. */
void barrier(Site site);

/* An operation of the lanes in `mask`. Each gives its operand and waits; when the last one has come, complete() is
 * called once with the operands of all (NULL for lanes outside the mask); what it writes into them is the result. */
using Complete = void (*)(void *const operands[32], unsigned mask);
void collective(const char *name, unsigned mask, void *operand, Complete complete, Site site);

/* The block's own memory for one declaration of a shared array, known by `key`. It holds no value yet. */
void *shared_array(const void *key, size_t bytes, Site site);

/* The dynamic shared memory that the launch asked for. */
void *shared_dynamic();

/* An asynchronous copy of the calling thread: its destination holds nothing readable until the wait. */
void copy_async(void *shared, const void *global, size_t bytes, size_t valid_bytes, Site site);
void copy_async_commit();
void copy_async_wait(unsigned groups_left);

/* Sums of the calling thread that an asynchronous product adds to: product_sums() says where they are while it does, and
 * d itself holds nothing readable until the wait. */
float *product_sums(float *d);
void product_commit();
void product_wait(unsigned groups_left);
constexpr unsigned sums_of_product = 32;   // floats of a thread

/* Ends the launch with an error: "kernel K, block (x,y,z), thread t: operation at file:line: ...". */
[[noreturn]] void fail(const char *operation, Site site, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Fails unless `bytes` from p on lie in the block's shared memory, at a multiple of `alignment`. */
void require_shared(const char *operation, const void *p, size_t bytes, size_t alignment, Site site);

unsigned lane();

/* A value that no kernel should see: NaN as float, double and bfloat16, and another one for another seed. */
void fill_undefined(void *p, size_t bytes, unsigned seed);

} // namespace emulation

inline void __syncthreads(emulation::Site site = emulation::Site::here()) {
    emulation::barrier(site);
}
