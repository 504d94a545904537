/* What the compiler's sanitizers must be told; each function is empty in a build without that sanitizer.
 *
 * ThreadSanitizer must search the kernels and not the scheduler, which hands its tables from fiber to fiber: compile
 * the .cpp files here without -fsanitize=thread and with -DEMULATION_TSAN. */
#pragma once

#include <cstddef>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATION_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define EMULATION_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define EMULATION_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define EMULATION_TSAN 1
#endif

#ifdef EMULATION_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMULATION_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace emulation {

/* Whether what may not be touched is watched. */
#ifdef EMULATION_ASAN
constexpr bool watches_memory = true;
#else
constexpr bool watches_memory = false;
#endif

/* May not be touched from now on. */
inline void forbid([[maybe_unused]] const void *start, [[maybe_unused]] size_t bytes) {
#ifdef EMULATION_ASAN
    __asan_poison_memory_region(start, bytes);
#endif
}

inline void allow([[maybe_unused]] const void *start, [[maybe_unused]] size_t bytes) {
#ifdef EMULATION_ASAN
    __asan_unpoison_memory_region(start, bytes);
#endif
}

/* What was written before publish(key) may be read after observe(key). */
inline void publish([[maybe_unused]] void *key) {
#ifdef EMULATION_TSAN
    __tsan_release(key);
#endif
}

inline void observe([[maybe_unused]] void *key) {
#ifdef EMULATION_TSAN
    __tsan_acquire(key);
#endif
}

} // namespace emulation
