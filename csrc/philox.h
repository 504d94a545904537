/* Philox4x32-10, a counter-based random number generator (Salmon, Moraes, Dror & Shaw 2011).
 *
 * Ten rounds of    (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0))
 * with the keys raised by Weyl constants between the rounds. Four words for each counter, and no state: element i of a
 * mask needs no other element, so every backend and any number of threads draws the same numbers.
 */
#ifndef PYGPT_PHILOX_H
#define PYGPT_PHILOX_H

#include <stdint.h>

#include "pygpt.h"

#ifdef __CUDACC__
    #define HOST_AND_DEVICE __host__ __device__   // the same text for CUDA's kernels
#else
    #define HOST_AND_DEVICE
#endif

typedef struct {
    uint32_t word[4];
} PhiloxWords;

HOST_AND_DEVICE static inline PhiloxWords philox4x32(uint64_t index, uint32_t site, uint32_t step, uint64_t seed) {
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = site, c3 = step;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    PhiloxWords words = {{c0, c1, c2, c3}};
    return words;
}

/* A word below the threshold drops its element: P(word < p 2^32) = p. */
static inline uint32_t dropout_threshold(const Dropout *dropout) {
    return (uint32_t)((double)dropout->p * 4294967296.0);
}

static inline float dropout_scale(const Dropout *dropout) {
    return 1.0f / (1.0f - dropout->p);
}

/* 0 for a dropped element, 1 / (1 - p) for a kept one. */
static inline float dropout_factor(uint64_t element, const Dropout *dropout) {
    PhiloxWords words = philox4x32(element / 4, dropout->site, dropout->step, dropout->seed);
    return words.word[element % 4] < dropout_threshold(dropout) ? 0.0f : dropout_scale(dropout);
}

#endif
