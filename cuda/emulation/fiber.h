/* A fiber: a stack of its own, and a switch that saves one and resumes another, all within one host thread. */
#pragma once

#include <cstddef>

namespace emulation {

struct Fiber {
    void *stack_pointer = nullptr;      // while it does not run: where its registers lie
    unsigned char *stack = nullptr;     // lowest usable address; a guard page lies below it
    size_t stack_bytes = 0;
    void *fake_stack = nullptr;         // AddressSanitizer's
    void *race_context = nullptr;       // ThreadSanitizer's
    void (*entry)() = nullptr;
};

/* A new fiber that calls entry(), which must never return, when it is first switched to. NULL without memory. */
Fiber *fiber_create(void (*entry)());

/* Forgets what the fiber was doing, so that the next switch to it calls entry() again. */
void fiber_restart(Fiber *fiber);

/* Suspends `from`, which must be what runs now, and continues `to`. A default-made Fiber stands for the host thread. */
void fiber_switch(Fiber *from, Fiber *to);

} // namespace emulation
