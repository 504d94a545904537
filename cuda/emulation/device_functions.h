/* CUDA's functions of one thread: arithmetic, bits, loads and stores with cache hints, atomics, fences.
 * Atomic addition of floats is missing on purpose: its order, and so its bits, would differ from run to run. */
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// CUDA's global overloads, which C's mathematics lacks
using std::abs;

#define EMULATION_MIN_MAX(T)                                                                                           \
    constexpr T min(T a, T b) {                                                                                        \
        return b < a ? b : a;                                                                                          \
    }                                                                                                                  \
    constexpr T max(T a, T b) {                                                                                        \
        return a < b ? b : a;                                                                                          \
    }
EMULATION_MIN_MAX(int)
EMULATION_MIN_MAX(unsigned)
EMULATION_MIN_MAX(long)
EMULATION_MIN_MAX(unsigned long)
EMULATION_MIN_MAX(long long)
EMULATION_MIN_MAX(unsigned long long)
#undef EMULATION_MIN_MAX

inline float min(float a, float b) {
    return fminf(a, b);
}
inline float max(float a, float b) {
    return fmaxf(a, b);
}
inline double min(double a, double b) {
    return fmin(a, b);
}
inline double max(double a, double b) {
    return fmax(a, b);
}

inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
inline float __expf(float x) {
    return expf(x);
}
inline float __logf(float x) {
    return logf(x);
}
inline float __fdividef(float a, float b) {
    return a / b;
}
inline float __frcp_rn(float x) {
    return 1.0f / x;
}
inline float __fsqrt_rn(float x) {
    return sqrtf(x);
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
inline float __saturatef(float x) {
    return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f;   // NaN becomes 0, as on the device
}

namespace emulation {
template <class To, class From> To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
} // namespace emulation

inline int __float_as_int(float x) {
    return emulation::same_bits<int>(x);
}
inline unsigned __float_as_uint(float x) {
    return emulation::same_bits<unsigned>(x);
}
inline float __int_as_float(int x) {
    return emulation::same_bits<float>(x);
}
inline float __uint_as_float(unsigned x) {
    return emulation::same_bits<float>(x);
}

inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
inline int __dp4a(int a, int b, int c) {
    for (int shift = 0; shift < 32; shift += 8) c += static_cast<int8_t>(a >> shift) * static_cast<int8_t>(b >> shift);
    return c;
}
inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __clz(int x) {
    return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}

// loads and stores whose cache hints mean nothing here
template <class T> T __ldg(const T *p) {
    return *p;
}
template <class T> T __ldcg(const T *p) {
    return *p;
}
template <class T> T __ldcs(const T *p) {
    return *p;
}
template <class T, class U> void __stcg(T *p, U value) {
    *p = value;
}
template <class T, class U> void __stcs(T *p, U value) {
    *p = value;
}

// atomics return the old value; real ones, because blocks may run on several host threads
#define EMULATION_ATOMICS(T)                                                                                           \
    inline T atomicAdd(T *p, T value) {                                                                                \
        return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);                                                         \
    }                                                                                                                  \
    inline T atomicExch(T *p, T value) {                                                                               \
        return __atomic_exchange_n(p, value, __ATOMIC_RELAXED);                                                        \
    }                                                                                                                  \
    inline T atomicCAS(T *p, T expected, T value) {                                                                    \
        __atomic_compare_exchange_n(p, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                   \
        return expected;                                                                                               \
    }                                                                                                                  \
    inline T atomicOr(T *p, T value) {                                                                                 \
        return __atomic_fetch_or(p, value, __ATOMIC_RELAXED);                                                          \
    }                                                                                                                  \
    inline T atomicAnd(T *p, T value) {                                                                                \
        return __atomic_fetch_and(p, value, __ATOMIC_RELAXED);                                                         \
    }                                                                                                                  \
    inline T atomicMax(T *p, T value) {                                                                                \
        T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                                  \
        while (old < value &&                                                                                          \
               !__atomic_compare_exchange_n(p, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));               \
        return old;                                                                                                    \
    }                                                                                                                  \
    inline T atomicMin(T *p, T value) {                                                                                \
        T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                                  \
        while (value < old &&                                                                                          \
               !__atomic_compare_exchange_n(p, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));               \
        return old;                                                                                                    \
    }
EMULATION_ATOMICS(int)
EMULATION_ATOMICS(unsigned)
EMULATION_ATOMICS(unsigned long long)
#undef EMULATION_ATOMICS

inline void __threadfence() {
    static int place;   // a read-modify-write orders like a fence, and ThreadSanitizer understands it
    __atomic_fetch_add(&place, 0, __ATOMIC_SEQ_CST);
}
inline void __threadfence_block() {}
