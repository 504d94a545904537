/* Dropout masks drawn on the device by csrc/philox.h: the same words for the same counters, so the same masks as in every
 * other backend. */
#pragma once

#include "common.cuh"

extern "C" {
#include "../csrc/philox.h"
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
    const Dropout dropout = {p, site, 0, 0};
    return {dropout_threshold(&dropout), dropout_scale(&dropout), site, draw};
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
