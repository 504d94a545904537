/* Registers are saved on the fiber's own stack, so a switch is a dozen moves. Where no assembly is written here,
 * ucontext does the same through two system calls. */
#include "fiber.h"
#include "sanitizers.h"

#include <cstdint>
#include <cstring>
#include <new>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(EMULATION_UCONTEXT)
#define EMULATION_UCONTEXT 1
#endif

#ifdef EMULATION_UCONTEXT
#include <ucontext.h>
#endif

namespace emulation {

static thread_local Fiber *running;    // valid inside fibers, and on the host thread after its first switch
static thread_local Fiber *previous;   // who switched to `running`

/* What every fiber does when it comes to run, first or again. */
static void arrived() {
#ifdef EMULATION_ASAN
    const void *stack = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(running->fake_stack, &stack, &bytes);
    previous->stack = static_cast<unsigned char *>(const_cast<void *>(stack));
    previous->stack_bytes = bytes;
#endif
}

static void fiber_entry() {
    arrived();
    running->entry();
    __builtin_trap();
}

#ifdef EMULATION_UCONTEXT

static void context_prepare(Fiber *fiber) {
    auto *context = static_cast<ucontext_t *>(fiber->stack_pointer);
    if (!context) fiber->stack_pointer = context = new ucontext_t;
    getcontext(context);
    context->uc_stack.ss_sp = fiber->stack;
    context->uc_stack.ss_size = fiber->stack_bytes;
    context->uc_link = nullptr;
    makecontext(context, fiber_entry, 0);
}

static void context_switch(Fiber *from, Fiber *to) {
    if (!from->stack_pointer) from->stack_pointer = new ucontext_t;
    swapcontext(static_cast<ucontext_t *>(from->stack_pointer), static_cast<ucontext_t *>(to->stack_pointer));
}

#else

extern "C" void emulation_switch(void **save, void *load);
extern "C" void emulation_start();
extern "C" __attribute__((used)) void emulation_entry() {
    fiber_entry();
}

#if defined(__x86_64__)
/* The start has no caller: an undefined return address ends a debugger's backtrace there. */
asm(R"(
    .text
    .p2align 4
    .globl  emulation_switch
    .hidden emulation_switch
    .type   emulation_switch, @function
emulation_switch:
    .cfi_startproc
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq  %rsp, (%rdi)
    movq  %rsi, %rsp
    popq  %r15
    popq  %r14
    popq  %r13
    popq  %r12
    popq  %rbx
    popq  %rbp
    ret
    .cfi_endproc
    .size   emulation_switch, . - emulation_switch

    .globl  emulation_start
    .hidden emulation_start
    .type   emulation_start, @function
emulation_start:
    .cfi_startproc
    .cfi_undefined rip
    xorl  %ebp, %ebp
    call  emulation_entry
    ud2
    .cfi_endproc
    .size   emulation_start, . - emulation_start
)");
constexpr size_t saved_words = 7;   // six registers, then the return address
constexpr size_t return_word = 6;
#else
asm(R"(
    .text
    .p2align 4
    .globl  emulation_switch
    .hidden emulation_switch
    .type   emulation_switch, %function
emulation_switch:
    .cfi_startproc
    sub  sp, sp, #160
    stp  x19, x20, [sp, #0]
    stp  x21, x22, [sp, #16]
    stp  x23, x24, [sp, #32]
    stp  x25, x26, [sp, #48]
    stp  x27, x28, [sp, #64]
    stp  x29, x30, [sp, #80]
    stp  d8,  d9,  [sp, #96]
    stp  d10, d11, [sp, #112]
    stp  d12, d13, [sp, #128]
    stp  d14, d15, [sp, #144]
    mov  x9, sp
    str  x9, [x0]
    mov  sp, x1
    ldp  x19, x20, [sp, #0]
    ldp  x21, x22, [sp, #16]
    ldp  x23, x24, [sp, #32]
    ldp  x25, x26, [sp, #48]
    ldp  x27, x28, [sp, #64]
    ldp  x29, x30, [sp, #80]
    ldp  d8,  d9,  [sp, #96]
    ldp  d10, d11, [sp, #112]
    ldp  d12, d13, [sp, #128]
    ldp  d14, d15, [sp, #144]
    add  sp, sp, #160
    ret
    .cfi_endproc
    .size   emulation_switch, . - emulation_switch

    .globl  emulation_start
    .hidden emulation_start
    .type   emulation_start, %function
emulation_start:
    .cfi_startproc
    .cfi_undefined x30
    mov  x29, #0
    bl   emulation_entry
    brk  #1
    .cfi_endproc
    .size   emulation_start, . - emulation_start
)");
constexpr size_t saved_words = 20;
constexpr size_t return_word = 11;   // x30
#endif

static void context_prepare(Fiber *fiber) {
    auto top = reinterpret_cast<uintptr_t>(fiber->stack + fiber->stack_bytes) & ~uintptr_t{15};
    auto *saved = reinterpret_cast<void **>(top) - saved_words;   // leaves the alignment that a call expects
    memset(saved, 0, saved_words * sizeof *saved);
    saved[return_word] = reinterpret_cast<void *>(emulation_start);
    fiber->stack_pointer = saved;
}

static void context_switch(Fiber *from, Fiber *to) {
    emulation_switch(&from->stack_pointer, to->stack_pointer);
}

#endif

Fiber *fiber_create(void (*entry)()) {
    static thread_local unsigned made;
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = size_t{512} << 10;   // untouched pages cost nothing; frames are large in sanitizer builds
    void *memory = mmap(nullptr, page + bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    mprotect(memory, page, PROT_NONE);   // an overflow stops here instead of running into another stack
    auto *fiber = new (std::nothrow) Fiber;
    if (!fiber) return nullptr;
    fiber->stack = static_cast<unsigned char *>(memory) + page;
    fiber->stack_bytes = bytes - made++ % 16 * 256;   // tops at equal page offsets would fight for the same cache lines
    fiber->entry = entry;
#ifdef EMULATION_TSAN
    fiber->race_context = __tsan_create_fiber(0);
#endif
    context_prepare(fiber);
    return fiber;
}

void fiber_restart(Fiber *fiber) {
    allow(fiber->stack, fiber->stack_bytes);   // abandoned frames leave their red zones behind
    fiber->fake_stack = nullptr;
    context_prepare(fiber);
}

void fiber_switch(Fiber *from, Fiber *to) {
    previous = from;
    running = to;
#ifdef EMULATION_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
#ifdef EMULATION_TSAN
    if (!from->race_context) from->race_context = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to->race_context, __tsan_switch_to_fiber_no_sync);
#endif
    context_switch(from, to);
    arrived();
}

}   // namespace emulation
