/* bfloat16: the upper half of a float. */
#ifndef PYGPT_BF16_H
#define PYGPT_BF16_H

#include <stdint.h>
#include <string.h>

/* The nearest bfloat16 (8 bits of mantissa), ties to even, kept in a float. */
static inline float round_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return x;   // rounding up could carry a NaN's mantissa into infinity
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The same as 16 bits, and back. */
static inline uint16_t to_bf16(float x) {
    float rounded = round_to_bf16(x);
    uint32_t bits;
    memcpy(&bits, &rounded, sizeof bits);
    return (uint16_t)(bits >> 16 | (x != x ? 64 : 0));   // a NaN may have all its mantissa in the half that goes
}

static inline float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#endif
