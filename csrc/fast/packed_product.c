/* Products with packed weights, csrc/layers/generation.c in vectors.
 *
 *   few rows     the weights go from memory into registers, become floats there, and are used once for each row
 *   many rows    rows are packed as for every product (pack.h); each panel of weights is unpacked into floats for the
 *                second-level cache, where it is not as the micro-kernel wants it anyway, and multiplies all rows
 *
 * Either way each y is summed over k in ascending order, in the same stretches, with the same rounding of the weights: how many
 * rows come together changes no bit. Each thread has panels of its own, the same for every token.
 */
#include "../generation.h"
#include "../internal.h"
#include "cached_attention.h"
#include "integer_product.h"
#include "pack.h"

enum {
    FEW_ROWS = 4,
    VECTORS = NR / LANES,
    PANELS = 2,   // of one row at a time: one alone would wait for its sums
    STRETCH = DIVIDES_WORK(768, GROUP),   // of k
    AHEAD = 4096,   // bytes of a panel that are asked for early
    CACHE_LINE = 64,
};

/* Inputs in one element of a panel that the processor multiplies as it is. */
static inline int64_t inputs(int type) {
    return pair_of(panel_type(type));
}

static inline int64_t padded(int64_t K) {
    return divide_up(K, GROUP) * GROUP;
}

/* ---- a group of a panel becomes floats ---- */

typedef uint32_t WordsInMemory __attribute__((vector_size(4 * LANES), aligned(1), may_alias));

/* The weights of inputs k and k + 1, of vector j of outputs. */
INLINE void two_inputs(int type, Floats w[2], const unsigned char *group, int k, int j) {
    if (type == PYGPT_FLOAT32) {
        const float *values = (const float *)group + k * NR + j * LANES;
        w[0] = load(values);
        w[1] = load(values + NR);
    } else {
        Words pairs = *(const WordsInMemory *)(group + 4 * (k / 2 * NR + j * LANES));
        w[0] = (Floats)(pairs << 16);
        w[1] = (Floats)(pairs & 0xFFFF0000u);
    }
}

/* ---- few rows ---- */

/* What is summed together: so many rows, so many panels side by side. type, rows and panels are constants wherever these are
 * inlined, so that the sums are in registers. */
typedef Floats Sums[FEW_ROWS][PANELS * VECTORS];

/* Asks for every line of what lies AHEAD of the weights of inputs k and k + 1, each vector of outputs j for its share. */
INLINE void ask_ahead(int type, const unsigned char *group, int k, int j) {
    int bytes = NR * (type == PYGPT_FLOAT32 ? 4 : 2);   // of one input
    const unsigned char *from = group + AHEAD + k * bytes;
    for (int at = j * CACHE_LINE; at < 2 * bytes; at += VECTORS * CACHE_LINE) __builtin_prefetch(from + at);
}

/* The inputs of one group, from x on: rows as prepare() leaves them. */
INLINE void add_group(int type, int rows, int panels, Sums sum, const unsigned char *group, int64_t panel_bytes,
                      const float *x, int64_t x_stride) {
    for (int k = 0; k < GROUP; k += 2) {
        UNROLL
        for (int j = 0; j < panels * VECTORS; j++) {
            const unsigned char *here = group + j / VECTORS * panel_bytes;
            ask_ahead(type, here, k, j % VECTORS);
            if (inputs(type) == 2) {
                Floats pairs = load((const float *)here + k / 2 * NR + j % VECTORS * LANES);
                UNROLL
                for (int i = 0; i < rows; i++) sum[i][j] = step_bf16(sum[i][j], x[i * x_stride + k / 2], pairs);
                continue;
            }
            Floats w[2];
            two_inputs(type, w, here, k, j % VECTORS);
            UNROLL
            for (int i = 0; i < rows; i++) {
                sum[i][j] += broadcast(x[i * x_stride + k]) * w[0];
                sum[i][j] += broadcast(x[i * x_stride + k + 1]) * w[1];
            }
        }
    }
}

/* Some panels from the one of column n on, all of K. */
INLINE void multiply_few(int type, int rows, int panels, float *y, const float *x, const PackedMatrix *w,
                         const float *b, int64_t n) {
    int64_t panel_bytes = packed_panel_bytes(w), group_bytes = packed_group_bytes(type, NR);
    int64_t x_stride = padded(w->K) / inputs(type);
    const unsigned char *group = packed_panel(w, n / NR);
    for (int64_t k0 = 0; k0 < w->K; k0 += STRETCH) {
        Sums sum;
        UNROLL
        for (int i = 0; i < rows; i++) {
            UNROLL
            for (int j = 0; j < panels * VECTORS; j++) sum[i][j] = (Floats){0};
        }
        for (int64_t k = k0; k < min64(k0 + STRETCH, w->K); k += GROUP, group += group_bytes)
            add_group(type, rows, panels, sum, group, panel_bytes, x + k / inputs(type), x_stride);
        UNROLL
        for (int i = 0; i < rows; i++) {
            UNROLL
            for (int j = 0; j < panels * VECTORS; j++) {
                int64_t at = n + j * LANES, left = w->N - at;
                float *to = y + i * w->N + at;
                Floats start = k0 > 0 ? load_first(to, left) : b ? load_first(b + at, left) : (Floats){0};
                store_first(to, start + sum[i][j], left);
            }
        }
    }
}

INLINE void multiply_few_columns(int type, float *y, const float *x, const PackedMatrix *w, const float *b,
                                 int64_t rows, Range columns) {
    int64_t n = columns.first;
    if (rows == 1) {
        for (; n + PANELS * NR <= columns.end; n += PANELS * NR) multiply_few(type, 1, PANELS, y, x, w, b, n);
    }
    for (; n < columns.end; n += NR) {
        switch (rows) {
        case 1: multiply_few(type, 1, 1, y, x, w, b, n); break;
        case 2: multiply_few(type, 2, 1, y, x, w, b, n); break;
        case 3: multiply_few(type, 3, 1, y, x, w, b, n); break;
        case 4: multiply_few(type, 4, 1, y, x, w, b, n); break;
        }
    }
}

/* One function for each type: in one for all, the compiler would run out of registers. */
static void float32_columns(float *y, const float *x, const PackedMatrix *w, const float *b, int64_t rows,
                            Range columns) {
    multiply_few_columns(PYGPT_FLOAT32, y, x, w, b, rows, columns);
}

static void bfloat16_columns(float *y, const float *x, const PackedMatrix *w, const float *b, int64_t rows,
                             Range columns) {
    multiply_few_columns(PYGPT_BFLOAT16, y, x, w, b, rows, columns);
}

/* Rows as add_group() reads them: groups that are whole, and with bfloat16 rounded, pairs where the processor has them. */
static const float *prepare(const float *x, const PackedMatrix *w, int64_t rows, float *own) {
    int64_t K = w->K, elements = padded(K) / inputs(w->type);
    if (w->type != PYGPT_BFLOAT16 && K == elements) return x;
    for (int64_t r = 0; r < rows; r++) pack_row(panel_type(w->type), own + r * elements, x + r * K, K, elements);
    return own;
}

/* ---- many rows ---- */

/* So many groups of a panel as floats: (groups GROUP, NR). */
static void unpack_bfloat16(float *to, const unsigned char *group, int64_t groups) {
    int64_t bytes = packed_group_bytes(PYGPT_BFLOAT16, NR);
    for (int64_t g = 0; g < groups; g++, group += bytes, to += GROUP * NR) {
        UNROLL
        for (int j = 0; j < VECTORS; j++) {
            for (int k = 0; k < GROUP; k += 2) {
                Floats w[2];
                two_inputs(PYGPT_BFLOAT16, w, group, k, j);
                store(to + k * NR + j * LANES, w[0]);
                store(to + (k + 1) * NR + j * LANES, w[1]);
            }
        }
    }
}

/* A stretch of a panel as the micro-kernel reads it. */
static const float *unpacked(int type, const unsigned char *group, int64_t groups, float *own) {
    if (type == PYGPT_FLOAT32 || inputs(type) == 2) return (const float *)group;
    unpack_bfloat16(own, group, groups);
    return own;
}

/* One panel of weights times all rows over one stretch of k; `depth` elements of the packed rows. */
static void multiply_unpacked(const PackedMatrix *w, float *y, const float *b, int64_t n, const float *panel,
                              const float *packed_rows, int64_t depth, int64_t rows, int first) {
    Microkernel *microkernel = w->type == PYGPT_BFLOAT16 ? microkernel_bf16 : microkernel_f32;
    int64_t columns = min64(NR, w->N - n);
    Ahead ahead = NOTHING_AHEAD;
    ahead.panel_step = MR;
    for (int64_t r = 0; r < rows; r += MR) {
        const float *a = packed_rows + r * depth;
        float *c = y + r * w->N + n;
        const float *from = !first ? c : b ? b + n : NO_START;
        int64_t from_stride = first ? 0 : w->N, here = min64(MR, rows - r);
        ahead.panel = a + MR * depth;
        if (columns == NR) {
            microkernel(c, w->N, from, from_stride, a, panel, depth, here, &ahead);
            continue;
        }
        float tile[MR * NR];   // one that sticks out of the matrix is computed beside it
        microkernel(tile, NR, NO_START, 0, a, panel, depth, here, &ahead);
        for (int64_t i = 0; i < here; i++) {
            for (int64_t j = 0; j < columns; j++) c[i * w->N + j] = from[i * from_stride + j] + tile[i * NR + j];
        }
    }
}

static void multiply_many(const Team *team, float *y, const float *x, const PackedMatrix *w, const float *b,
                          int64_t rows, float *shared, float *own) {
    int64_t panels = divide_up(rows, MR), group_bytes = packed_group_bytes(w->type, NR);
    Range mine = range_of(team, panels);
    int64_t first = mine.first * MR, count = min64(mine.end * MR, rows) - first;
    for (int64_t k = 0; k < w->K && count > 0; k += STRETCH) {
        int64_t values = min64(STRETCH, w->K - k), depth = divide_up(values, inputs(w->type));
        Operand rows_of_x = {.x = x, .stride = w->K, .k_contiguous = 1};
        pack_rows(panel_type(w->type), shared + panels * MR * (k / inputs(w->type)) + first * depth,
                  operand_from(rows_of_x, first, k), count, values);
    }
    meet(team);
    Range columns = columns_of(team, w);
    for (int64_t n = columns.first; n < columns.end; n += NR) {
        for (int64_t k = 0; k < w->K; k += STRETCH) {
            int64_t values = min64(STRETCH, w->K - k);
            const unsigned char *group = packed_panel(w, n / NR) + k / GROUP * group_bytes;
            const float *panel = unpacked(w->type, group, divide_up(values, GROUP), own);
            multiply_unpacked(w, y, b, n, panel, shared + panels * MR * (k / inputs(w->type)),
                              divide_up(values, inputs(w->type)), rows, k == 0);
        }
    }
}

static void fast_packed_product(const Team *team, float *y, const float *x, const PackedMatrix *w, const float *b,
                                int64_t rows, float *shared, float *own) {
    if (packs_integers(w)) {
        integer_product(team, y, x, w, b, rows, rows > FEW_ROWS ? shared : own, rows > FEW_ROWS);
        return;
    }
    if (rows > FEW_ROWS) {
        multiply_many(team, y, x, w, b, rows, shared, own);
        return;
    }
    x = prepare(x, w, rows, own);
    Range columns = columns_of(team, w);
    switch (w->type) {
    case PYGPT_FLOAT32: float32_columns(y, x, w, b, rows, columns); break;
    case PYGPT_BFLOAT16: bfloat16_columns(y, x, w, b, rows, columns); break;
    }
}

/* The rows, in panels that are whole. */
static int64_t shared_floats(int64_t rows, int64_t K) {
    return rows > FEW_ROWS ? checked_mul(divide_up(rows, MR) * MR, padded(K)) : 0;
}

/* A few rows, or a stretch of a panel. */
static int64_t own_floats(int64_t K) {
    return max64(FEW_ROWS * padded(K), STRETCH * NR);
}

const GenerationKernels fast_generation = {
    .product = fast_packed_product,
    .attention = fast_cached_attention,
    .width = NR,
    .few_rows = FEW_ROWS,
    .queries = MR,
    .cached_numbers = fast_cached_numbers,
    .cache_row = fast_cache_row,
    .shared_floats = shared_floats,
    .own_floats = own_floats,
    .attention_floats = fast_cached_attention_floats,
};
