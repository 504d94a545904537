/* Matrix products from packed panels.
 *
 *   for n0, k0 in steps of columns and depth:                       pack b[k0.., n0..] into panels of NR columns
 *       for m0 in steps of rows:                                    pack a[m0.., k0..] into panels of MR rows
 *           for each item of c[m0.., n0..], some panels of each:
 *               for each stretch of KC, panel of b, panel of a:     the micro-kernel
 *
 * The panels of a in an item and two of b fit the second-level cache: while one of b is used, the next one is fetched.
 * Threads share the packing and then the items. Each c_ij is summed over k in the same stretches whoever computes it,
 * so the number of threads changes no bit.
 */
#include "gemm.h"

#include "../internal.h"
#include "workspace.h"

/* Sizes of blocks, the depth being counted in elements of a panel, which are pairs in bfloat16. */
enum {
    KC = 768,             // long, because at the end of each stretch c is read and written
    DEPTH = 2 * KC,       // of what is packed at a time
    A_FLOATS = 2 << 20,   // packed panels, which the third-level cache is to hold
    B_FLOATS = 4 << 20,
    ITEM_A = 8,           // panels of a and b in an item, at most
    ITEM_B = 12,
    ITEMS = 16,         // at least, if there are so many panels: no thread waits long for the last item of another
    SMALL = 1 << 17,    // multiplications: what one thread has done before others have woken up
};

static int64_t divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* A block of c and the panels that it is the product of. */
typedef struct {
    Microkernel *multiply;
    float *c;   // its corner
    int64_t c_stride;
    const float *from;   // what the first stretch is added to, or NULL
    int64_t from_stride;
    const float *a, *b;   // panels
    int64_t rows, columns, depth;
} Block;

static void multiply_tile(const Block *block, int64_t row, int64_t column, int64_t k, const float *ahead) {
    int64_t rows = min64(MR, block->rows - row), columns = min64(NR, block->columns - column);
    const float *a = block->a + row * block->depth + k * MR, *b = block->b + column * block->depth + k * NR;
    int64_t depth = min64(KC, block->depth - k);
    float *c = block->c + row * block->c_stride + column;
    const float *from = c;
    int64_t from_stride = block->c_stride;
    if (k == 0) {
        from_stride = block->from ? block->from_stride : 0;
        from = block->from ? block->from + row * from_stride + column : NO_START;
    }
    if (columns == NR) {
        block->multiply(c, block->c_stride, from, from_stride, a, b, depth, rows, ahead);
        return;
    }
    float tile[MR * NR];   // one that sticks out of the matrix is computed beside it
    block->multiply(tile, NR, NO_START, 0, a, b, depth, rows, ahead);
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) c[i * block->c_stride + j] = from[i * from_stride + j] + tile[i * NR + j];
    }
}

/* To be called by all threads of a parallel region. */
static void multiply_block(const Block *block) {
    int64_t a_panels = divide_up(block->rows, MR), b_panels = divide_up(block->columns, NR);
    int64_t a_items = divide_up(a_panels, ITEM_A), b_items = divide_up(b_panels, ITEM_B);
    while (a_items * b_items < ITEMS && b_items < b_panels) b_items++;
    while (a_items * b_items < ITEMS && a_items < a_panels) a_items++;

    #pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < a_items * b_items; item++) {
        int64_t i = item / b_items, j = item % b_items;
        int64_t row_end = min64((i + 1) * a_panels / a_items * MR, block->rows);
        int64_t column_end = min64((j + 1) * b_panels / b_items * NR, block->columns);
        for (int64_t k = 0; k < block->depth; k += KC) {
            int64_t depth = min64(KC, block->depth - k);
            for (int64_t column = j * b_panels / b_items * NR; column < column_end; column += NR) {
                const float *ahead = block->b + (column + NR) * block->depth + k * NR;
                for (int64_t row = i * a_panels / a_items * MR; row < row_end; row += MR) {
                    multiply_tile(block, row, column, k, ahead);
                    ahead += depth * AHEAD;
                }
            }
        }
    }
}

static void multiply(const Product *p, float *a_panels, float *b_panels) {
    int64_t pair = panel_pair(p->type);
    int64_t K = divide_up(p->K, pair);
    int64_t depth_step = min64(K, DEPTH);
    int64_t row_step = A_FLOATS / depth_step / MR * MR, column_step = B_FLOATS / depth_step / NR * NR;
    for (int64_t n = 0; n < p->N; n += column_step) {
        int64_t columns = min64(column_step, p->N - n);
        for (int64_t k = 0; k < K; k += depth_step) {
            int64_t depth = min64(depth_step, K - k), depth_values = min64(depth * pair, p->K - k * pair);
            #pragma omp for schedule(dynamic) nowait
            for (int64_t column = 0; column < columns; column += NR) {
                pack_columns(p->type, b_panels + column * depth, operand_from(p->b, n + column, k * pair),
                             min64(NR, columns - column), depth_values);
            }
            for (int64_t m = 0; m < p->M; m += row_step) {
                int64_t rows = min64(row_step, p->M - m);
                #pragma omp for schedule(dynamic)
                for (int64_t row = 0; row < rows; row += MR) {
                    pack_rows(p->type, a_panels + row * depth, operand_from(p->a, m + row, k * pair),
                              min64(MR, rows - row), depth_values);
                }
                const float *from = k > 0 ? p->c : p->from;
                int64_t from_stride = k > 0 ? p->c_stride : p->from_stride;
                multiply_block(&(Block){
                    .multiply = p->type == PANEL_BF16 ? microkernel_bf16 : microkernel_f32,
                    .c = p->c + m * p->c_stride + n,
                    .c_stride = p->c_stride,
                    .from = from ? from + m * from_stride + n : NULL,
                    .from_stride = from_stride,
                    .a = a_panels,
                    .b = b_panels,
                    .rows = rows,
                    .columns = columns,
                    .depth = depth,
                });
            }
        }
    }
}

int gemm(const Product *p) {
    if (p->K == 0) return 0;
    float *workspace = workspace_acquire(A_FLOATS + B_FLOATS);
    if (!workspace) return 0;
    #pragma omp parallel if (p->M * p->N * p->K > SMALL)
    multiply(p, workspace, workspace + A_FLOATS);
    workspace_release(workspace);
    return 1;
}
