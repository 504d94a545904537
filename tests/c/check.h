/* Assertions and random numbers for the C tests. A failed check is printed and counted, and the test goes on. */
#ifndef PYGPT_CHECK_H
#define PYGPT_CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pygpt.h"

enum { SKIPPED = 77 };   // exit status that ctest reports as skipped

static int failures;

#define CHECK(condition) check((condition) != 0, #condition, __FILE__, __LINE__)

static inline void check(int good, const char *condition, const char *file, int line) {
    if (good) return;
    failures++;
    fprintf(stderr, "%s:%d: not true: %s\n", file, line, condition);
}

/* |found - expected| <= bound; the bound comes from the sizes of what is compared, so that zeros do not pass */
#define CHECK_NEAR(what, found, expected, bound) check_near(what, found, expected, bound, __FILE__, __LINE__)

static inline void check_near(const char *what, double found, double expected, double bound, const char *file,
                              int line) {
    if (fabs(found - expected) <= bound) return;
    failures++;
    fprintf(stderr, "%s:%d: %s: %.9g, expected %.9g +- %.2g\n", file, line, what, found, expected, bound);
}

/* A call of the library that must succeed, or must fail and say why. */
#define SUCCEEDS(call) check_call((call) == PYGPT_OK, #call, __FILE__, __LINE__)
#define FAILS(call) (CHECK((call) != PYGPT_OK), CHECK(*pygpt_last_error() != '\0'))

static inline void check_call(int good, const char *call, const char *file, int line) {
    if (good) return;
    failures++;
    fprintf(stderr, "%s:%d: %s failed: %s\n", file, line, call, pygpt_last_error());
}

/* One allocation each, of the exact size, so that AddressSanitizer sees the first float beyond the end. */
static inline float *floats(int64_t n) {
    float *x = calloc((size_t)n + !n, sizeof *x);
    if (!x) abort();
    return x;
}

static uint64_t random_state = 1;

static inline uint32_t random_word(void) {   // xorshift64* (Vigna 2016)
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)(random_state * 2685821657736338717u >> 32);
}

static inline int64_t random_below(int64_t n) {
    return (int64_t)random_word() % n;
}

static inline void fill_random(float *x, int64_t n, float largest) {
    for (int64_t i = 0; i < n; i++) x[i] = largest * (float)(random_word() / 2147483648.0 - 1.0);
}

static inline double dot_of(const float *a, const float *b, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

static inline double norm_of(const float *x, int64_t n) {
    return sqrt(dot_of(x, x, n));
}

static inline int same_bits(const float *a, const float *b, int64_t n) {
    return memcmp(a, b, (size_t)n * sizeof *a) == 0;
}

static inline int is_supported(void) {
    static const char *const levels[] = {"baseline", "x86-64-v3", "x86-64-v4", "x86-64-v4-bf16"};
    int needed = 0, offered = 0;
    for (int i = 0; i < 4; i++) {
        if (strcmp(levels[i], pygpt_library()) == 0) needed = i;
        if (strcmp(levels[i], pygpt_processor()) == 0) offered = i;
    }
    return offered >= needed;
}

#endif
