/* Vectors of LANES floats, as wide as the instruction set that this file is compiled for. Arithmetic on them is
 * written with + - * / and comparisons: gcc's and clang's vector types. What those cannot express stands here.
 */
#ifndef PYGPT_SIMD_H
#define PYGPT_SIMD_H

#include <stdint.h>
#include <string.h>

#if defined(PYGPT_EMULATE_AVX512)
    #include "../emulation/avx512.h"
#elif defined(__x86_64__)
    #include <immintrin.h>
#elif defined(__ARM_NEON)
    #include <arm_neon.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
    #define LANES 16
    #define SIMD_AVX512
#elif defined(__AVX2__) && defined(__FMA__)
    #define LANES 8
    #define SIMD_AVX2
#else
    #define LANES 4
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef float FloatsInMemory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

/* Complete unrolling, so that an array of vectors becomes registers. clang does it unasked. */
#if defined(__clang__)
    #define UNROLL _Pragma("clang loop unroll(full)")
#else
    #define UNROLL _Pragma("GCC unroll 32")
#endif

INLINE Floats load(const float *p) {
    return *(const FloatsInMemory *)p;
}

INLINE void store(float *p, Floats x) {
    *(FloatsInMemory *)p = x;
}

INLINE Floats broadcast(float x) {
    return x - (Floats){0};
}

INLINE Words broadcast_word(uint32_t x) {
    return x - (Words){0};
}

INLINE Words lane_numbers(void) {
    Words lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = (uint32_t)i;
    return lanes;
}

/* yes where the mask's bits are set, no elsewhere; a mask is what a comparison gives */
INLINE Floats choose(Ints mask, Floats yes, Floats no) {
    return (Floats)((mask & (Ints)yes) | (~mask & (Ints)no));
}

/* Whether a comparison is true in any lane. */
INLINE int any(Ints mask) {
#if defined(SIMD_AVX512)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(SIMD_AVX2)
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#elif defined(__ARM_NEON)
    return vmaxvq_u32((uint32x4_t)mask) != 0;
#else
    int32_t all = 0;
    for (int i = 0; i < LANES; i++) all |= mask[i];
    return all != 0;
#endif
}

/* The larger and the smaller, or b where one of them is NaN. */
INLINE Floats larger(Floats a, Floats b) {
#if defined(SIMD_AVX512)
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(SIMD_AVX2)
    return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose(a > b, a, b);
#endif
}

INLINE Floats smaller(Floats a, Floats b) {
#if defined(SIMD_AVX512)
    return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(SIMD_AVX2)
    return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return choose(a < b, a, b);
#endif
}

/* The first n lanes of x, zero in the others. */
INLINE Floats keep_first(Floats x, int64_t n) {
    return (Floats)((Ints)x & ((Ints)lane_numbers() < (int32_t)n));
}

/* The first n lanes, zero in the others; n >= LANES is the whole vector, n <= 0 none. */
INLINE Floats load_first(const float *p, int64_t n) {
    if (n >= LANES) return load(p);
    if (n <= 0) return (Floats){0};
#if defined(SIMD_AVX512)
    return (Floats)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif defined(SIMD_AVX2)
    return (Floats)_mm256_maskload_ps(p, (__m256i)((Ints)lane_numbers() < (int32_t)n));
#else
    Floats x = {0};
    memcpy(&x, p, (size_t)n * sizeof(float));
    return x;
#endif
}

INLINE void store_first(float *p, Floats x, int64_t n) {
    if (n >= LANES) {
        store(p, x);
        return;
    }
    if (n <= 0) return;
#if defined(SIMD_AVX512)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
#elif defined(SIMD_AVX2)
    _mm256_maskstore_ps(p, (__m256i)((Ints)lane_numbers() < (int32_t)n), (__m256)x);
#else
    for (int64_t i = 0; i < n; i++) p[i] = x[i];   // of memcpy, gcc would warn where n is a constant in a Debug build
#endif
}

/* LANES words from as many half words. gcc's own conversion goes by single elements. */
#if defined(SIMD_AVX512)
    #define WIDEN(p) _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p)))
#elif defined(SIMD_AVX2)
    #define WIDEN(p) _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p)))
#endif

INLINE Floats load_bf16(const void *p) {
#if defined(WIDEN)
    return (Floats)((Words)WIDEN(p) << 16);
#elif defined(__ARM_NEON)
    return (Floats)vshll_n_u16(vld1_u16(p), 16);
#else
    uint16_t halves[LANES];
    memcpy(halves, p, sizeof halves);
    Words x;
    for (int i = 0; i < LANES; i++) x[i] = (uint32_t)halves[i] << 16;
    return (Floats)x;
#endif
}

/* In each lane Σ a b over eight words of four bytes: a from 0 to 15, b from -127 to 127, the same word for all lanes. */
INLINE Ints dot_nibbles(const Words a[8], const int8_t *b) {
#if defined(__AVX512VNNI__) && defined(SIMD_AVX512)
    #define SUMS_OF_32_BITS
    __m512i sum = {0};
    UNROLL
    for (int i = 0; i < 8; i++) {
        int32_t word;
        memcpy(&word, b + 4 * i, sizeof word);
        sum = _mm512_dpbusd_epi32(sum, (__m512i)a[i], _mm512_set1_epi32(word));
    }
    return (Ints)sum;
#elif defined(WIDEN)
    #if defined(SIMD_AVX512)
        #define OF_VECTOR(name) _mm512_##name
    typedef __m512i Integers;
    #else
        #define OF_VECTOR(name) _mm256_##name
    typedef __m256i Integers;
    #endif
    Integers sum = {0};   // of 16 bits: at most 8 · 2 · 15 · 127
    UNROLL
    for (int i = 0; i < 8; i++) {
        int32_t word;
        memcpy(&word, b + 4 * i, sizeof word);
        sum = OF_VECTOR(add_epi16)(sum, OF_VECTOR(maddubs_epi16)((Integers)a[i], OF_VECTOR(set1_epi32)(word)));
    }
    return (Ints)OF_VECTOR(madd_epi16)(sum, OF_VECTOR(set1_epi16)(1));
    #undef OF_VECTOR
#elif defined(__ARM_NEON)
    int16x8_t low = vdupq_n_s16(0), high = low;   // lanes 0 and 1, lanes 2 and 3: at most 8 · 15 · 127
    UNROLL
    for (int i = 0; i < 8; i++) {
        int8x8_t word = vreinterpret_s8_u32(vld1_dup_u32((const uint32_t *)(b + 4 * i)));
        int8x16_t bytes = (int8x16_t)a[i];
        low = vmlal_s8(low, vget_low_s8(bytes), word);
        high = vmlal_s8(high, vget_high_s8(bytes), word);
    }
    return (Ints)vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
#else
    #define SUMS_OF_32_BITS
    Ints sum = {0};
    for (int i = 0; i < 32; i++) sum += (Ints)(a[i / 4] >> (i % 4 * 8) & 255) * (int32_t)b[i];
    return sum;
#endif
}

/* The same for a from 0 to 255: where sums have 16 bits, as two halves. */
INLINE Ints dot_bytes(const Words a[8], const int8_t *b) {
#if defined(SUMS_OF_32_BITS)
    return dot_nibbles(a, b);
#else
    Words low[8], high[8];
    UNROLL
    for (int i = 0; i < 8; i++) {
        low[i] = a[i] & 0x0F0F0F0Fu;
        high[i] = a[i] >> 4 & 0x0F0F0F0Fu;
    }
    return dot_nibbles(low, b) + 16 * dot_nibbles(high, b);
#endif
}

/* Sum and maximum of the lanes, halving, always in this order. */
INLINE float sum_lanes(Floats x) {
    float lane[LANES];
    memcpy(lane, &x, sizeof lane);
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    }
    return lane[0];
}

INLINE float max_lanes(Floats x) {
    float lane[LANES];
    memcpy(lane, &x, sizeof lane);
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
    }
    return lane[0];
}

/* The nearest bfloat16 (8 bits of mantissa), ties to even, as a float. */
INLINE Floats round_bf16(Floats x) {
    Words bits = (Words)x;
    Floats rounded = (Floats)((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u);
    return choose(x == x, rounded, x);   // rounding up could carry a NaN's mantissa into infinity
}

/* Interleaves: the low and the high halves of each 128 bits of a and b, in units of one float or of two. */
#if defined(SIMD_AVX512)
    #define LOW_1(a, b) (Floats) _mm512_unpacklo_ps((__m512)(a), (__m512)(b))
    #define HIGH_1(a, b) (Floats) _mm512_unpackhi_ps((__m512)(a), (__m512)(b))
    #define LOW_2(a, b) (Floats) _mm512_unpacklo_pd((__m512d)(a), (__m512d)(b))
    #define HIGH_2(a, b) (Floats) _mm512_unpackhi_pd((__m512d)(a), (__m512d)(b))
#elif defined(SIMD_AVX2)
    #define LOW_1(a, b) (Floats) _mm256_unpacklo_ps((__m256)(a), (__m256)(b))
    #define HIGH_1(a, b) (Floats) _mm256_unpackhi_ps((__m256)(a), (__m256)(b))
    #define LOW_2(a, b) (Floats) _mm256_unpacklo_pd((__m256d)(a), (__m256d)(b))
    #define HIGH_2(a, b) (Floats) _mm256_unpackhi_pd((__m256d)(a), (__m256d)(b))
#elif defined(__clang__)
    #define LOW_1(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
    #define HIGH_1(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
    #define LOW_2(a, b) __builtin_shufflevector(a, b, 0, 1, 4, 5)
    #define HIGH_2(a, b) __builtin_shufflevector(a, b, 2, 3, 6, 7)
#else
    #define LOW_1(a, b) __builtin_shuffle(a, b, (Ints){0, 4, 1, 5})
    #define HIGH_1(a, b) __builtin_shuffle(a, b, (Ints){2, 6, 3, 7})
    #define LOW_2(a, b) __builtin_shuffle(a, b, (Ints){0, 1, 4, 5})
    #define HIGH_2(a, b) __builtin_shuffle(a, b, (Ints){2, 3, 6, 7})
#endif

/* Four vectors are the rows of LANES / 4 blocks of 4 x 4 side by side; each block is transposed. */
INLINE void transpose_4x4(Floats x[4]) {
    Floats a = LOW_1(x[0], x[1]), b = HIGH_1(x[0], x[1]), c = LOW_1(x[2], x[3]), d = HIGH_1(x[2], x[3]);
    x[0] = LOW_2(a, c);
    x[1] = HIGH_2(a, c);
    x[2] = LOW_2(b, d);
    x[3] = HIGH_2(b, d);
}

/* LANES vectors of LANES floats, rows turned into columns: within blocks of 4 x 4, then the blocks among each other. */
INLINE void transpose(Floats x[LANES]) {
    UNROLL
    for (int i = 0; i < LANES; i += 4) transpose_4x4(x + i);
#if defined(SIMD_AVX512)
    #define EVEN(a, b) _mm512_shuffle_f32x4((__m512)(a), (__m512)(b), 0x88)   // 128 bits 0 and 2 of a, then of b
    #define ODD(a, b) _mm512_shuffle_f32x4((__m512)(a), (__m512)(b), 0xDD)
    UNROLL
    for (int j = 0; j < 4; j++) {
        __m512 a = EVEN(x[j], x[4 + j]), b = EVEN(x[8 + j], x[12 + j]);
        __m512 c = ODD(x[j], x[4 + j]), d = ODD(x[8 + j], x[12 + j]);
        x[j] = (Floats)EVEN(a, b);
        x[4 + j] = (Floats)EVEN(c, d);
        x[8 + j] = (Floats)ODD(a, b);
        x[12 + j] = (Floats)ODD(c, d);
    }
#elif defined(SIMD_AVX2)
    UNROLL
    for (int j = 0; j < 4; j++) {
        __m256 a = (__m256)x[j], b = (__m256)x[4 + j];
        x[j] = (Floats)_mm256_permute2f128_ps(a, b, 0x20);
        x[4 + j] = (Floats)_mm256_permute2f128_ps(a, b, 0x31);
    }
#endif
}

/* The 64-bit products of a's 32-bit lanes with m, their high and low words. */
INLINE void multiply_words(Words *high, Words *low, Words a, uint32_t m) {
#if defined(SIMD_AVX512)
    __m512i factor = _mm512_set1_epi32((int32_t)m), x = (__m512i)a;
    __m512i even = _mm512_mul_epu32(x, factor), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), factor);
    *high = (Words)_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
    *low = (Words)_mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
#elif defined(SIMD_AVX2)
    __m256i factor = _mm256_set1_epi32((int32_t)m), x = (__m256i)a;
    __m256i even = _mm256_mul_epu32(x, factor), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), factor);
    *high = (Words)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    *low = (Words)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
#elif defined(__ARM_NEON)
    uint32x4_t x = (uint32x4_t)a;
    uint32x4_t first = vreinterpretq_u32_u64(vmull_n_u32(vget_low_u32(x), m));
    uint32x4_t second = vreinterpretq_u32_u64(vmull_n_u32(vget_high_u32(x), m));
    *high = (Words)vuzp2q_u32(first, second);
    *low = (Words)vuzp1q_u32(first, second);
#else
    for (int i = 0; i < LANES; i++) {
        uint64_t product = (uint64_t)a[i] * m;
        (*high)[i] = (uint32_t)(product >> 32);
        (*low)[i] = (uint32_t)product;
    }
#endif
}

#endif
