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

#if defined(__x86_64__) && !defined(PYGPT_EMULATED_PROCESSOR)

    #include <cpuid.h>

/* Instructions whose names not every compiler's own check knows. */
static int has_more_of_v3(void) {
    enum { MOVBE = 1 << 22, F16C = 1 << 29, LZCNT = 1 << 5 };   // in the third register
    unsigned a, b, of_intel, of_amd, d;
    return __get_cpuid(1, &a, &b, &of_intel, &d) && (of_intel & MOVBE) && (of_intel & F16C) &&
           __get_cpuid(0x80000001, &a, &b, &of_amd, &d) && (of_amd & LZCNT);
}

#endif

const char *pygpt_processor(void) {
#if defined(PYGPT_EMULATED_PROCESSOR)
    return PYGPT_EMULATED_PROCESSOR;
#elif defined(__x86_64__)
    __builtin_cpu_init();
    /* all that CMakeLists.txt lets the compiler use; the check of AVX includes the operating system's consent */
    int v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2") && has_more_of_v3();
    int v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    if (v4 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) return "x86-64-v4-bf16";
    return v4 ? "x86-64-v4" : v3 ? "x86-64-v3" : "baseline";
#else
    return pygpt_library();   // one build serves every processor
#endif
}
