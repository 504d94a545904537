/* Products of one row, or a few, with a matrix: each element of b is used once for each row, so that the time is that
 * of reading b, and packing it would only add to it. In bfloat16 both operands are rounded on the way.
 *
 *   b (K,N)   strips of columns, the sums of a strip in registers while k runs down
 *   b (N,K)   dot products, four columns at once
 */
#include "few_rows.h"

#include "../internal.h"

enum {
    ROWS_AHEAD = 4,   // of b, asked for early
    DOTS = 4,         // at once
    SMALL = DIVIDES_WORK(1 << 15, 0),
};

INLINE Floats operand_value(PanelType type, Floats x) {
    return type == PANEL_BF16 ? round_bf16(x) : x;
}

/* Vectors of a strip: the sums of all rows are to fit the registers. */
INLINE int strip_vectors(int rows) {
    return rows == 1 ? 8 : rows <= 3 ? 4 : 2;
}

INLINE float from_value(const Product *p, int64_t i, int64_t j) {
    return p->from ? p->from[i * p->from_stride + j] : 0.0f;
}

/* type, rows, vectors and whole are constants wherever this is inlined. The strip begins at column n; unless it is whole,
 * columns end in it. */
INLINE void multiply_strip(const Product *p, PanelType type, int rows, int vectors, int whole, int64_t n) {
    int64_t columns = whole ? vectors * LANES : p->N - n;
    for (int64_t k0 = 0; k0 < p->K; k0 += KC) {
        Floats sum[FEW_ROWS][8];
        UNROLL
        for (int i = 0; i < rows; i++) {
            UNROLL
            for (int j = 0; j < vectors; j++) sum[i][j] = (Floats){0};
        }
        int64_t k_end = min64(k0 + KC, p->K);
        for (int64_t k = k0; k < k_end; k++) {
            const float *b = p->b.x + k * p->b.stride + n;
            Floats a[FEW_ROWS];
            UNROLL
            for (int i = 0; i < rows; i++) a[i] = operand_value(type, broadcast(p->a.x[i * p->a.stride + k]));
            UNROLL
            for (int j = 0; j < vectors; j++) {
                __builtin_prefetch(b + ROWS_AHEAD * p->b.stride + j * LANES);
                Floats bj = operand_value(type, load_first(b + j * LANES, columns - j * LANES));
                UNROLL
                for (int i = 0; i < rows; i++) sum[i][j] += a[i] * bj;
            }
        }
        UNROLL
        for (int i = 0; i < rows; i++) {
            float *c = p->c + i * p->c_stride + n;
            const float *from = k0 > 0 ? c : p->from ? p->from + i * p->from_stride + n : NULL;
            UNROLL
            for (int j = 0; j < vectors; j++) {
                Floats start = from ? load_first(from + j * LANES, columns - j * LANES) : (Floats){0};
                store_first(c + j * LANES, start + sum[i][j], columns - j * LANES);
            }
        }
    }
}

/* What the elements of a and b from k on add to the sums, `left` being how many there are. */
INLINE void add_products(Floats sum[FEW_ROWS][DOTS], const Product *p, PanelType type, int rows, int columns,
                         const float *b, int64_t k, int64_t left) {
    Floats a[FEW_ROWS];
    UNROLL
    for (int i = 0; i < rows; i++) a[i] = operand_value(type, load_first(p->a.x + i * p->a.stride + k, left));
    UNROLL
    for (int j = 0; j < columns; j++) {
        Floats bj = operand_value(type, load_first(b + j * p->b.stride + k, left));
        UNROLL
        for (int i = 0; i < rows; i++) sum[i][j] += a[i] * bj;
    }
}

INLINE void multiply_dots(const Product *p, PanelType type, int rows, int columns, int64_t n) {
    Floats sum[FEW_ROWS][DOTS];
    UNROLL
    for (int i = 0; i < rows; i++) {
        UNROLL
        for (int j = 0; j < columns; j++) sum[i][j] = (Floats){0};
    }
    const float *b = p->b.x + n * p->b.stride;
    int64_t k = 0;
    for (; k + LANES <= p->K; k += LANES) add_products(sum, p, type, rows, columns, b, k, LANES);
    if (k < p->K) add_products(sum, p, type, rows, columns, b, k, p->K - k);
    Floats dots[FEW_ROWS][DOTS];   // a copy, so that the sums themselves are in registers
    UNROLL
    for (int i = 0; i < rows; i++) {
        UNROLL
        for (int j = 0; j < columns; j++) dots[i][j] = sum[i][j];
    }
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < columns; j++)
            p->c[i * p->c_stride + n + j] = from_value(p, i, n + j) + sum_lanes(dots[i][j]);
    }
}

/* The last columns, fewer than what is computed at once: row by row, one vector or one dot product at a time. */
INLINE void multiply_last_columns(const Product *p, PanelType type, int64_t n) {
    Product row = *p;
    for (int64_t i = 0; i < p->M; i++) {
        if (p->b.k_contiguous)
            for (int64_t j = n; j < p->N; j++) multiply_dots(&row, type, 1, 1, j);
        else
            for (int64_t j = n; j < p->N; j += LANES) multiply_strip(&row, type, 1, 1, 0, j);
        row.a.x += row.a.stride;
        row.c += row.c_stride;
        if (row.from) row.from += row.from_stride;
    }
}

/* Everything constant that decides which sums are in registers: one copy of the loops for each. */
INLINE void multiply_columns(const Product *p, PanelType type, int rows, int64_t n) {
    if (p->b.k_contiguous)
        multiply_dots(p, type, rows, DOTS, n);
    else
        multiply_strip(p, type, rows, strip_vectors(rows), 1, n);
}

INLINE void multiply_columns_of(const Product *p, PanelType type, int64_t n, int64_t columns) {
    if (n + columns > p->N) {
        multiply_last_columns(p, type, n);
        return;
    }
    switch (p->M) {
    case 1: multiply_columns(p, type, 1, n); break;
    case 2: multiply_columns(p, type, 2, n); break;
    case 3: multiply_columns(p, type, 3, n); break;
    case 4: multiply_columns(p, type, 4, n); break;
    }
}

static void multiply_f32(const Product *p, int64_t n, int64_t columns) {
    multiply_columns_of(p, PANEL_F32, n, columns);
}

static void multiply_bf16(const Product *p, int64_t n, int64_t columns) {
    multiply_columns_of(p, PANEL_BF16, n, columns);
}

void multiply_few_rows(const Product *p) {
    int64_t columns = p->b.k_contiguous ? DOTS : strip_vectors((int)p->M) * LANES;
    #pragma omp parallel for if (p->K * p->N > SMALL)
    for (int64_t n = 0; n < p->N; n += columns) {
        if (p->type == PANEL_BF16)
            multiply_bf16(p, n, columns);
        else
            multiply_f32(p, n, columns);
    }
}
