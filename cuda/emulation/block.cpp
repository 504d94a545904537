/* Runs the threads of a block as fibers, and says so when they cannot go on.
 *
 * One Runner for each host thread. Of the fibers of a block exactly one runs; when it must wait, it picks the next
 * thread and switches to it directly. A thread that ends hands its fiber to the next one if that has not begun, so a
 * kernel without barriers is a plain loop over its threads. */
#include "block.h"
#include "fiber.h"
#include "grid.h"
#include "sanitizers.h"

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <sys/mman.h>
#include <vector>

EMULATION_THREAD_LOCAL uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

#ifdef EMULATION_TSAN
constexpr bool searching_races = true;
#else
constexpr bool searching_races = false;
#endif

struct AsyncCopy {
    void *shared;
    unsigned char data[16];
    unsigned bytes;
    unsigned group;
};

struct ProductSums {
    float *d;
    float values[sums_of_product];
    unsigned group;
};

struct Thread {
    Fiber *fiber = nullptr;            // NULL before it begins and after it ends
    uint3 index{};
    bool exited = false;
    const char *waits_in = nullptr;    // the barrier or operation it waits in
    Site site{};
    unsigned mask = 0;                 // of the warp operation it waits in
    void *operand = nullptr;
    std::vector<AsyncCopy> copies;     // not yet waited for
    unsigned groups = 0;               // committed so far
    std::deque<ProductSums> sums;      // of products not yet waited for
    unsigned product_groups = 0;       // committed so far
};

struct Warp {
    uint32_t runnable = 0;         // lanes that can run, and the one that runs
    uint32_t waiting = 0;          // lanes in a warp operation
    Thread *first = nullptr;       // of these
    bool agreed = false;           // all of these are in the same one
};

struct SharedArray {
    const void *key;
    unsigned char *start;
    size_t bytes;
};

constexpr size_t red_zone = 64;
constexpr size_t dynamic_start = 1024;   // its alignment, too
constexpr size_t most_arrays = 64;
constexpr size_t arena_bytes = dynamic_start + (size_t{256} << 10) + (most_arrays + 1) * (red_zone + 16);

struct Runner {
    const Launch *launch = nullptr;
    uint3 dimensions{};                // of the block that `threads` is laid out for
    unsigned count = 0;                // threads in the block
    std::vector<Thread> threads;
    Thread *current = nullptr;
    unsigned arrived = 0;              // at the barrier
    unsigned barriers = 0;             // passed by all so far
    char barrier_keys[2]{};
    Thread *first_arrived = nullptr;
    unsigned exited = 0;
    uint32_t runnable_warps = 0;       // those with runnable lanes
    Warp warps[32];
    uint64_t random = 0;

    Fiber host;                        // who called run_block
    std::vector<Fiber *> idle;

    unsigned char *arena = nullptr;    // shared memory: the dynamic part, then each array as it is first met
    size_t arena_used = 0;
    std::vector<SharedArray> arrays;

    std::string error;
    Runner *next_made = nullptr;

    unsigned number(const Thread &t) const {
        return static_cast<unsigned>(&t - threads.data());
    }
    uint32_t lanes(unsigned warp) const {
        const unsigned left = count - warp * 32;
        return left >= 32 ? ~uint32_t{0} : (uint32_t{1} << left) - 1;
    }
    void set_runnable(unsigned warp, uint32_t mask) {
        warps[warp].runnable |= mask;
        runnable_warps |= uint32_t{1} << warp;
    }
    void clear_runnable(const Thread &t) {
        const unsigned warp = number(t) / 32;
        warps[warp].runnable &= ~(uint32_t{1} << number(t) % 32);
        if (!warps[warp].runnable) runnable_warps &= ~(uint32_t{1} << warp);
    }
    void enter(Thread &t) {
        current = &t;
        threadIdx = t.index;
    }

    Thread *pick();
    Fiber *take_fiber();
    void wait();
    std::string stuck() const;
    std::string name(const Thread &t) const;
};

static EMULATION_THREAD_LOCAL Runner *here;

static std::string print(const char *format, ...) __attribute__((format(printf, 1, 2)));
static std::string print(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return text;
}

static std::string print(Site site) {
    const char *slash = strrchr(site.file, '/');
    return print("%s:%d", slash ? slash + 1 : site.file, site.line);
}

static bool same(Site a, Site b) {
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

static unsigned nth_bit(uint32_t mask, unsigned n) {
    while (n--) mask &= mask - 1;
    return static_cast<unsigned>(__builtin_ctz(mask));
}

uint64_t next_random(uint64_t &state) {   // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* The thread to run next, or NULL: a warp's lanes before the next warp's, upwards or downwards, or any at random. */
Thread *Runner::pick() {
    if (!runnable_warps) return nullptr;
    unsigned warp = current ? number(*current) / 32 : 0, lane = 0;
    switch (launch->order.kind) {
    case Order::forward:
        if (!warps[warp].runnable) {
            const uint32_t later = runnable_warps & ~((uint32_t{2} << warp) - 1);
            warp = static_cast<unsigned>(__builtin_ctz(later ? later : runnable_warps));
        }
        lane = static_cast<unsigned>(__builtin_ctz(warps[warp].runnable));
        break;
    case Order::reverse:
        if (!current || !warps[warp].runnable) {
            const uint32_t earlier = current ? runnable_warps & ((uint32_t{1} << warp) - 1) : 0;
            warp = 31 - static_cast<unsigned>(__builtin_clz(earlier ? earlier : runnable_warps));
        }
        lane = 31 - static_cast<unsigned>(__builtin_clz(warps[warp].runnable));
        break;
    case Order::random:
        const uint64_t r = next_random(random);
        warp = nth_bit(runnable_warps, static_cast<unsigned>(r >> 32) % __builtin_popcount(runnable_warps));
        lane = nth_bit(warps[warp].runnable, static_cast<unsigned>(r) % __builtin_popcount(warps[warp].runnable));
        break;
    }
    return &threads[warp * 32 + lane];
}

static void fiber_main() {
    for (;;) {
        Runner &r = *here;
        observe(&r.launch->start);
        r.launch->call(r.launch->arguments);
        publish(&r.launch->end);
        Thread &done = *r.current;
        Fiber *self = done.fiber;
        done.exited = true;
        r.exited++;
        r.clear_runnable(done);
        Thread *next = r.pick();
        if (!searching_races) {   // there, two threads on one fiber would look like one
            done.fiber = nullptr;
            if (next && !next->fiber) {
                next->fiber = self;
                r.enter(*next);
                continue;
            }
            r.idle.push_back(self);
        }
        if (next && !next->fiber) next->fiber = r.take_fiber();
        if (next && next->fiber) {
            r.enter(*next);
            fiber_switch(self, next->fiber);
        } else {
            if (next)
                r.error = ": no memory for another fiber";
            else if (r.exited < r.count)
                r.error = r.stuck();
            fiber_switch(self, &r.host);
        }
    }
}

Fiber *Runner::take_fiber() {
    if (idle.empty()) return fiber_create(fiber_main);
    Fiber *fiber = idle.back();
    idle.pop_back();
    return fiber;
}

/* Lets others run until the calling thread can. */
void Runner::wait() {
    Thread &self = *current;
    clear_runnable(self);
    Thread *next = pick();
    if (next && !next->fiber) next->fiber = take_fiber();
    if (!next || !next->fiber) {
        error = next ? ": no memory for another fiber" : stuck();
        fiber_switch(self.fiber, &host);
    }
    enter(*next);
    fiber_switch(self.fiber, next->fiber);
    self.waits_in = nullptr;
}

void barrier(Site site) {
    Runner &r = *here;
    Thread &self = *r.current;
    if (r.arrived == 0)
        r.first_arrived = &self;
    else if (!same(site, r.first_arrived->site))
        fail("__syncthreads", site, "%s waits at another one, at %s", r.name(*r.first_arrived).c_str(),
             print(r.first_arrived->site).c_str());
    self.site = site;
    char *const key =
        &r.barrier_keys[r.barriers % 2];   // some may reach the next barrier before others have left this one
    publish(key);
    if (++r.arrived == r.count) {
        r.arrived = 0;
        r.barriers++;
        for (unsigned warp = 0; warp * 32 < r.count; warp++) r.set_runnable(warp, r.lanes(warp));
    } else {
        self.waits_in = "__syncthreads";
        r.wait();
    }
    observe(key);
}

static bool same_operation(const Thread &a, const Thread &b) {
    return a.mask == b.mask && same(a.site, b.site) && strcmp(a.waits_in, b.waits_in) == 0;
}

void collective(const char *name, unsigned mask, void *operand, Complete complete, Site site) {
    Runner &r = *here;
    Thread &self = *r.current;
    Warp &warp = r.warps[r.number(self) / 32];
    Thread *const lanes = &r.threads[r.number(self) / 32 * 32];
    const unsigned lane = r.number(self) % 32;
    if (!(mask >> lane & 1)) fail(name, site, "the mask 0x%08x does not name the calling lane, %u", mask, lane);
    self.waits_in = name;
    self.site = site;
    self.mask = mask;
    self.operand = operand;
    if (!warp.waiting) {
        warp.first = &self;
        warp.agreed = true;
    } else if (!warp.agreed || !same_operation(self, *warp.first)) {
        // not yet a mistake: parts of a warp may go different ways, unless two lanes each wait for the other elsewhere
        warp.agreed = false;
        for (unsigned k = 0; k < 32; k++) {
            const Thread &other = lanes[k];
            if (warp.waiting & mask & 1u << k && other.mask >> lane & 1 && !same_operation(self, other))
                fail(name, site,
                     "lane %u calls it with the mask 0x%08x while lane %u waits in %s at %s with the mask 0x%08x", lane,
                     mask, k, other.waits_in, print(other.site).c_str(), other.mask);
        }
    }
    warp.waiting |= 1u << lane;
    publish(&warp);
    bool all_here = (warp.waiting & mask) == mask;
    if (all_here && !warp.agreed)
        for (unsigned k = 0; k < 32; k++) all_here = all_here && (!(mask >> k & 1) || same_operation(self, lanes[k]));
    if (!all_here) {
        r.wait();
        observe(&self.operand);
        return;
    }
    void *operands[32];
    for (unsigned k = 0; k < 32; k++) operands[k] = mask >> k & 1 ? lanes[k].operand : nullptr;
    observe(&warp);
    complete(operands, mask);
    for (unsigned k = 0; k < 32; k++)
        if (mask >> k & 1) publish(&lanes[k].operand);
    warp.waiting &= ~mask;
    r.set_runnable(r.number(self) / 32, mask);
    self.waits_in = nullptr;
}

void *shared_array(const void *key, size_t bytes, Site site) {
    Runner &r = *here;
    for (const SharedArray &array : r.arrays)
        if (array.key == key) return array.start;
    size_t total = r.launch->shared_bytes + bytes;
    for (const SharedArray &array : r.arrays) total += array.bytes;
    if (total > r.launch->shared_limit || r.arrays.size() == most_arrays)
        fail("shared memory", site, "the block needs more than the %zu bytes or %zu arrays that it may have",
             r.launch->shared_limit, most_arrays);
    unsigned char *start = r.arena + r.arena_used;
    r.arrays.push_back({key, start, bytes});
    r.arena_used += (bytes + red_zone + 15) / 16 * 16;
    allow(start, bytes);
    fill_undefined(start, bytes, r.launch->order.fill);
    return start;
}

void *shared_dynamic() {
    return here->arena + dynamic_start;
}

void require_shared(const char *operation, const void *p, size_t bytes, size_t alignment, Site site) {
    const Runner &r = *here;
    const auto *start = static_cast<const unsigned char *>(p);
    if (start < r.arena + dynamic_start || start + bytes > r.arena + r.arena_used - red_zone)
        fail(operation, site, "the address is not in the block's shared memory");
    if (reinterpret_cast<uintptr_t>(p) % alignment)
        fail(operation, site, "the address is not a multiple of %zu", alignment);
}

void copy_async(void *shared, const void *global, size_t bytes, size_t valid_bytes, Site site) {
    Runner &r = *here;
    require_shared("cp_async", shared, bytes, bytes, site);
    if (reinterpret_cast<uintptr_t>(global) % bytes)
        fail("cp_async", site, "the global address is not a multiple of %zu", bytes);
    AsyncCopy copy{shared, {}, static_cast<unsigned>(bytes), r.current->groups};
    memcpy(copy.data, global, valid_bytes);
    r.current->copies.push_back(copy);
    fill_undefined(shared, bytes, r.launch->order.fill);   // whoever still reads the old contents sees it too
}

void copy_async_commit() {
    here->current->groups++;
}

void copy_async_wait(unsigned groups_left) {
    Thread &self = *here->current;
    size_t done = 0;
    for (; done < self.copies.size() && self.copies[done].group + groups_left < self.groups; done++)
        memcpy(self.copies[done].shared, self.copies[done].data, self.copies[done].bytes);
    self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

float *product_sums(float *d) {
    Thread &self = *here->current;
    auto sums = std::find_if(self.sums.begin(), self.sums.end(), [d](const ProductSums &s) { return s.d == d; });
    if (sums == self.sums.end()) {
        sums = self.sums.insert(sums, {d, {}, 0});
        memcpy(sums->values, d, sizeof sums->values);
        fill_undefined(d, sizeof sums->values, here->launch->order.fill);
    }
    sums->group = self.product_groups;
    return sums->values;
}

void product_commit() {
    here->current->product_groups++;
}

void product_wait(unsigned groups_left) {
    Thread &self = *here->current;
    for (auto sums = self.sums.begin(); sums != self.sums.end();) {
        const bool done = sums->group + groups_left < self.product_groups;
        if (done) memcpy(sums->d, sums->values, sizeof sums->values);
        sums = done ? self.sums.erase(sums) : sums + 1;
    }
}

unsigned lane() {
    return here->number(*here->current) % 32;
}

void fill_undefined(void *p, size_t bytes, unsigned seed) {
    // exponent bits all set and fraction bits not all clear, in each half and so in any width; the sign varies too
    const uint32_t half = 0x7ff0u | (1 + seed % 15) | (seed / 15 % 2) << 15;
    const uint32_t word = half << 16 | half;
    auto *bytes_of = static_cast<unsigned char *>(p);
    size_t i = 0;
    for (; i + sizeof word <= bytes; i += sizeof word) memcpy(bytes_of + i, &word, sizeof word);
    memcpy(bytes_of + i, &word, bytes - i);
}

void fail(const char *operation, Site site, const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    Runner &r = *here;
    r.error = ", " + r.name(*r.current) + ": " + operation + " at " + print(site) + ": " + text;
    fiber_switch(r.current->fiber, &r.host);
    __builtin_trap();   // the fiber has been abandoned
}

std::string Runner::name(const Thread &t) const {
    if (dimensions.y == 1 && dimensions.z == 1) return print("thread %u", t.index.x);
    return print("thread (%u,%u,%u)", t.index.x, t.index.y, t.index.z);
}

static bool at_barrier(const Thread &t) {
    return strcmp(t.waits_in, "__syncthreads") == 0;
}

/* Why nobody can run, with each group of neighbouring threads that wait at the same place. */
std::string Runner::stuck() const {
    const Thread *first =
        nullptr;   // a warp operation if there is one: who misses it may miss the barrier because of it
    for (const Thread &t : threads)
        if (!t.exited && (!first || (at_barrier(*first) && !at_barrier(t)))) first = &t;
    const unsigned warp = number(*first) / 32;
    std::string text = ": " + std::string(first->waits_in) + " at " + print(first->site);
    if (at_barrier(*first))
        text += print(" is not reached by all %u threads:", count);
    else
        text += print(" is not reached by every lane of warp %u that its mask 0x%08x names:", warp, first->mask);
    const unsigned last_group = 7;
    unsigned groups = 0;
    for (unsigned i = 0, end = 0; i < count; i = end) {
        const Thread &t = threads[i];
        for (end = i + 1; end < count; end++) {
            const Thread &u = threads[end];
            if (u.exited != t.exited || (!t.exited && (strcmp(u.waits_in, t.waits_in) != 0 || !same(u.site, t.site))))
                break;
        }
        if (groups++ == last_group) {
            text += "; ...";
            break;
        }
        text += groups > 1 ? "; " : " ";
        text += end - i > 1 ? print("threads %u-%u", i, end - 1) : print("thread %u", i);
        if (t.exited)
            text += end - i > 1 ? " have exited" : " has exited";
        else
            text += std::string(end - i > 1 ? " wait in " : " waits in ") + t.waits_in + " at " + print(t.site);
    }
    if (!at_barrier(*first) && warp == count / 32) text += print("; this warp has only %u lanes", count % 32);
    return text;
}

#ifdef EMULATION_ASAN
static void say_where(const char *) {
    if (here && here->current)
        fprintf(stderr, "in kernel %s, block (%u,%u,%u), thread (%u,%u,%u)\n", here->launch->kernel, blockIdx.x,
                blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
}
#endif

static Runner *make_runner() {
    static std::atomic<Runner *> all;   // keeps each one reachable after its host thread has ended
    auto *runner = new Runner;
    runner->next_made = all.exchange(runner);
#ifdef EMULATION_ASAN
    __asan_set_error_report_callback(say_where);
#endif
    return runner;
}

std::string run_block(const Launch &launch, uint64_t block) {
    static thread_local Runner *const made = make_runner();   // kept for the life of the host thread
    Runner &r = *(here = made);
    if (searching_races && r.arena) {   // to the sanitizer, each block must have memory of its own
        munmap(r.arena, arena_bytes);
        r.arena = nullptr;
    }
    if (!r.arena) {
        void *memory = mmap(nullptr, arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return ": no memory for shared memory";
        r.arena = static_cast<unsigned char *>(memory);
    }
    r.launch = &launch;
    gridDim = launch.grid;
    blockDim = r.dimensions = launch.block;
    blockIdx = {static_cast<unsigned>(block % gridDim.x), static_cast<unsigned>(block / gridDim.x % gridDim.y),
                static_cast<unsigned>(block / gridDim.x / gridDim.y)};

    r.count = blockDim.x * blockDim.y * blockDim.z;
    r.threads.resize(r.count);
    unsigned i = 0;
    for (unsigned z = 0; z < blockDim.z; z++)
        for (unsigned y = 0; y < blockDim.y; y++)
            for (unsigned x = 0; x < blockDim.x; x++) {
                Thread &t = r.threads[i++];
                t.index = {x, y, z};
                t.exited = false;
                t.waits_in = nullptr;
                t.operand = nullptr;
                t.copies.clear();
                if (searching_races)   // memory that fibers hand to each other would look like a race
                    t.copies.reserve(256);
                t.groups = t.product_groups = 0;
                t.sums.clear();
            }
    r.arrived = r.barriers = r.exited = 0;
    r.runnable_warps = 0;
    for (unsigned warp = 0; warp < 32; warp++) {
        r.warps[warp] = {};
        if (warp * 32 < r.count) r.set_runnable(warp, r.lanes(warp));
    }
    r.random = launch.order.seed ^ block * 0x9e3779b97f4a7c15u;

    forbid(r.arena, arena_bytes);
    r.arrays.clear();
    r.arena_used = dynamic_start + (launch.shared_bytes + red_zone + 15) / 16 * 16;
    allow(shared_dynamic(), launch.shared_bytes);
    fill_undefined(shared_dynamic(), launch.shared_bytes, launch.order.fill);

    if (searching_races)   // one made by another thread's fiber would count as coming after it
        for (Fiber *fiber = &r.host; fiber && r.idle.size() < r.count;)
            if ((fiber = fiber_create(fiber_main))) r.idle.push_back(fiber);

    r.current = nullptr;
    r.error.clear();
    Thread *first = r.pick();
    first->fiber = r.take_fiber();
    if (!first->fiber) return ": no memory for a fiber";
    publish(&launch.start);
    r.enter(*first);
    fiber_switch(&r.host, first->fiber);
    r.current = nullptr;
    for (Thread &t : r.threads)
        if (t.fiber) {
            if (!t.exited) fiber_restart(t.fiber);
            r.idle.push_back(t.fiber);
            t.fiber = nullptr;
        }
    if (r.error.empty()) return "";
    return print("block (%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z) + r.error;
}

} // namespace emulation
