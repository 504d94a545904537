/* How fast this processor can be: loops that only multiply and add, or only copy. A benchmark divides by their rates.
 *
 *   multiply-add   s_i = s_i f + g              i < CHAINS, so many independent sums that the latency is hidden
 *   bfloat16       s_i = s_i + Σ_j f_j g_j      two products into each float, where there is an instruction for it
 *   copy           a = b
 *   triad          a = b + f c                  of McCalpin's STREAM (1995)
 *   read           Σ a
 */
#define _POSIX_C_SOURCE 199309L   // clock_gettime

#include <time.h>

#include "fast/simd.h"
#include "internal.h"
#include "threads.h"

#if defined(SIMD_AVX512) || defined(__ARM_NEON)
enum { CHAINS = 24 };   // of 32 registers
#else
enum { CHAINS = 12 };   // of 16
#endif

enum { STEPS = 1 << 14 };   // between two looks at the clock: tens of microseconds

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Not known to the compiler, so that it does every operation; f < 1 keeps the sums near 1. */
static volatile float FACTOR = 0.9999f, ADDEND = 0.0001f, sink;

/* Floating-point operations of one call. */
static double multiply_adds(void) {
    Floats f = broadcast(FACTOR), g = broadcast(ADDEND), sum[CHAINS];
    for (int i = 0; i < CHAINS; i++) sum[i] = broadcast((float)i);
    for (int step = 0; step < STEPS; step++) {
        UNROLL
        for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * f + g;
    }
    for (int i = 1; i < CHAINS; i++) sum[0] += sum[i];
    sink = sum_lanes(sum[0]);
    return 2.0 * LANES * CHAINS * STEPS;
}

#if defined(__AVX512BF16__) && defined(SIMD_AVX512)

static double bfloat16_products(void) {
    __m512bh f = _mm512_cvtne2ps_pbh((__m512)broadcast(FACTOR), (__m512)broadcast(FACTOR));
    __m512bh g = _mm512_cvtne2ps_pbh((__m512)broadcast(ADDEND), (__m512)broadcast(-ADDEND));
    __m512 sum[CHAINS];
    for (int i = 0; i < CHAINS; i++) sum[i] = (__m512)broadcast((float)i);
    for (int step = 0; step < STEPS; step++) {
        UNROLL
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_dpbf16_ps(sum[i], f, g);
    }
    for (int i = 1; i < CHAINS; i++) sum[0] = _mm512_add_ps(sum[0], sum[i]);
    sink = sum_lanes((Floats)sum[0]);
    return 4.0 * LANES * CHAINS * STEPS;
}

#else

static double bfloat16_products(void) {
    return multiply_adds();   // of rounded floats: there is no other instruction
}

#endif

double pygpt_peak_flops(int dtype, double seconds) {
    double rate = 0.0;
    use_threads();
    #pragma omp parallel reduction(+ : rate)
    {
        double flops = 0.0, start = now(), elapsed;
        do {
            flops += dtype == PYGPT_BFLOAT16 ? bfloat16_products() : multiply_adds();
            elapsed = now() - start;
        } while (elapsed < seconds);
        rate += flops / elapsed;
    }
    return rate;
}

/* Writes that pass by the cache: an ordinary one would first read what it overwrites. */
INLINE void store_to_memory(float *p, Floats x) {
#if defined(SIMD_AVX512)
    _mm512_stream_ps(p, (__m512)x);
#elif defined(SIMD_AVX2)
    _mm256_stream_ps(p, (__m256)x);
#elif defined(__SSE__)
    _mm_stream_ps(p, (__m128)x);
#else
    store(p, x);
#endif
}

static void fill(float *a, int64_t n) {
    #pragma omp parallel for schedule(static)   // the threads that will use it touch it first
    for (int64_t i = 0; i < n; i += LANES) store(a + i, broadcast(1.0f));
}

static void copy(float *a, const float *b, int64_t n) {
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += LANES) store_to_memory(a + i, load(b + i));
}

static void triad(float *a, const float *b, const float *c, int64_t n) {
    Floats f = broadcast(FACTOR);
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += LANES) store_to_memory(a + i, load(b + i) + f * load(c + i));
}

enum { AT_ONCE = 8, AHEAD = 1024 };   // vectors that are added, floats that are asked for early

static void read_all(const float *a, int64_t n) {
    #pragma omp parallel
    {
        Floats sum[AT_ONCE] = {{0}};
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < n - n % (AT_ONCE * LANES); i += AT_ONCE * LANES) {
            UNROLL
            for (int j = 0; j < AT_ONCE; j++) {
                __builtin_prefetch(a + i + AHEAD + j * LANES);
                sum[j] += load(a + i + j * LANES);
            }
        }
        for (int j = 1; j < AT_ONCE; j++) sum[0] += sum[j];
        #pragma omp critical(sink)
        sink = sum_lanes(sum[0]);
    }
}

double pygpt_peak_bandwidth(int loop, int64_t bytes, double seconds) {
    int arrays = loop == PYGPT_TRIAD ? 3 : loop == PYGPT_COPY ? 2 : 1;
    int64_t n = bytes / (int64_t)sizeof(float) / arrays / LANES * LANES;
    if (n < 1) {
        fail(PYGPT_ERROR_ARGUMENT, "%lld bytes were given to measure the memory with, expected at least %d",
             (long long)bytes, (int)(arrays * LANES * (int)sizeof(float)));
        return 0.0;
    }
    float *data = buffer_allocate(arrays * n);
    if (!data) {
        fail(PYGPT_ERROR_MEMORY, "no memory to measure the memory with: %lld bytes were asked for", (long long)bytes);
        return 0.0;
    }
    use_threads();
    fill(data, arrays * n);
    double passes = 0.0, start = now(), elapsed;
    do {
        if (loop == PYGPT_TRIAD) {
            triad(data, data + n, data + 2 * n, n);
        } else if (loop == PYGPT_COPY) {
            copy(data, data + n, n);
        } else {
            read_all(data, n);
        }
        passes++;
        elapsed = now() - start;
    } while (elapsed < seconds);
    pygpt_release(data);
    return passes * (double)(arrays * n * (int64_t)sizeof(float)) / elapsed;
}
