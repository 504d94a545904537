/* Matrix products from packed panels. A panel holds rows of the left operand or columns of the right one.
 *
 *   for blocks of the operand with fewer of them, as many stretches     all threads pack the block, for the third-level
 *   of k as fit beside each other:                                      cache
 *       for each item, some panels of the other operand (shares.h),
 *       for each stretch:                                               one thread packs them, for its second-level one
 *           for each panel of the block, each panel of the item:        the micro-kernel
 *
 * So each operand is packed once, as long as the smaller one is a single block, and the larger one stays with the thread
 * that uses it, as does its part of c until k is at its end. While one panel of the block is used, the next one is
 * fetched, and so is what the thread will pack next: memory is slow only for a thread's first item. Each c_ij is summed
 * over k in the same stretches whoever computes it, so the number of threads changes no bit.
 */
#include "gemm.h"

#include "../internal.h"
#include "../threads.h"
#include "shares.h"
#include "workspace.h"

enum {
    SHARED = DIVIDES_WORK(4 << 20, 2 * NR * KC),   // floats of packed panels which all threads use
    AT_ONCE = DIVIDES_WORK(128, 2 * NR),     // that a thread packs
    OWN = AT_ONCE * KC,                      // floats of packed panels that one thread uses
    SMALL = DIVIDES_WORK(1 << 17, 0),   // multiplications: what one thread has done before others have woken up
};

/* So many rows or columns of an operand from `first` on, over one stretch of k, packed in panels of `width`. */
typedef struct {
    float *panels;
    Operand operand;
    int64_t width, first, count, depth;
} Side;

/* Some of one side, from a panel's first one on. */
static void pack_side(PanelType type, const Side *side, int64_t i, int64_t count, int64_t k, int64_t values) {
    (side->width == MR ? pack_rows : pack_columns)(type, side->panels + i * side->depth,
                                                   operand_from(side->operand, side->first + i, k), count, values);
}

/* What is done in one stretch of k. */
typedef struct {
    const Product *product;
    const Side *rows, *columns;
    int64_t k;
} Stretch;

static void multiply_two_panels(const Stretch *s, int64_t row, int64_t column, const Ahead *ahead) {
    const Product *p = s->product;
    int64_t rows = min64(MR, s->rows->count - row), columns = min64(NR, s->columns->count - column);
    const float *a = s->rows->panels + row * s->rows->depth, *b = s->columns->panels + column * s->columns->depth;
    int64_t i0 = s->rows->first + row, j0 = s->columns->first + column;
    float *c = p->c + i0 * p->c_stride + j0;
    const float *from = c;
    int64_t from_stride = p->c_stride;
    if (s->k == 0) {
        from_stride = p->from ? p->from_stride : 0;
        from = p->from ? p->from + i0 * from_stride + j0 : NO_START;
    }
    Microkernel *microkernel = p->type == PANEL_BF16 ? microkernel_bf16 : microkernel_f32;
    if (columns == NR) {
        microkernel(c, p->c_stride, from, from_stride, a, b, s->rows->depth, rows, ahead);
        return;
    }
    float tile[MR * NR];   // one that sticks out of the matrix is computed beside it
    microkernel(tile, NR, NO_START, 0, a, b, s->rows->depth, rows, ahead);
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) c[i * p->c_stride + j] = from[i * from_stride + j] + tile[i * NR + j];
    }
}

/* Fetching the lines of some rows or columns of an operand while so many tiles are computed. */
static Ahead ahead_of(Operand operand, int64_t count, int64_t values, int64_t tiles, int64_t depth) {
    if (count <= 0 || !FETCH_AHEAD) return NOTHING_AHEAD;
    int64_t rows = operand.k_contiguous ? count : values;
    int64_t lines = divide_up(operand.k_contiguous ? values : count, LINE);
    return (Ahead){
        .row = operand.x,
        .lines = lines,
        .stride = operand.stride,
        .interval = max64(depth / divide_up(rows * lines, tiles), 1),
    };
}

/* All panels of the block times all panels of the item, while the next of both are fetched. */
static void multiply_block_by_item(const Stretch *s, const Side *block, const Side *item, Ahead ahead) {
    const float *rows = ahead.row;
    int64_t at = 0, depth = block->depth;
    ahead.panel_step = divide_up(block->width * item->width, item->count);
    for (int64_t i = 0; i < block->count; i += block->width) {
        ahead.panel = block->panels + (i + block->width) * depth;
        for (int64_t own = 0; own < item->count; own += item->width) {
            ahead.row = rows + at / ahead.lines * ahead.stride;
            ahead.line = at % ahead.lines;
            multiply_two_panels(s, block == s->rows ? i : own, block == s->rows ? own : i, &ahead);
            ahead.panel += ahead.panel_step * depth;
            at += divide_up(depth, ahead.interval);
        }
    }
}

/* How much of k, from k on, makes one stretch. */
static int64_t stretch_depth(const Product *p, int64_t k) {
    return min64(KC, divide_up(p->K, panel_pair(p->type)) - k);
}

/* Packs some rows or columns of a side for the stretch that begins at k, to where the side's panels are. */
static void pack_stretch(const Product *p, Side *side, int64_t i, int64_t count, int64_t k) {
    int64_t pair = panel_pair(p->type);
    side->depth = stretch_depth(p, k);
    pack_side(p->type, side, i, count, k * pair, min64(side->depth * pair, p->K - k * pair));
}

/* The stretches of k from one to another for one block, by all threads together. An item has many panels, so that a
 * panel of the block serves often once it is fetched. */
static void multiply_stretches(const Product *p, Side *rows, Side *columns, int64_t item_count, int64_t k_first,
                               int64_t k_end, float *shared, Share *shares) {
    Side *block = p->M < p->N ? rows : columns, *item = p->M < p->N ? columns : rows;
    int64_t threads = omp_get_num_threads(), pair = panel_pair(p->type);
    int64_t block_floats = divide_up(block->count, block->width) * block->width;   // for each element of k
    int64_t portion = min64(divide_up(block->count, 4 * threads), AT_ONCE) / block->width * block->width;
    portion = max64(portion, block->width);
    int64_t portions = divide_up(block->count, portion), stretches = divide_up(k_end - k_first, KC);
    #pragma omp single nowait
    share_out(shares, threads, divide_up(item_count, item->width));
    #pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < stretches * portions; n++) {
        int64_t k = k_first + n / portions * KC, i = n % portions * portion;
        block->panels = shared + (k - k_first) * block_floats;
        pack_stretch(p, block, i, min64(portion, block->count - i), k);
    }
    for (;;) {
        Portion taken = take_portion(shares, threads, AT_ONCE / item->width);
        if (taken.count == 0) break;
        item->first = taken.first * item->width;
        item->count = min64(taken.count * item->width, item_count - item->first);
        int64_t tiles = divide_up(block->count, block->width) * taken.count;
        for (int64_t k = k_first; k < k_end; k += KC) {
            pack_stretch(p, item, 0, item->count, k);
            block->panels = shared + (k - k_first) * block_floats;
            block->depth = item->depth;
            int64_t next = item->first, next_count = item->count, next_k = k + KC;
            if (next_k >= k_end) {   // the thread's next item
                next += item->count;
                next_count = min64(min64(taken.following, taken.count) * item->width, item_count - next);
                next_k = k_first;
            }
            int64_t values = min64(stretch_depth(p, next_k) * pair, p->K - next_k * pair);
            multiply_block_by_item(
                &(Stretch){p, rows, columns, k}, block, item,
                ahead_of(operand_from(item->operand, next, next_k * pair), next_count, values, tiles, item->depth));
        }
    }
    #pragma omp barrier   // the block and the shares are free again
}

/* To be called by all threads of a parallel region, which have the shares together, one each. */
static void multiply_together(const Product *p, float *shared, float *own, Share *shares) {
    Side rows = {.operand = p->a, .width = MR, .count = p->M}, columns = {.operand = p->b, .width = NR, .count = p->N};
    Side *block = p->M < p->N ? &rows : &columns, *item = p->M < p->N ? &columns : &rows;
    item->panels = own;
    int64_t K = divide_up(p->K, panel_pair(p->type)), block_count = block->count, item_count = item->count;
    int64_t block_step = SHARED / min64(K, KC) / block->width * block->width;
    for (block->first = 0; block->first < block_count; block->first += block_step) {
        block->count = min64(block_step, block_count - block->first);
        int64_t block_floats = divide_up(block->count, block->width) * block->width;
        int64_t k_step = max64(SHARED / block_floats / KC, 1) * KC;
        for (int64_t k = 0; k < K; k += k_step)
            multiply_stretches(p, &rows, &columns, item_count, k, min64(k + k_step, K), shared, shares);
    }
}

static int64_t workspace_floats(int threads) {
    return SHARED + (int64_t)threads * OWN;
}

int64_t gemm_workspace_bytes(void) {
    return workspace_floats(omp_get_max_threads()) * (int64_t)sizeof(float);
}

int gemm(const Product *p) {
    if (p->K == 0) return 0;
    int threads = p->M * p->N * p->K > SMALL ? omp_get_max_threads() : 1;
    float *workspace = workspace_acquire(workspace_floats(threads));
    if (!workspace) return 0;
    Share shares[threads];
    #pragma omp parallel num_threads(threads)
    multiply_together(p, workspace, workspace + SHARED + omp_get_thread_num() * OWN, shares);
    workspace_release(workspace);
    return 1;
}
