/* The AVX-512 instructions that csrc/ uses, in plain C: so that the kernels of 16 lanes can be tested, and stepped
 * through, on a processor without them (CMake's option PYGPT_EMULATE_AVX512). For correctness, not for speed. What each
 * does is in Intel's "Intrinsics Guide".
 */
#ifndef PYGPT_EMULATION_AVX512_H
#define PYGPT_EMULATION_AVX512_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#if defined(PYGPT_EMULATE_BF16)
    #define __AVX512BF16__ 1
    #define __AVX512VNNI__ 1
#endif

#define _mm512_add_epi16 emulated_add_epi16
#define _mm512_add_ps emulated_add_ps
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32
#define _mm512_cvtne2ps_pbh emulated_cvtne2ps_pbh
#define _mm512_dpbf16_ps emulated_dpbf16_ps
#define _mm512_dpbusd_epi32 emulated_dpbusd_epi32
#define _mm512_madd_epi16 emulated_madd_epi16
#define _mm512_maddubs_epi16 emulated_maddubs_epi16
#define _mm512_mask_mov_epi32 emulated_mask_mov_epi32
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_max_ps emulated_max_ps
#define _mm512_min_ps emulated_min_ps
#define _mm512_mul_epu32 emulated_mul_epu32
#define _mm512_permutexvar_epi16 emulated_permutexvar_epi16
#define _mm512_permutexvar_ps emulated_permutexvar_ps
#define _mm512_scalef_ps emulated_scalef_ps
#define _mm512_set1_epi16 emulated_set1_epi16
#define _mm512_set1_epi32 emulated_set1_epi32
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 emulated_shuffle_f32x4
#undef _mm512_slli_epi64
#define _mm512_slli_epi64 emulated_slli_epi64
#undef _mm512_srli_epi64
#define _mm512_srli_epi64 emulated_srli_epi64
#define _mm512_stream_ps emulated_stream_ps
#define _mm512_test_epi32_mask emulated_test_epi32_mask
#define _mm512_unpackhi_pd emulated_unpackhi_pd
#define _mm512_unpackhi_ps emulated_unpackhi_ps
#define _mm512_unpacklo_pd emulated_unpacklo_pd
#define _mm512_unpacklo_ps emulated_unpacklo_ps

#define EMULATED static __attribute__((noinline, unused))   // inline, each tile would take seconds to compile

/* 512 bits, as what an instruction takes them for. */
typedef union {
    __m512 ps;
    __m512d pd;
    __m512i si;
    __m512bh bh;
    float f[16];
    double d[8];
    uint16_t u16[32];
    uint32_t u32[16];
    uint64_t u64[8];
} Emulated;

EMULATED __m512 emulated_add_ps(__m512 a, __m512 b) {
    return a + b;
}

EMULATED __m512 emulated_max_ps(__m512 a, __m512 b) {
    Emulated x = {.ps = a}, y = {.ps = b};
    for (int i = 0; i < 16; i++) y.f[i] = x.f[i] > y.f[i] ? x.f[i] : y.f[i];
    return y.ps;
}

EMULATED __m512 emulated_min_ps(__m512 a, __m512 b) {
    Emulated x = {.ps = a}, y = {.ps = b};
    for (int i = 0; i < 16; i++) y.f[i] = x.f[i] < y.f[i] ? x.f[i] : y.f[i];
    return y.ps;
}

EMULATED __m512i emulated_set1_epi32(int32_t x) {
    Emulated y;
    for (int i = 0; i < 16; i++) y.u32[i] = (uint32_t)x;
    return y.si;
}

EMULATED __m512i emulated_set1_epi16(int16_t x) {
    Emulated y;
    for (int i = 0; i < 32; i++) y.u16[i] = (uint16_t)x;
    return y.si;
}

EMULATED __m512i emulated_add_epi16(__m512i a, __m512i b) {
    Emulated x = {.si = a}, y = {.si = b};
    for (int i = 0; i < 32; i++) x.u16[i] = (uint16_t)(x.u16[i] + y.u16[i]);
    return x.si;
}

/* Sums of two products: of 16 bits, or of unsigned bytes and signed ones, as far as 16 bits go. */
EMULATED __m512i emulated_madd_epi16(__m512i a, __m512i b) {
    Emulated x = {.si = a}, y = {.si = b}, z;
    for (int i = 0; i < 16; i++) {
        int32_t low = (int16_t)x.u16[2 * i] * (int16_t)y.u16[2 * i];
        z.u32[i] = (uint32_t)(low + (int16_t)x.u16[2 * i + 1] * (int16_t)y.u16[2 * i + 1]);
    }
    return z.si;
}

EMULATED __m512i emulated_maddubs_epi16(__m512i a, __m512i b) {
    Emulated x = {.si = a}, y = {.si = b}, z;
    for (int i = 0; i < 32; i++) {
        int32_t low = (x.u16[i] & 255) * (int8_t)(y.u16[i] & 255);
        int32_t sum = low + (x.u16[i] >> 8) * (int8_t)(y.u16[i] >> 8);
        z.u16[i] = (uint16_t)(sum > INT16_MAX ? INT16_MAX : sum < INT16_MIN ? INT16_MIN : sum);
    }
    return z.si;
}

EMULATED __m512i emulated_slli_epi64(__m512i a, unsigned count) {
    Emulated x = {.si = a};
    for (int i = 0; i < 8; i++) x.u64[i] <<= count;
    return x.si;
}

EMULATED __m512i emulated_srli_epi64(__m512i a, unsigned count) {
    Emulated x = {.si = a};
    for (int i = 0; i < 8; i++) x.u64[i] >>= count;
    return x.si;
}

EMULATED __m512i emulated_mul_epu32(__m512i a, __m512i b) {
    Emulated x = {.si = a}, y = {.si = b};
    for (int i = 0; i < 8; i++) x.u64[i] = (x.u64[i] & 0xFFFFFFFF) * (y.u64[i] & 0xFFFFFFFF);
    return x.si;
}

EMULATED __m512 emulated_scalef_ps(__m512 a, __m512 b) {
    Emulated x = {.ps = a}, y = {.ps = b};
    for (int i = 0; i < 16; i++) x.f[i] = isnan(y.f[i]) ? y.f[i] : ldexpf(x.f[i], (int)floorf(y.f[i]));
    return x.ps;
}

EMULATED __mmask16 emulated_test_epi32_mask(__m512i a, __m512i b) {
    Emulated x = {.si = a}, y = {.si = b};
    uint32_t mask = 0;
    for (int i = 0; i < 16; i++) mask |= (uint32_t)((x.u32[i] & y.u32[i]) != 0) << i;
    return (__mmask16)mask;
}

EMULATED __m512i emulated_mask_mov_epi32(__m512i source, __mmask16 mask, __m512i a) {
    Emulated x = {.si = a}, y = {.si = source};
    for (int i = 0; i < 16; i++) y.u32[i] = mask >> i & 1 ? x.u32[i] : y.u32[i];
    return y.si;
}

EMULATED __m512 emulated_maskz_loadu_ps(__mmask16 mask, const float *p) {
    Emulated x = {{0}};
    for (int i = 0; i < 16; i++) {
        if (mask >> i & 1) x.f[i] = p[i];
    }
    return x.ps;
}

EMULATED void emulated_mask_storeu_ps(float *p, __mmask16 mask, __m512 a) {
    Emulated x = {.ps = a};
    for (int i = 0; i < 16; i++) {
        if (mask >> i & 1) p[i] = x.f[i];
    }
}

EMULATED void emulated_stream_ps(float *p, __m512 a) {
    memcpy(p, &a, sizeof a);
}

/* Interleaves within each 128 bits: floats from `first` on, or one double. */
EMULATED __m512 emulated_unpack_ps(__m512 a, __m512 b, int first) {
    Emulated x = {.ps = a}, y = {.ps = b}, z;
    for (int i = 0; i < 16; i++) z.f[i] = (i % 2 ? y : x).f[i / 4 * 4 + first + i % 4 / 2];
    return z.ps;
}

EMULATED __m512d emulated_unpack_pd(__m512d a, __m512d b, int first) {
    Emulated x = {.pd = a}, y = {.pd = b}, z;
    for (int i = 0; i < 8; i++) z.d[i] = (i % 2 ? y : x).d[i / 2 * 2 + first];
    return z.pd;
}

EMULATED __m512 emulated_unpacklo_ps(__m512 a, __m512 b) {
    return emulated_unpack_ps(a, b, 0);
}

EMULATED __m512 emulated_unpackhi_ps(__m512 a, __m512 b) {
    return emulated_unpack_ps(a, b, 2);
}

EMULATED __m512d emulated_unpacklo_pd(__m512d a, __m512d b) {
    return emulated_unpack_pd(a, b, 0);
}

EMULATED __m512d emulated_unpackhi_pd(__m512d a, __m512d b) {
    return emulated_unpack_pd(a, b, 1);
}

/* Two times 128 bits of a, then of b, each chosen by two bits. */
EMULATED __m512 emulated_shuffle_f32x4(__m512 a, __m512 b, int choice) {
    Emulated x = {.ps = a}, y = {.ps = b}, z;
    for (int i = 0; i < 16; i++) z.f[i] = (i < 8 ? x : y).f[(choice >> i / 4 * 2 & 3) * 4 + i % 4];
    return z.ps;
}

/* Each 16 bits of the result are those of a that the low 5 bits of the choice name. */
EMULATED __m512i emulated_permutexvar_epi16(__m512i choice, __m512i a) {
    Emulated x = {.si = choice}, y = {.si = a}, z;
    for (int i = 0; i < 32; i++) z.u16[i] = y.u16[x.u16[i] & 31];
    return z.si;
}

EMULATED __m512 emulated_permutexvar_ps(__m512i choice, __m512 a) {
    Emulated x = {.si = choice}, y = {.ps = a}, z;
    for (int i = 0; i < 16; i++) z.f[i] = y.f[x.u32[i] & 15];
    return z.ps;
}

EMULATED __m512i emulated_cvtepu8_epi32(__m128i a) {
    uint8_t narrow[16];
    memcpy(narrow, &a, sizeof narrow);
    Emulated x;
    for (int i = 0; i < 16; i++) x.u32[i] = narrow[i];
    return x.si;
}

EMULATED __m512i emulated_cvtepu16_epi32(__m256i a) {
    uint16_t narrow[16];
    memcpy(narrow, &a, sizeof narrow);
    Emulated x;
    for (int i = 0; i < 16; i++) x.u32[i] = narrow[i];
    return x.si;
}

/* ---- bfloat16: subnormal numbers count as zero ---- */

EMULATED uint16_t emulated_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (isnan(x)) return (uint16_t)(bits >> 16 | 0x40);
    if ((bits & 0x7F800000) == 0) return (uint16_t)(bits >> 16 & 0x8000);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

EMULATED float emulated_float(uint16_t x) {
    uint32_t bits = (uint32_t)((x & 0x7F80) == 0 ? x & 0x8000 : x) << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

EMULATED __m512bh emulated_cvtne2ps_pbh(__m512 a, __m512 b) {
    Emulated x = {.ps = a}, y = {.ps = b}, z;
    for (int i = 0; i < 32; i++) z.u16[i] = emulated_bfloat16(i < 16 ? y.f[i] : x.f[i - 16]);
    return z.bh;
}

EMULATED __m512 emulated_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    Emulated s = {.ps = sum}, x = {.bh = a}, y = {.bh = b};
    for (int i = 0; i < 16; i++) {
        for (int odd = 1; odd >= 0; odd--) {
            s.f[i] = fmaf(emulated_float(x.u16[2 * i + odd]), emulated_float(y.u16[2 * i + odd]), s.f[i]);
        }
    }
    return s.ps;
}

EMULATED __m512i emulated_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    Emulated s = {.si = sum}, x = {.si = a}, y = {.si = b};
    for (int i = 0; i < 16; i++) {
        for (int byte = 0; byte < 4; byte++)
            s.u32[i] += (x.u32[i] >> 8 * byte & 255) * (uint32_t)(int8_t)(y.u32[i] >> 8 * byte & 255);
    }
    return s.si;
}

#endif
