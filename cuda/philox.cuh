/* Philox4x32-10, a counter-based random number generator (Salmon, Moraes, Dror & Shaw 2011), as in csrc/philox.h: the
 * same words for the same counters, so the same masks as in every other backend. */
#pragma once

#include "common.cuh"

extern "C" {
#include "../csrc/pygpt.h"
}

struct PhiloxWords {
    uint32_t word[4];
};

__host__ __device__ inline PhiloxWords philox4x32(uint64_t index, uint32_t site, uint32_t step, uint64_t seed) {
    uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32), c2 = site, c3 = step;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
        c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
        c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c1 = static_cast<uint32_t>(p1);
        c3 = static_cast<uint32_t>(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

/* What all dropouts of a pass have in common. It lies in the device's memory: a captured graph holds the address, and
 * every launch of it finds the values of its own pass there. */
struct DropoutDraw {
    uint64_t seed;
    uint32_t step;
};

/* One dropout, as a kernel takes it: element i is dropped where word i % 4 of Philox(i / 4, site, step, seed) lies
 * below the threshold, and multiplied by scale otherwise. A threshold of 0 drops nothing. */
struct DropoutMask {
    uint32_t threshold = 0;
    float scale = 1;
    uint32_t site = 0;
    const DropoutDraw *draw = nullptr;   // NULL where nothing is dropped
};

inline DropoutMask dropout_mask(float p, uint32_t site, const DropoutDraw *draw) {
    if (p == 0.0f) return {};
    return {static_cast<uint32_t>(static_cast<double>(p) * 4294967296.0), 1.0f / (1.0f - p), site, draw};
}

/* 0 for a dropped element, 1 / (1 - p) for a kept one. */
__device__ inline float dropout_factor(uint64_t element, const DropoutMask &mask) {
    if (!mask.draw) return 1;
    const PhiloxWords words = philox4x32(element / 4, mask.site, mask.draw->step, mask.draw->seed);
    const unsigned number = element % 4;   // selected by comparison: an index would move the words to local memory
    const uint32_t word = number == 0   ? words.word[0]
                          : number == 1 ? words.word[1]
                          : number == 2 ? words.word[2]
                                        : words.word[3];
    return word < mask.threshold ? 0.0f : mask.scale;
}
