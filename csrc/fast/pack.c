#include "pack.h"

#include "../internal.h"

/* Elements of a panel that are packed before the next panel's turn, and floats of a row that are fetched ahead. */
enum { ELEMENTS = 8, K_AHEAD = 64 };

/* LANES pairs (even[i], odd[i]). */
INLINE Floats pairs_of_vectors(Floats even, Floats odd) {
#if defined(HAVE_BF16_PAIRS)
    Words halves = lane_numbers() + ((lane_numbers() + LANES) << 16);   // 16 bits each: 0, LANES, 1, LANES + 1, ...
    return (Floats)_mm512_permutexvar_epi16((__m512i)halves, (__m512i)elements_of(PANEL_BF16, even, odd));
#else
    (void)odd;
    return even;
#endif
}

/* LANES elements along i, of which n exist, at one k; along k, of which n values exist, for one i. */
INLINE Floats fetch_i(PanelType type, const float *x, int64_t stride, int64_t n, int64_t k_left) {
    Floats first = load_first(x, n);
    if (pair_of(type) == 1) return elements_of(type, first, first);
    return pairs_of_vectors(first, k_left > 1 ? load_first(x + stride, n) : (Floats){0});
}

INLINE Floats fetch_k(PanelType type, const float *x, int64_t n) {
    Floats first = load_first(x, n);
    return elements_of(type, first, pair_of(type) == 2 ? load_first(x + LANES, n - LANES) : first);
}

/* A panel may be narrower than a vector: the next row of the panel overwrites what is too many, but for the last. */
INLINE void store_row(float *row, int width, Floats x, int last) {
    if (width >= LANES || !last)
        store(row, x);
    else
        store_first(row, x, width);
}

/* One element of each i of a panel, from `step` rows of the matrix, in which so many i and values are left. */
INLINE void pack_element(PanelType type, int width, float *to, const float *x, int64_t stride, int64_t count,
                         int64_t values, int last) {
    int64_t step = pair_of(type);
    for (int i = 0; i < step; i++) __builtin_prefetch(x + (ELEMENTS * step + i) * stride);
    UNROLL
    for (int i = 0; i < width; i += LANES) {
        store_row(to + i, width, fetch_i(type, x + i, stride, count - i, values), last);
    }
}

/* Some rows of the matrix at a time, all panels from them: as they are longer than a panel is wide, each would
 * otherwise have to come into the first-level cache several times. */
INLINE void pack_i_contiguous(PanelType type, int width, float *panels, const float *x, int64_t stride, int64_t count,
                              int64_t depth) {
    int64_t step = pair_of(type), elements = divide_up(depth, step);
    const int64_t read = divide_up(width, LANES) * LANES;
    for (int64_t begin = 0; begin < elements; begin += ELEMENTS) {
        int64_t end = min64(begin + ELEMENTS, elements), whole = min64(end, elements - 1);
        for (int64_t first = 0; first < count; first += width) {
            const float *row = x + begin * step * stride + first;
            float *to = panels + first * elements + begin * width;
            int64_t k = begin;
            if (count - first >= read) {   // without a question in the loop
                for (; k < whole; k++, row += step * stride, to += width) {
                    pack_element(type, width, to, row, stride, read, step, 0);
                }
            }
            for (; k < end; k++, row += step * stride, to += width) {
                pack_element(type, width, to, row, stride, count - first, depth - k * step, k + 1 == elements);
            }
        }
    }
}

/* LANES elements of so many rows of the matrix, turned; what does not exist is zero. */
INLINE void pack_block(PanelType type, int width, float *to, const float *x, int64_t stride, int64_t rows,
                       int64_t values, int64_t elements, int last) {
    int64_t step = pair_of(type);
    Floats block[LANES];
    UNROLL
    for (int i = 0; i < LANES; i++) {
        for (int line = 0; line < step * LANES; line += LINE) __builtin_prefetch(x + i * stride + K_AHEAD + line);
        block[i] = i < rows ? fetch_k(type, x + i * stride, values) : (Floats){0};
    }
    transpose(block);
    UNROLL
    for (int i = 0; i < LANES; i++) {
        if (i < elements) store_row(to + i * width, width, block[i], last && i + 1 == elements);
    }
}

/* LANES rows of the matrix at a time, from one end to the other: of more, the processor loses track. */
INLINE void pack_k_contiguous(PanelType type, int width, float *panels, const float *x, int64_t stride, int64_t count,
                              int64_t depth) {
    int64_t step = pair_of(type), elements = divide_up(depth, step);
    for (int64_t first = 0; first < count; first += width, panels += elements * width) {
        UNROLL
        for (int i = 0; i < width; i += LANES) {
            const float *rows = x + (first + i) * stride;
            const int64_t wanted = width - i < LANES ? width - i : LANES;
            int64_t rows_here = min64(wanted, count - first - i), k = 0;
            if (rows_here == wanted) {   // and the blocks are whole: nothing to be asked in them
                for (; (k + LANES) * step <= depth; k += LANES) {
                    pack_block(type, width, panels + k * width + i, rows + k * step, stride, wanted, LANES * step,
                               LANES, k + LANES == elements);
                }
            }
            for (; k < elements; k += LANES) {
                pack_block(type, width, panels + k * width + i, rows + k * step, stride, rows_here, depth - k * step,
                           elements - k, 1);
            }
        }
    }
}

INLINE void pack(PanelType type, int width, float *panels, Operand o, int64_t count, int64_t depth) {
    if (o.k_contiguous)
        pack_k_contiguous(type, width, panels, o.x, o.stride, count, depth);
    else
        pack_i_contiguous(type, width, panels, o.x, o.stride, count, depth);
}

int64_t panel_pair(PanelType type) {
    return pair_of(type);
}

void pack_rows(PanelType type, float *panels, Operand a, int64_t rows, int64_t depth) {
    if (type == PANEL_BF16)
        pack(PANEL_BF16, MR, panels, a, rows, depth);
    else
        pack(PANEL_F32, MR, panels, a, rows, depth);
}

void pack_columns(PanelType type, float *panels, Operand b, int64_t columns, int64_t depth) {
    if (type == PANEL_BF16)
        pack(PANEL_BF16, NR, panels, b, columns, depth);
    else
        pack(PANEL_F32, NR, panels, b, columns, depth);
}

void pack_row(PanelType type, float *to, const float *x, int64_t values, int64_t elements) {
    for (int64_t i = 0; i < elements; i += LANES)
        store_first(to + i, fetch_k(type, x + i * pair_of(type), values - i * pair_of(type)), elements - i);
}
