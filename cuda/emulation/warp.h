/* Shuffles and votes. The rules are those of the CUDA programming guide, taken strictly: every lane that the mask names
 * makes the same call with the same mask, itself included, and a lane reads only from lanes in the mask. */
#pragma once

#include "block.h"

#include <cstring>

namespace emulation {

struct Shuffle {
    uint64_t value, result;
    unsigned source;   // lane
    const char *name;
    Site site;
};

inline void complete_shuffle(void *const operands[32], unsigned mask) {
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) {
            auto *s = static_cast<Shuffle *>(operands[i]);
            if (!(mask >> s->source & 1))
                fail(s->name, s->site, "lane %u reads from lane %u, which is not in the mask 0x%08x", i, s->source,
                     mask);
            s->result = static_cast<const Shuffle *>(operands[s->source])->value;
        }
}

template <class T> T shuffle(const char *name, unsigned mask, T value, unsigned source, Site site) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most eight bytes");
    Shuffle s{0, 0, source, name, site};
    memcpy(&s.value, &value, sizeof value);
    collective(name, mask, &s, complete_shuffle, site);
    memcpy(&value, &s.result, sizeof value);
    return value;
}

struct Vote {
    int predicate;
    unsigned ballot;
};

inline void complete_vote(void *const operands[32], unsigned mask) {
    unsigned ballot = 0;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1 && static_cast<const Vote *>(operands[i])->predicate) ballot |= 1u << i;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) static_cast<Vote *>(operands[i])->ballot = ballot;
}

inline unsigned vote(const char *name, unsigned mask, int predicate, Site site) {
    Vote v{predicate, 0};
    collective(name, mask, &v, complete_vote, site);
    return v.ballot;
}

inline void complete_nothing(void *const *, unsigned) {}

}   // namespace emulation

inline void __syncwarp(unsigned mask = 0xffffffffu, emulation::Site site = emulation::Site::here()) {
    emulation::collective("__syncwarp", mask, nullptr, emulation::complete_nothing, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, emulation::Site site = emulation::Site::here()) {
    const unsigned segment = emulation::lane() & ~static_cast<unsigned>(width - 1);
    return emulation::shuffle("__shfl_sync", mask, value, segment + static_cast<unsigned>(source & (width - 1)), site);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 emulation::Site site = emulation::Site::here()) {
    const unsigned lane = emulation::lane();
    const bool inside = (lane & static_cast<unsigned>(width - 1)) >= delta;
    return emulation::shuffle("__shfl_up_sync", mask, value, inside ? lane - delta : lane, site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   emulation::Site site = emulation::Site::here()) {
    const unsigned lane = emulation::lane();
    const bool inside = (lane & static_cast<unsigned>(width - 1)) + delta < static_cast<unsigned>(width);
    return emulation::shuffle("__shfl_down_sync", mask, value, inside ? lane + delta : lane, site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  emulation::Site site = emulation::Site::here()) {
    const unsigned lane = emulation::lane();
    const unsigned source = lane ^ static_cast<unsigned>(lane_mask);
    const unsigned segment_end = (lane & ~static_cast<unsigned>(width - 1)) + static_cast<unsigned>(width);
    return emulation::shuffle("__shfl_xor_sync", mask, value, source < segment_end ? source : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, emulation::Site site = emulation::Site::here()) {
    return emulation::vote("__ballot_sync", mask, predicate, site);
}
inline int __any_sync(unsigned mask, int predicate, emulation::Site site = emulation::Site::here()) {
    return emulation::vote("__any_sync", mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulation::Site site = emulation::Site::here()) {
    return emulation::vote("__all_sync", mask, predicate, site) == mask;
}

/* Which lanes run together is the hardware's choice at every instant, so a correct kernel must work when it answers
 * with the least that is promised: the lane that asks. */
inline unsigned __activemask() {
    return 1u << emulation::lane();
}
