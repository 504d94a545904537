#include "pack.h"

/* What one element of a panel is made of: see pack.h. */
enum { PLAIN, ROUNDED, PAIRS };

#if defined(HAVE_BF16_PAIRS)
/* LANES pairs (even[i], odd[i]) as bfloat16, and 2 LANES consecutive values, which are LANES pairs. */
INLINE Floats pairs_of_vectors(Floats even, Floats odd) {
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)even));
    __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)odd));
    return (Floats)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

INLINE Floats pairs_of_neighbours(Floats first, Floats second) {
    return (Floats)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}
#else
INLINE Floats pairs_of_vectors(Floats even, Floats odd) {
    (void)odd;
    return even;
}

INLINE Floats pairs_of_neighbours(Floats first, Floats second) {
    (void)second;
    return first;
}
#endif

/* LANES elements along the lanes, of which n exist, at one k; along k, of which n values exist, for one lane. */
INLINE Floats fetch_lanes(int kind, const float *x, int64_t stride, int64_t n, int64_t k_left) {
    Floats first = load_first(x, n);
    if (kind == PAIRS) return pairs_of_vectors(first, k_left > 1 ? load_first(x + stride, n) : (Floats){0});
    return kind == ROUNDED ? round_bf16(first) : first;
}

INLINE Floats fetch_k(int kind, const float *x, int64_t n) {
    Floats first = load_first(x, n);
    if (kind == PAIRS) return pairs_of_neighbours(first, load_first(x + LANES, n - LANES));
    return kind == ROUNDED ? round_bf16(first) : first;
}

/* A panel may be narrower than a vector: the next row of the panel overwrites the lanes too many, but for the last. */
INLINE void store_row(float *row, int width, Floats x, int last) {
    if (width >= LANES || !last)
        store(row, x);
    else
        store_first(row, x, width);
}

INLINE void pack_lanes_contiguous(int kind, int width, float *panel, const float *x, int64_t stride, int64_t lanes,
                                  int64_t depth) {
    int64_t step = kind == PAIRS ? 2 : 1;
    for (int64_t k = 0; k < depth; k += step, x += step * stride, panel += width) {
        for (int64_t i = 0; i < step; i++) __builtin_prefetch(x + i * stride + 2 * width);   // for the next panel
        UNROLL
        for (int lane = 0; lane < width; lane += LANES) {
            store_row(panel + lane, width, fetch_lanes(kind, x + lane, stride, lanes - lane, depth - k),
                      k + step >= depth);
        }
    }
}

INLINE void pack_k_contiguous(int kind, int width, float *panel, const float *x, int64_t stride, int64_t lanes,
                              int64_t depth) {
    int64_t step = kind == PAIRS ? 2 : 1;
    for (int64_t k = 0; k < depth; k += step * LANES, x += step * LANES, panel += LANES * width) {
        int64_t rows = (depth - k + step - 1) / step;   // of this panel that are left
        for (int lane = 0; lane < width; lane += LANES) {
            Floats block[LANES];
            UNROLL
            for (int i = 0; i < LANES; i++) {
                block[i] = lane + i < width && lane + i < lanes ? fetch_k(kind, x + (lane + i) * stride, depth - k)
                                                                : (Floats){0};
            }
            transpose(block);
            UNROLL
            for (int i = 0; i < LANES; i++) {
                if (i < rows) store_row(panel + i * width + lane, width, block[i], i + 1 == rows);
            }
        }
    }
}

INLINE void pack(int kind, int width, float *panel, Operand o, int64_t lanes, int64_t depth) {
    if (o.k_contiguous)
        pack_k_contiguous(kind, width, panel, o.x, o.stride, lanes, depth);
    else
        pack_lanes_contiguous(kind, width, panel, o.x, o.stride, lanes, depth);
}

#if defined(HAVE_BF16_PAIRS)
enum { BF16_KIND = PAIRS };
#else
enum { BF16_KIND = ROUNDED };
#endif

void pack_rows(PanelType type, float *panel, Operand a, int64_t rows, int64_t depth) {
    if (type == PANEL_BF16)
        pack(BF16_KIND, MR, panel, a, rows, depth);
    else
        pack(PLAIN, MR, panel, a, rows, depth);
}

void pack_columns(PanelType type, float *panel, Operand b, int64_t columns, int64_t depth) {
    if (type == PANEL_BF16)
        pack(BF16_KIND, NR, panel, b, columns, depth);
    else
        pack(PLAIN, NR, panel, b, columns, depth);
}
