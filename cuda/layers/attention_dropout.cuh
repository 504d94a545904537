/* Which probabilities dropout drops, drawn where they are needed: element (t,u) of head h in sequence b has the number
 * ((b NH + h) T + t) T + u, and four elements share a draw of Philox, if their numbers begin with a multiple of 4.
 */
#pragma once

#include "attention_tiles.cuh"

namespace {

/* The draws for one head. */
struct DropoutDraws {
    uint64_t seed;
    uint32_t site, step, threshold;
    int64_t T;
    uint64_t head;   // the number of its first element

    __device__ DropoutDraws(const DropoutMask &mask, int T, int bh)
        : seed(mask.draw->seed), site(mask.site), step(mask.draw->step), threshold(mask.threshold), T(T),
          head(static_cast<uint64_t>(bh) * T * T) {}

    __device__ uint64_t number(int query, int key) const {
        return head + static_cast<uint64_t>(query * T + key);
    }
    /* Bits for the four elements of a draw, `apart` bits from each other. */
    template <int apart> __device__ unsigned four(uint64_t element) const {
        const PhiloxWords words = philox4x32(element / 4, site, step, seed);
        unsigned bits = 0;
        for (int i = 0; i < 4; i++) {
            const bool dropped = words.word[i] < threshold;   // in one expression g++ 12 gets it wrong with UBSan
            bits |= static_cast<unsigned>(dropped) << i * apart;
        }
        return bits;
    }
};

}   // namespace
