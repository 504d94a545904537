/* Text with a key/value cache: the forward pass of gpt2.c for tokens that come one by one, or many at once.
 *
 *   x = wte[token] + wpe[position]
 *   L times    q, k, v = linear(LayerNorm(x)); k and v go into the cache; x = x + linear(attention of q to the cache)
 *              x = x + linear(activation(linear(LayerNorm(x))))
 *   logits = LayerNorm(x) headᵀ      head = wte unless it has its own
 *
 * Where LayerNorms come after the sums, x = LayerNorm(x) + linear(...): each is the one before what follows, and the first
 * attention has none before it.
 *
 * A generator is a snapshot: weights are packed when it is made (packed.h), so none is ever stale. A row is a token of a sequence.
 * One parallel region computes some rows; its threads have columns of the products, heads, or rows to themselves, and meet
 * where one needs what another has written.
 */
#include "attention_scale.h"
#include "generation.h"
#include "model.h"
#include "positions.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

enum { ROWS = DIVIDES_WORK(512, 5) };   // that are computed together, at most

typedef struct {
    float *ln_1_w, *ln_1_b, *c_attn_b, *attn_proj_b, *ln_2_w, *ln_2_b, *c_fc_b, *mlp_proj_b;
    PackedMatrix c_attn, attn_proj, c_fc, mlp_proj;
    void *keys, *values;   // (B,NH) heads, as CachedHead has them
    float scale;           // of the scores, as CachedHead has it
} Block;

typedef struct {
    int64_t sequence, position;
    int wanted;   // are its logits
} Row;

struct Generator {
    GPT2Config config;
    const Kernels *kernels;
    Activation activation;
    const GenerationKernels *own;
    int weights, cache;
    int64_t B, positions;
    int in_use;

    unsigned char *memory;      // all that follows lies in it
    Block *blocks;
    PackedMatrix wte, head;     // (C,V): in the columns of wte the embedding; the same unless the head has its own
    float *wpe, *ln_f_w, *ln_f_b;
    int64_t *lengths;           // (B): tokens of each sequence
    Row *rows;
    float *x, *ln, *qkv, *heads, *branch, *fc;   // (rows,C), but qkv (rows,3C) and fc (rows,n_inner)
    float *mean, *rstd;                          // (rows): what LayerNorm gives besides
    float *packed_rows;         // scratch of a product with many rows

    float *scratch;             // of each thread
    int64_t scratch_threads;
};

/* ---- memory ---- */

/* The next bytes of the generator's memory, of which so many are taken: -1 if that overflows. */
static void *take(unsigned char *memory, int64_t *taken, int64_t bytes) {
    void *here = memory && *taken >= 0 ? memory + *taken : NULL;
    *taken = checked_add(*taken, checked_mul(divide_up(bytes, 64), bytes < 0 ? -1 : 64));
    return here;
}

static float *take_floats(unsigned char *memory, int64_t *taken, int64_t count) {
    return take(memory, taken, checked_mul(count, sizeof(float)));
}

static PackedMatrix take_matrix(unsigned char *memory, int64_t *taken, int type, int64_t K, int64_t N, int64_t width) {
    PackedMatrix matrix = {.type = type, .K = K, .N = N, .width = width};
    matrix.data = take(memory, taken, packed_bytes(&matrix));
    return matrix;
}

/* Of one number of the cache. */
static int64_t cached_bytes(const Generator *g) {
    return g->cache == PYGPT_FLOAT32 ? sizeof(float) : sizeof(uint16_t);
}

/* Numbers that a head of a sequence has room for in it. */
static int64_t cached_numbers(const Generator *g) {
    return g->own->cached_numbers(g->cache, g->positions, g->config.n_embd / g->config.n_head);
}

/* NULL without biases. */
static float *take_bias(const Generator *g, int64_t *taken, int64_t count) {
    return g->config.bias == PYGPT_BIAS ? take_floats(g->memory, taken, count) : NULL;
}

static void take_block(const Generator *g, Block *block, int64_t *taken) {
    int64_t C = g->config.n_embd, F = g->config.n_inner, width = g->own->width;
    unsigned char *m = g->memory;
    block->ln_1_w = take_floats(m, taken, C);
    block->ln_1_b = take_bias(g, taken, C);
    block->c_attn_b = take_bias(g, taken, 3 * C);
    block->attn_proj_b = take_bias(g, taken, C);
    block->ln_2_w = take_floats(m, taken, C);
    block->ln_2_b = take_bias(g, taken, C);
    block->c_fc_b = take_bias(g, taken, F);
    block->mlp_proj_b = take_bias(g, taken, C);
    block->c_attn = take_matrix(m, taken, g->weights, C, 3 * C, width);
    block->attn_proj = take_matrix(m, taken, g->weights, C, C, width);
    block->c_fc = take_matrix(m, taken, g->weights, C, F, width);
    block->mlp_proj = take_matrix(m, taken, g->weights, F, C, width);
    int64_t heads = checked_mul(g->B, g->config.n_head);
    int64_t cached = checked_mul(checked_mul(heads, cached_numbers(g)), cached_bytes(g));
    block->keys = take(m, taken, cached);
    block->values = take(m, taken, cached);
}

/* Points to everything but the blocks; the bytes that it takes. */
static int64_t take_rest(Generator *g) {
    const GPT2Config *c = &g->config;
    int64_t C = c->n_embd, rows = min64(checked_mul(g->B, g->positions), ROWS), taken = 0;
    unsigned char *m = g->memory;
    g->blocks = take(m, &taken, checked_mul(c->n_layer, sizeof(Block)));
    int embedding = g->weights == PYGPT_INT4 ? PYGPT_INT8 : g->weights;
    g->wte = take_matrix(m, &taken, embedding, C, c->vocab_size, g->own->width);
    g->head = g->wte;
    if (c->tie_word_embeddings == PYGPT_UNTIED)
        g->head = take_matrix(m, &taken, embedding, C, c->vocab_size, g->own->width);
    if (adds_positions(c)) g->wpe = take_floats(m, &taken, checked_mul(g->positions, C));
    if (c->norm_position == PYGPT_PRE_NORM) {
        g->ln_f_w = take_floats(m, &taken, C);
        g->ln_f_b = take_bias(g, &taken, C);
    }
    g->lengths = take(m, &taken, checked_mul(g->B, sizeof(int64_t)));
    g->rows = take(m, &taken, checked_mul(rows, sizeof(Row)));
    g->x = take_floats(m, &taken, checked_mul(rows, C));
    g->ln = take_floats(m, &taken, checked_mul(rows, C));
    g->qkv = take_floats(m, &taken, checked_mul(rows, 3 * C));
    g->heads = take_floats(m, &taken, checked_mul(rows, C));
    g->branch = take_floats(m, &taken, checked_mul(rows, C));
    g->fc = take_floats(m, &taken, checked_mul(rows, c->n_inner));
    g->mean = take_floats(m, &taken, rows);
    g->rstd = take_floats(m, &taken, rows);
    g->packed_rows = take_floats(m, &taken, g->own->shared_floats(rows, max64(C, c->n_inner)));
    return taken;
}

/* Of few rows, what LayerNorm gives. */
static int64_t own_rows_floats(const Generator *g) {
    return g->own->few_rows * (g->config.n_embd + 2);
}

static int64_t scratch_floats(const Generator *g) {
    int64_t product = g->own->own_floats(max64(g->config.n_embd, g->config.n_inner));
    int64_t attention = g->own->attention_floats(g->positions, g->config.n_embd / g->config.n_head);
    return divide_up(max64(product, attention) + own_rows_floats(g), 16) * 16;
}

/* Bytes of everything; -1 if they overflow. The blocks are alike, and there may be a million of them. */
static int64_t all_bytes(Generator *g) {
    int64_t rest = take_rest(g), block = 0;
    Block one;
    take_block(g, &one, &block);
    return checked_add(rest, checked_mul(g->config.n_layer, block));
}

int64_t generator_memory(const GPT2Config *config, int weights, int cache, int64_t B, int64_t positions) {
    if (check_generator(config, weights, cache, B, positions) != PYGPT_OK) return -1;
    Generator g = {
        .config = *config, .own = &fast_generation, .weights = weights, .cache = cache, .B = B, .positions = positions};
    use_threads();
    int64_t scratch = checked_mul(omp_get_max_threads(), scratch_floats(&g) * (int64_t)sizeof(float));
    return checked_add(all_bytes(&g), scratch);
}

/* ---- the snapshot ---- */

/* Nothing from NULL. */
static void copy_floats(float *to, const float *from, int64_t count) {
    if (from) memcpy(to, from, (size_t)count * sizeof(float));
}

static void pack_weights(PackedMatrix *to, const float *w) {
    packed_fill(to, w, to->N, 1, NULL);
}

static void copy_weights(Generator *g, GPT2 *m) {
    int64_t C = g->config.n_embd, F = g->config.n_inner;
    EmbeddingWeights embedding = embedding_weights(&m->weights, m->parameters);
    packed_fill(&g->wte, embedding.wte, 1, C, NULL);
    if (g->config.tie_word_embeddings == PYGPT_UNTIED)
        packed_fill(&g->head, head_weights(&m->weights, m->parameters), 1, C, NULL);
    if (g->wpe) copy_floats(g->wpe, m->sinusoidal ? m->sinusoidal : embedding.wpe, g->positions * C);
    for (int64_t layer = 0; layer < g->config.n_layer; layer++) {
        BlockWeights from = block_weights(&m->weights, m->parameters, layer);
        Block *to = g->blocks + layer;
        to->scale = attention_scale_of_powers(&g->config, layer);
        copy_floats(to->ln_1_w, from.ln_1_w, C);
        copy_floats(to->ln_1_b, from.ln_1_b, C);
        pack_weights(&to->c_attn, from.c_attn_w);
        copy_floats(to->c_attn_b, from.c_attn_b, 3 * C);
        pack_weights(&to->attn_proj, from.attn_proj_w);
        copy_floats(to->attn_proj_b, from.attn_proj_b, C);
        copy_floats(to->ln_2_w, from.ln_2_w, C);
        copy_floats(to->ln_2_b, from.ln_2_b, C);
        pack_weights(&to->c_fc, from.c_fc_w);
        copy_floats(to->c_fc_b, from.c_fc_b, F);
        pack_weights(&to->mlp_proj, from.mlp_proj_w);
        copy_floats(to->mlp_proj_b, from.mlp_proj_b, C);
    }
    FinalWeights final = final_weights(&m->weights, m->parameters);
    copy_floats(g->ln_f_w, final.ln_f_w, C);
    copy_floats(g->ln_f_b, final.ln_f_b, C);
}

int generator_create(Generator **generator, GPT2 *m, int weights, int cache, int64_t B, int64_t positions) {
    *generator = NULL;
    USE(m);
    int status = check_generator(&m->config, weights, cache, B, positions);
    if (status != PYGPT_OK) return status;
    Generator *g = calloc(1, sizeof *g);
    if (!g) return fail(PYGPT_ERROR_MEMORY, "no memory for a generator");
    *g = (Generator){.config = m->config,
                     .kernels = m->kernels,
                     .activation = m->activation,
                     .weights = weights,
                     .cache = cache,
                     .B = B,
                     .positions = positions};
    g->own = m->options.kernels == PYGPT_PLAIN ? &plain_generation : &fast_generation;
    int64_t bytes = all_bytes(g);
    g->memory = bytes < 0 || (uint64_t)bytes > SIZE_MAX ? NULL : allocate_aligned((size_t)bytes);
    if (!g->memory) {
        free(g);
        return fail(PYGPT_ERROR_MEMORY, "no memory for a generator: %.2f GiB were asked for",
                    bytes < 0 ? INFINITY : (double)bytes / GIB);
    }
    int64_t taken = take_rest(g);
    for (int64_t layer = 0; layer < m->config.n_layer; layer++) take_block(g, g->blocks + layer, &taken);
    copy_weights(g, m);
    for (int64_t b = 0; b < B; b++) g->lengths[b] = 0;
    *generator = g;
    return PYGPT_OK;
}

int generator_write(Generator *g, int64_t block, int number, const float *w, const float *scales, int64_t size) {
    USE_GENERATOR(g);
    int status = check_scales(&g->config, g->weights, block, number, size);
    if (status != PYGPT_OK) return status;
    Block *b = g->blocks + block;
    PackedMatrix *const matrices[] = {&b->c_attn, &b->attn_proj, &b->c_fc, &b->mlp_proj}, *m = matrices[number];
    packed_fill(m, w, m->N, 1, scales);
    return PYGPT_OK;
}

void generator_free(Generator *g) {
    if (!g) return;
    free(g->memory);
    free(g->scratch);
    free(g);
}

/* ---- the pass over some rows ---- */

/* What a thread has to itself. */
typedef struct {
    Team team;
    float *scratch;      // of products and attention
    float *ln, *statistics;   // (few_rows,C), (few_rows,2)
} Worker;

static int few(const Generator *g, int64_t rows) {
    return rows <= g->own->few_rows;
}

/* Each thread has some channels. */
static void embed(const Generator *g, const Worker *me, const int32_t *tokens, int64_t rows) {
    int64_t C = g->config.n_embd;
    Range channels = range_of(&me->team, C);
    for (int64_t r = 0; r < rows; r++) {
        float *x = g->x + r * C;
        for (int64_t c = channels.first; c < channels.end; c++) x[c] = packed_value(&g->wte, c, tokens[r]);
        if (!g->wpe) continue;
        const float *position = g->wpe + g->rows[r].position * C;
        for (int64_t c = channels.first; c < channels.end; c++) x[c] += position[c];
    }
}

typedef struct {
    const float *w, *b;   // w: NULL where there is none
} Norm;

/* Before place 2l, the attention of block l, 2l + 1, its feed-forward part, and 2L, the head. */
static Norm norm_before(const Generator *g, int64_t place) {
    int64_t number = is_post_norm(&g->config) ? place - 1 : place;
    if (number < 0) return (Norm){NULL, NULL};
    if (number == 2 * g->config.n_layer) return (Norm){g->ln_f_w, g->ln_f_b};
    const Block *block = g->blocks + number / 2;
    return number % 2 == 0 ? (Norm){block->ln_1_w, block->ln_1_b} : (Norm){block->ln_2_w, block->ln_2_b};
}

/* What enters a place. Few rows every thread computes for itself, which takes less than to meet; of many each has some. */
static const float *normalised(const Generator *g, const Worker *me, int64_t place, int64_t rows) {
    int64_t C = g->config.n_embd;
    float eps = g->config.layer_norm_epsilon;
    Norm norm = norm_before(g, place);
    if (!norm.w) return g->x;
    if (few(g, rows)) {
        g->kernels->layernorm_forward(me->ln, me->statistics, me->statistics + rows, g->x, norm.w, norm.b, rows, C,
                                      eps);
        return me->ln;
    }
    Range mine = range_of(&me->team, rows);
    if (mine.end > mine.first) {
        g->kernels->layernorm_forward(g->ln + mine.first * C, g->mean + mine.first, g->rstd + mine.first,
                                      g->x + mine.first * C, norm.w, norm.b, mine.end - mine.first, C, eps);
    }
    meet(&me->team);
    return g->ln;
}

static void linear_columns(const Generator *g, const Worker *me, float *y, const float *x, const PackedMatrix *w,
                           const float *b, int64_t rows) {
    g->own->product(&me->team, y, x, w, b, rows, g->packed_rows, me->scratch);
}

/* The branch is added to x, or to its input, in the columns that this thread has just computed. */
static void add_branch(const Generator *g, const Worker *me, const float *input, const PackedMatrix *w, int64_t rows) {
    Range columns = columns_of(&me->team, w);
    const float *x = is_post_norm(&g->config) ? input : g->x;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = columns.first; c < columns.end; c++)
            g->x[r * w->N + c] = x[r * w->N + c] + g->branch[r * w->N + c];
    }
}

static void activate(const Generator *g, const Worker *me, const PackedMatrix *w, int64_t rows) {
    Range columns = columns_of(&me->team, w);
    for (int64_t r = 0; r < rows && columns.end > columns.first; r++) {
        float *y = g->fc + r * w->N + columns.first;
        g->activation.forward(y, y, columns.end - columns.first);
    }
}

/* A head of a sequence in the cache of a block. */
static CachedHead cached_head(const Generator *g, const Block *block, int64_t sequence, int64_t h) {
    int64_t at = (sequence * g->config.n_head + h) * cached_numbers(g) * cached_bytes(g);
    return (CachedHead){
        .HS = g->config.n_embd / g->config.n_head,
        .cache = g->cache,
        .keys = (char *)block->keys + at,
        .values = (char *)block->values + at,
        .scale = block->scale,
    };
}

/* Queries and keys of some heads, in a model that turns them by their positions. */
static void turn_row(const Generator *g, int64_t r, Range heads) {
    int64_t C = g->config.n_embd, HS = C / g->config.n_head;
    float *q = g->qkv + r * 3 * C + heads.first * HS;
    if (g->config.position_embedding == PYGPT_ROTARY)
        rotary_turn(q, q, C, 2, (double)g->rows[r].position, heads.end - heads.first, HS);
}

static void cache_row(const Generator *g, const Block *block, int64_t r, int64_t h) {
    CachedHead head = cached_head(g, block, g->rows[r].sequence, h);
    int64_t C = g->config.n_embd;
    const float *k = g->qkv + r * 3 * C + C + h * head.HS;
    g->own->cache_row(&head, g->rows[r].position, k, k + C);
}

/* Some rows of a sequence, from r on. */
static void attend_rows(const Generator *g, const Worker *me, const Block *block, int64_t r, int64_t rows, int64_t h) {
    CachedHead head = cached_head(g, block, g->rows[r].sequence, h);
    int64_t C = g->config.n_embd;
    head.y = g->heads + r * C + h * head.HS;
    head.q = g->qkv + r * 3 * C + h * head.HS;
    head.y_stride = C;
    head.q_stride = 3 * C;
    head.queries = rows;
    head.count = g->rows[r].position + 1;
    g->own->attention(&head, me->scratch);
}

/* Behind those rows from r on that attention can take at once. */
static int64_t end_of_queries(const Generator *g, int64_t r, int64_t rows) {
    int64_t end = r + 1, most = min64(r + g->own->queries, rows);
    while (end < most && g->rows[end].sequence == g->rows[r].sequence) end++;
    return end;
}

/* Few rows: a thread has heads, of which it caches and attends to what is its own. Many: rows to be cached, and then every so
 * manyth of the groups of queries of each head, as they are the more work the later they come. */
static void attend_to_cache(const Generator *g, const Worker *me, const Block *block, int64_t rows) {
    int64_t NH = g->config.n_head, number = me->team.number, threads = me->team.threads;
    int few_rows = few(g, rows);
    Range heads = few_rows ? range_of(&me->team, NH) : (Range){0, NH};
    Range mine = few_rows ? (Range){0, rows} : range_of(&me->team, rows);
    for (int64_t r = mine.first; r < mine.end; r++) turn_row(g, r, heads);
    for (int64_t h = heads.first; h < heads.end; h++) {
        for (int64_t r = mine.first; r < mine.end; r++) cache_row(g, block, r, h);
    }
    if (!few_rows) meet(&me->team);
    for (int64_t h = heads.first; h < heads.end; h++) {
        for (int64_t r = 0, group = h, end; r < rows; r = end, group++) {
            end = end_of_queries(g, r, rows);
            if (few_rows || group % threads == number) attend_rows(g, me, block, r, end - r, h);
        }
    }
}

static void generate_block(const Generator *g, const Worker *me, int64_t layer, int64_t rows) {
    const Block *w = g->blocks + layer;
    const float *input = normalised(g, me, 2 * layer, rows);
    linear_columns(g, me, g->qkv, input, &w->c_attn, w->c_attn_b, rows);
    meet(&me->team);
    attend_to_cache(g, me, w, rows);
    meet(&me->team);
    linear_columns(g, me, g->branch, g->heads, &w->attn_proj, w->attn_proj_b, rows);
    add_branch(g, me, input, &w->attn_proj, rows);
    meet(&me->team);

    input = normalised(g, me, 2 * layer + 1, rows);
    linear_columns(g, me, g->fc, input, &w->c_fc, w->c_fc_b, rows);
    activate(g, me, &w->c_fc, rows);
    meet(&me->team);
    linear_columns(g, me, g->branch, g->fc, &w->mlp_proj, w->mlp_proj_b, rows);
    add_branch(g, me, input, &w->mlp_proj, rows);
    meet(&me->team);
}

/* The rows that want logits come first in x. */
static void keep_wanted(const Generator *g, int64_t rows) {
    int64_t C = g->config.n_embd, kept = 0;
    for (int64_t r = 0; r < rows; r++) {
        if (!g->rows[r].wanted) continue;
        if (kept < r) copy_floats(g->x + kept * C, g->x + r * C, C);
        kept++;
    }
}

static void pass(Generator *g, float *logits, const int32_t *tokens, int64_t rows, int64_t wanted) {
    Meeting meeting = {0};
    #pragma omp parallel
    {
        Worker me = {.team = {&meeting, omp_get_thread_num(), omp_get_num_threads()}};
        me.scratch = g->scratch + me.team.number * scratch_floats(g);
        me.ln = me.scratch + scratch_floats(g) - own_rows_floats(g);
        me.statistics = me.ln + g->own->few_rows * g->config.n_embd;
        embed(g, &me, tokens, rows);
        meet(&me.team);
        for (int64_t layer = 0; layer < g->config.n_layer; layer++) generate_block(g, &me, layer, rows);
        if (wanted < rows) {
            if (me.team.number == 0) keep_wanted(g, rows);
            meet(&me.team);
        }
        if (wanted > 0) {
            const float *input = normalised(g, &me, 2 * g->config.n_layer, wanted);
            linear_columns(g, &me, logits, input, &g->head, NULL, wanted);
        }
    }
}

/* ---- sequences ---- */

static int reserve_scratch(Generator *g) {
    int64_t threads = omp_get_max_threads();
    if (threads <= g->scratch_threads) return PYGPT_OK;
    free(g->scratch);
    g->scratch_threads = 0;
    g->scratch = allocate_aligned((size_t)(threads * scratch_floats(g)) * sizeof(float));
    if (!g->scratch) return fail(PYGPT_ERROR_MEMORY, "no memory for the scratch of %" PRId64 " threads", threads);
    g->scratch_threads = threads;
    return PYGPT_OK;
}

int generator_feed(Generator *g, float *logits, const int32_t *tokens, const int64_t *lengths, int every) {
    USE_GENERATOR(g);
    int64_t count;
    int status = check_feed(&g->config, g->lengths, g->B, g->positions, tokens, lengths, &count);
    if (status == PYGPT_OK) status = reserve_scratch(g);
    if (status != PYGPT_OK) return status;
    int64_t most = min64(g->B * g->positions, ROWS), sequence = 0, at = 0;
    for (int64_t done = 0; done < count;) {
        int64_t rows = min64(count - done, most), wanted = 0;
        for (int64_t r = 0; r < rows; r++, at++) {
            while (at == lengths[sequence]) sequence++, at = 0;
            int last = at + 1 == lengths[sequence];
            g->rows[r] = (Row){sequence, g->lengths[sequence] + at, every || last};
            wanted += g->rows[r].wanted;
        }
        pass(g, logits, tokens + done, rows, wanted);
        logits += wanted * g->config.vocab_size;
        done += rows;
    }
    for (int64_t b = 0; b < g->B; b++) g->lengths[b] += lengths[b];
    return PYGPT_OK;
}

int generator_rewind(Generator *g, const int64_t *lengths) {
    USE_GENERATOR(g);
    int status = check_rewind(g->lengths, g->B, lengths);
    if (status != PYGPT_OK) return status;
    for (int64_t b = 0; b < g->B; b++) g->lengths[b] = lengths[b];
    return PYGPT_OK;
}
