/* What this library was built for, and what the processor offers. */
#include "fast/simd.h"   // the instruction set, also where it is emulated
#include "pygpt.h"

const char *pygpt_library(void) {
#if defined(__AVX512BF16__)
    return "x86-64-v4-bf16";
#elif defined(__AVX512F__)
    return "x86-64-v4";
#elif defined(__AVX2__)
    return "x86-64-v3";
#elif defined(__ARM_NEON)
    return "neon";
#else
    return "baseline";
#endif
}

const char *pygpt_processor(void) {
#if defined(PYGPT_EMULATED_PROCESSOR)
    return PYGPT_EMULATED_PROCESSOR;
#elif defined(__x86_64__)
    __builtin_cpu_init();
    int v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    int v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    if (v4 && __builtin_cpu_supports("avx512bf16")) return "x86-64-v4-bf16";
    return v4 ? "x86-64-v4" : v3 ? "x86-64-v3" : "baseline";
#else
    return pygpt_library();   // one build serves every processor
#endif
}
