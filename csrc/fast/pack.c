#include "pack.h"

#include "../internal.h"

/* How far ahead memory is fetched: panels of the same rows, or floats in each row. */
enum { PANELS_AHEAD = 2, K_AHEAD = 64 };

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

/* Panel by panel. Of a row of the matrix each takes less than the processor fetches by its own guesses. */
INLINE void pack_lanes_contiguous(int kind, int width, float *panels, const float *x, int64_t stride, int64_t lanes,
                                  int64_t depth) {
    int64_t step = kind == PAIRS ? 2 : 1;
    for (int64_t first = 0; first < lanes; first += width) {
        const float *row = x + first;
        for (int64_t k = 0; k < depth; k += step, row += step * stride, panels += width) {
            for (int64_t i = 0; i < step; i++) __builtin_prefetch(row + i * stride + PANELS_AHEAD * width);
            UNROLL
            for (int lane = 0; lane < width; lane += LANES) {
                store_row(panels + lane, width, fetch_lanes(kind, row + lane, stride, lanes - first - lane, depth - k),
                          k + step >= depth);
            }
        }
    }
}

/* LANES rows of the matrix at a time, from one end to the other: of more, the processor loses track. */
INLINE void pack_k_contiguous(int kind, int width, float *panels, const float *x, int64_t stride, int64_t lanes,
                              int64_t depth) {
    int64_t step = kind == PAIRS ? 2 : 1, elements = divide_up(depth, step);
    for (int64_t first = 0; first < lanes; first += width, panels += elements * width) {
        for (int lane = 0; lane < width; lane += LANES) {
            const float *rows = x + (first + lane) * stride;
            int64_t row_count = min64(LANES, min64(width - lane, lanes - first - lane));
            for (int64_t k = 0; k < elements; k += LANES) {
                Floats block[LANES];
                UNROLL
                for (int i = 0; i < LANES; i++) {
                    const float *from = rows + i * stride + k * step;
                    for (int line = 0; line < step * LANES; line += LINE) __builtin_prefetch(from + K_AHEAD + line);
                    block[i] = i < row_count ? fetch_k(kind, from, depth - k * step) : (Floats){0};
                }
                transpose(block);
                float *to = panels + k * width + lane;
                UNROLL
                for (int i = 0; i < LANES; i++) {
                    if (k + i < elements) store_row(to + i * width, width, block[i], k + i + 1 == elements);
                }
            }
        }
    }
}

INLINE void pack(int kind, int width, float *panels, Operand o, int64_t lanes, int64_t depth) {
    if (o.k_contiguous)
        pack_k_contiguous(kind, width, panels, o.x, o.stride, lanes, depth);
    else
        pack_lanes_contiguous(kind, width, panels, o.x, o.stride, lanes, depth);
}

#if defined(HAVE_BF16_PAIRS)
enum { BF16_KIND = PAIRS };
#else
enum { BF16_KIND = ROUNDED };
#endif

void pack_rows(PanelType type, float *panels, Operand a, int64_t rows, int64_t depth) {
    if (type == PANEL_BF16)
        pack(BF16_KIND, MR, panels, a, rows, depth);
    else
        pack(PLAIN, MR, panels, a, rows, depth);
}

void pack_columns(PanelType type, float *panels, Operand b, int64_t columns, int64_t depth) {
    if (type == PANEL_BF16)
        pack(BF16_KIND, NR, panels, b, columns, depth);
    else
        pack(PLAIN, NR, panels, b, columns, depth);
}
