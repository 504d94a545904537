/* Stands in for NVIDIA's cuda_bf16.h: storage, and conversions that round to nearest, ties to even. Kernels compute in
 * float. */
#pragma once

#include "device_functions.h"
#include "vector_types.h"

namespace emulation {

inline unsigned short bf16_bits(float x) {
    const auto bits = same_bits<uint32_t>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;   // the one NaN that the device makes
    return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline float bf16_value(unsigned short bits) {
    return same_bits<float>(static_cast<uint32_t>(bits) << 16);
}

}   // namespace emulation

struct __nv_bfloat16 {
    unsigned short bits;

    __nv_bfloat16() = default;
    __nv_bfloat16(float x) : bits(emulation::bf16_bits(x)) {}
    operator float() const {
        return emulation::bf16_value(bits);
    }
};

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;

    __nv_bfloat162() = default;
    __nv_bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) : x(low), y(high) {}
};

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float x) {
    return x;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    return x;
}
inline float __bfloat162float(__nv_bfloat16 x) {
    return x;
}
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
    return {low, high};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
    return {v.x, v.y};
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) {
    return {low, high};
}
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
    return {v.x, v.y};
}
inline float __low2float(__nv_bfloat162 v) {
    return v.x;
}
inline float __high2float(__nv_bfloat162 v) {
    return v.y;
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
    return x.bits;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 x;
    x.bits = bits;
    return x;
}
