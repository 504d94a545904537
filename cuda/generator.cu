/* Text with a key/value cache, on the device: the formulas and, nearly, the text are those of csrc/generator.c.
 *
 * The weights are packed on the host, by the code that packs them for the CPU. A feed is enqueued as a whole, and the host
 * waits only to read logits. From the second time in a row on, a token for each of so many sequences is one CUDA graph: what
 * differs, tokens and positions, lies in the device's memory. LayerNorms, activations and residual connections are part of the
 * products. Kernels for generation: layers/generation.cuh.
 */
#include "layers/generation.cuh"
#include "model.cuh"

#include "../csrc/attention_scale.h"
extern "C" {
#include "../csrc/positions.h"
}

#include <algorithm>
#include <new>
#include <vector>

namespace {

constexpr int64_t ROWS = DIVIDES_WORK(512, 5);   // that are computed together, at most
constexpr int64_t HEAD_ROWS = DIVIDES_WORK(64, 2);   // of logits, likewise
constexpr int64_t ALIGNMENT = 256;   // bytes

struct Block {
    float *ln_1_w, *ln_1_b, *c_attn_b, *attn_proj_b, *ln_2_w, *ln_2_b, *c_fc_b, *mlp_proj_b;
    PackedMatrix c_attn, attn_proj, c_fc, mlp_proj;
    void *keys, *values;   // (B,NH,positions,HS)
    float scale;           // of the scores, as CachedAttention has it
};

}   // namespace

struct Generator {
    GPT2Config config;
    int weights, cache;
    int64_t B, positions;
    int in_use;
    Queue queue;
    Graphs graphs;   // by the number of rows
    std::vector<int64_t> lengths;   // (B): tokens of each sequence

    unsigned char *memory;          // on the device; all that follows lies in it
    std::vector<Block> blocks;
    PackedMatrix wte, head;   // (C,V): in the columns of wte the embedding; the same unless the head has its own
    float *wpe, *ln_f_w, *ln_f_b;
    GenerationRow *rows;   // (B·positions): of a feed
    float *x, *qkv, *heads, *fc;   // (rows,C), but qkv (rows,3C) and fc (rows,n_inner)
    float *ln;                     // (rows,C), where LayerNorms come after the sums
    ChunkSums scratch;    // of attention
    float *logits;   // (head rows,V)
};

/* ---- memory ---- */

namespace {

/* Parts of one allocation, or, where there is none yet, how large it must be: -1 if that overflows. */
struct Parts {
    unsigned char *memory;
    int64_t bytes = 0;

    template <class T> T *take(int64_t count) {
        const int64_t part = checked_mul(count, sizeof(T));
        unsigned char *const here = memory ? memory + bytes : nullptr;
        bytes = checked_add(bytes, part < 0 ? -1 : checked_mul(divide_up(part, ALIGNMENT), ALIGNMENT));
        return reinterpret_cast<T *>(here);
    }

    /* NULL without biases. */
    float *take_bias(const GPT2Config &config, int64_t count) {
        return config.bias == PYGPT_BIAS ? take<float>(count) : nullptr;
    }

    PackedMatrix take_matrix(int type, int64_t K, int64_t N) {
        PackedMatrix matrix = {type, K, N, PACKED_WIDTH, nullptr};
        matrix.data = take<unsigned char>(packed_bytes(&matrix));
        return matrix;
    }
};

}   // namespace

static CacheShape cache_shape(const Generator *g) {
    return {data_type(g->cache), g->config.n_head, g->positions, g->config.n_embd / g->config.n_head};
}

static Block take_block(const Generator *g, Parts &parts) {
    const int64_t C = g->config.n_embd, F = g->config.n_inner;
    Block block;
    block.ln_1_w = parts.take<float>(C);
    block.ln_1_b = parts.take_bias(g->config, C);
    block.c_attn_b = parts.take_bias(g->config, 3 * C);
    block.attn_proj_b = parts.take_bias(g->config, C);
    block.ln_2_w = parts.take<float>(C);
    block.ln_2_b = parts.take_bias(g->config, C);
    block.c_fc_b = parts.take_bias(g->config, F);
    block.mlp_proj_b = parts.take_bias(g->config, C);
    block.c_attn = parts.take_matrix(g->weights, C, 3 * C);
    block.attn_proj = parts.take_matrix(g->weights, C, C);
    block.c_fc = parts.take_matrix(g->weights, C, F);
    block.mlp_proj = parts.take_matrix(g->weights, F, C);
    const int64_t element = static_cast<int64_t>(element_size(data_type(g->cache)));
    const int64_t cached = checked_mul(checked_mul(g->B, g->positions), C * element);
    block.keys = parts.take<unsigned char>(cached);
    block.values = parts.take<unsigned char>(cached);
    return block;
}

/* Everything but the blocks. */
static void take_rest(Generator *g, Parts &parts) {
    const GPT2Config &c = g->config;
    const bool int4 = g->weights == PYGPT_INT4;
    const int64_t C = c.n_embd, F = c.n_inner, all = checked_mul(g->B, g->positions), rows = min64(all, ROWS);
    const int embedding = int4 ? PYGPT_INT8 : g->weights;
    g->wte = parts.take_matrix(embedding, C, c.vocab_size);
    g->head = c.tie_word_embeddings == PYGPT_UNTIED ? parts.take_matrix(embedding, C, c.vocab_size) : g->wte;
    if (adds_positions(&c)) g->wpe = parts.take<float>(checked_mul(g->positions, C));
    if (c.norm_position == PYGPT_PRE_NORM) {
        g->ln_f_w = parts.take<float>(C);
        g->ln_f_b = parts.take_bias(c, C);
    }
    g->rows = parts.take<GenerationRow>(all);
    g->x = parts.take<float>(rows * C);
    if (is_post_norm(&c)) g->ln = parts.take<float>(rows * C);
    g->qkv = parts.take<float>(rows * 3 * C);
    g->heads = parts.take<float>(rows * C);
    g->fc = parts.take<float>(rows * F);
    g->scratch.sums = parts.take<float>(chunk_sums(cache_shape(g), rows));
    g->scratch.arrived = parts.take<unsigned>(ATTENDED_ROWS * c.n_head);
    g->logits = parts.take<float>(min64(rows, HEAD_ROWS) * c.vocab_size);
}

/* Bytes of everything; -1 if they overflow. The blocks are alike, and there may be a million of them. */
static int64_t all_bytes(Generator *g) {
    Parts rest{nullptr}, block{nullptr};
    take_rest(g, rest);
    take_block(g, block);
    return checked_add(rest.bytes, checked_mul(g->config.n_layer, block.bytes));
}

int64_t generator_memory(const GPT2Config *config, int weights, int cache, int64_t B, int64_t positions) {
    if (check_generator(config, weights, cache, B, positions) != PYGPT_OK) return -1;
    Generator g = {};
    g.config = *config, g.weights = weights, g.cache = cache, g.B = B, g.positions = positions;
    return all_bytes(&g);
}

/* ---- the snapshot ---- */

/* to: on the device. w(k,n) = w[k * k_stride + n * n_stride], and scales, or NULL: in the host's memory. */
static void fill_from_host(Queue &q, const PackedMatrix &to, const float *w, int64_t k_stride, int64_t n_stride,
                           const float *scales) {
    std::vector<unsigned char> packed(static_cast<size_t>(packed_bytes(&to)));
    PackedMatrix on_host = to;
    on_host.data = packed.data();
    packed_fill(&on_host, w, k_stride, n_stride, scales);
    if (q.error == cudaSuccess)
        note(q, cudaMemcpyAsync(to.data, packed.data(), packed.size(), cudaMemcpyHostToDevice, q.stream),
             "the copy of packed weights");
    if (q.error == cudaSuccess) note(q, cudaStreamSynchronize(q.stream), "the copy of packed weights");
}

/* From the model's weights. */
static void fill(Queue &q, const PackedMatrix &to, const float *from, int64_t k_stride, int64_t n_stride) {
    if (q.error != cudaSuccess) return;
    std::vector<float> w(static_cast<size_t>(to.K * to.N));
    download(q, w.data(), from, DataType::float32, to.K * to.N);
    fill_from_host(q, to, w.data(), k_stride, n_stride, NULL);
}

static void fill(Queue &q, const PackedMatrix &to, const float *from) {
    fill(q, to, from, to.N, 1);
}

/* Nothing from NULL. */
static void copy_present(Queue &q, float *to, const float *from, int64_t count) {
    if (from) copy(q, to, from, count);
}

static void copy_weights(Generator *g, const GPT2 *m) {
    Queue &q = g->queue;
    const int64_t C = g->config.n_embd, F = g->config.n_inner;
    const EmbeddingWeights embedding = embedding_weights(&m->weights, m->parameters);
    fill(q, g->wte, embedding.wte, 1, C);
    if (g->config.tie_word_embeddings == PYGPT_UNTIED) fill(q, g->head, head_weights(&m->weights, m->parameters), 1, C);
    if (g->config.position_embedding == PYGPT_SINUSOIDAL) {
        std::vector<float> rows(static_cast<size_t>(g->positions * C));
        fill_sinusoidal(rows.data(), g->positions, C);
        upload(q, g->wpe, DataType::float32, rows.data(), g->positions * C);
    } else if (g->wpe) {
        copy(q, g->wpe, embedding.wpe, g->positions * C);
    }
    for (int64_t layer = 0; layer < g->config.n_layer; layer++) {
        const BlockWeights from = block_weights(&m->weights, m->parameters, layer);
        const Block &to = g->blocks[static_cast<size_t>(layer)];
        copy(q, to.ln_1_w, from.ln_1_w, C);
        copy_present(q, to.ln_1_b, from.ln_1_b, C);
        fill(q, to.c_attn, from.c_attn_w);
        copy_present(q, to.c_attn_b, from.c_attn_b, 3 * C);
        fill(q, to.attn_proj, from.attn_proj_w);
        copy_present(q, to.attn_proj_b, from.attn_proj_b, C);
        copy(q, to.ln_2_w, from.ln_2_w, C);
        copy_present(q, to.ln_2_b, from.ln_2_b, C);
        fill(q, to.c_fc, from.c_fc_w);
        copy_present(q, to.c_fc_b, from.c_fc_b, F);
        fill(q, to.mlp_proj, from.mlp_proj_w);
        copy_present(q, to.mlp_proj_b, from.mlp_proj_b, C);
    }
    const FinalWeights final = final_weights(&m->weights, m->parameters);
    copy_present(q, g->ln_f_w, final.ln_f_w, C);
    copy_present(q, g->ln_f_b, final.ln_f_b, C);
}

static int make_generator(Generator *g, const GPT2 *m) {
    g->graphs.capture = m->graphs.capture;
    if (const cudaError_t error = queue_create(&g->queue, DataType::float32, m->queue.fast, false))
        return fail_cuda(error, "setting up");
    const auto bytes = static_cast<size_t>(all_bytes(g));
    if (const cudaError_t error = cudaMalloc(&g->memory, bytes)) return fail_cuda(error, "a generator");
    Parts parts{g->memory};
    take_rest(g, parts);
    for (int64_t layer = 0; layer < g->config.n_layer; layer++) {
        g->blocks.push_back(take_block(g, parts));
        g->blocks.back().scale = attention_scale_of_powers(&g->config, layer);
    }
    g->lengths.assign(static_cast<size_t>(g->B), 0);
    note(g->queue,
         cudaMemsetAsync(g->scratch.arrived, 0,
                         static_cast<size_t>(ATTENDED_ROWS * g->config.n_head) * sizeof(unsigned), g->queue.stream),
         "the scratch of attention");
    note(g->queue, cudaStreamSynchronize(m->queue.stream), "the model's latest weights");
    copy_weights(g, m);
    if (g->queue.error == cudaSuccess) note(g->queue, cudaStreamSynchronize(g->queue.stream), "copying the weights");
    return queue_status(g->queue);
}

int generator_create(Generator **generator, GPT2 *m, int weights, int cache, int64_t B, int64_t positions) {
    *generator = NULL;
    USE(m);
    int status = check_generator(&m->config, weights, cache, B, positions);
    if (status == PYGPT_OK) status = check_whole(m, PYGPT_PARAMETER);
    if (status == PYGPT_OK) status = check_generator_memory(&m->config, weights, cache, B, positions);
    if (status != PYGPT_OK) return status;
    Generator *g = new (std::nothrow) Generator();
    if (!g) return fail(PYGPT_ERROR_MEMORY, "no memory for a generator");
    g->config = m->config, g->weights = weights, g->cache = cache, g->B = B, g->positions = positions;
    status = make_generator(g, m);
    if (status == PYGPT_OK) {
        *generator = g;
    } else {
        generator_free(g);
    }
    return status;
}

int generator_write(Generator *g, int64_t block, int number, const float *w, const float *scales, int64_t size) {
    USE_GENERATOR(g);
    const int status = check_scales(&g->config, g->weights, block, number, size);
    if (status != PYGPT_OK) return status;
    const Block &b = g->blocks[static_cast<size_t>(block)];
    const PackedMatrix matrices[] = {b.c_attn, b.attn_proj, b.c_fc, b.mlp_proj}, &to = matrices[number];
    fill_from_host(g->queue, to, w, to.N, 1, scales);
    return queue_status(g->queue);
}

void generator_free(Generator *g) {
    if (!g) return;
    if (g->queue.stream) cudaStreamSynchronize(g->queue.stream);
    g->graphs.forget();
    cudaFree(g->memory);
    queue_destroy(&g->queue);
    cudaGetLastError();
    delete g;
}

/* ---- the pass over some rows ---- */

/* Before place 2l, the attention of block l, 2l + 1, its feed-forward part, and 2L, the head. */
static Norm norm_before(const Generator *g, int64_t place) {
    const int64_t number = is_post_norm(&g->config) ? place - 1 : place;
    const float eps = g->config.layer_norm_epsilon;
    if (number < 0) return {};
    if (number == 2 * g->config.n_layer) return {g->ln_f_w, g->ln_f_b, eps};
    const Block &block = g->blocks[static_cast<size_t>(number / 2)];
    return number % 2 == 0 ? Norm{block.ln_1_w, block.ln_1_b, eps} : Norm{block.ln_2_w, block.ln_2_b, eps};
}

static PackedProduct linear(float *y, const float *x, const PackedMatrix &w, const float *b, int64_t rows) {
    PackedProduct p;
    p.y = y, p.x = x, p.w = w, p.b = b, p.rows = rows;
    return p;
}

/* Of what enters a place. Where the branch is added to that, it is kept in ln. */
static PackedProduct linear_at(const Generator *g, int64_t place, float *y, const PackedMatrix &w, const float *b,
                               int64_t rows) {
    PackedProduct p = linear(y, g->x, w, b, rows);
    p.norm = norm_before(g, place);
    if (p.norm.w) p.normalised = g->ln;
    return p;
}

/* x = x + linear(y), or what entered the place in place of x */
static void add_branch(Generator *g, int64_t place, const float *y, const PackedMatrix &w, const float *b,
                       int64_t rows) {
    PackedProduct p = linear(g->x, y, w, b, rows);
    p.residual = is_post_norm(&g->config) && norm_before(g, place).w ? g->ln : g->x;
    packed_product(g->queue, p);
}

static void attend(Generator *g, const Block &w, const GenerationRow *rows, int64_t N, int64_t longest) {
    const CacheShape shape = cache_shape(g);
    if (g->config.position_embedding == PYGPT_ROTARY) rotary_rows(g->queue, g->qkv, rows, N, shape.NH, shape.HS);
    cached_attention(g->queue, {g->heads, w.keys, w.values, g->qkv, rows, N, longest, shape, w.scale, g->scratch});
}

static void block_forward(Generator *g, int64_t layer, const GenerationRow *rows, int64_t N, int64_t longest) {
    const Block &w = g->blocks[static_cast<size_t>(layer)];
    packed_product(g->queue, linear_at(g, 2 * layer, g->qkv, w.c_attn, w.c_attn_b, N));
    attend(g, w, rows, N, longest);
    add_branch(g, 2 * layer, g->heads, w.attn_proj, w.attn_proj_b, N);

    PackedProduct fc = linear_at(g, 2 * layer + 1, g->fc, w.c_fc, w.c_fc_b, N);
    fc.activated = true, fc.activation_function = g->config.activation_function;
    packed_product(g->queue, fc);
    add_branch(g, 2 * layer + 1, g->fc, w.mlp_proj, w.mlp_proj_b, N);
}

/* The rows that want logits come first in x; how many they are. */
static int64_t keep_wanted(Generator *g, const GenerationRow *rows, int64_t N) {
    const int64_t C = g->config.n_embd;
    int64_t kept = 0;
    for (int64_t r = 0; r < N; r++)
        if (rows[r].wanted) copy(g->queue, g->x + kept++ * C, g->x + r * C, C);
    return kept;
}

static void blocks_forward(Generator *g, const GenerationRow *rows, int64_t N, int64_t longest) {
    packed_embedding(g->queue, g->x, rows, g->wte, g->wpe, N);
    for (int64_t layer = 0; layer < g->config.n_layer; layer++) block_forward(g, layer, rows, N, longest);
}

/* Of rows from number `first` on. */
static void head_forward(Generator *g, int64_t first, int64_t N) {
    PackedProduct head = linear(g->logits, g->x + first * g->config.n_embd, g->head, nullptr, N);
    head.norm = norm_before(g, 2 * g->config.n_layer);
    packed_product(g->queue, head);
}

/* N rows, from number `first` of the feed on. Gives the place behind the logits. */
static float *pass(Generator *g, float *logits, const std::vector<GenerationRow> &rows, int64_t first, int64_t N) {
    int64_t longest = 0;
    for (int64_t r = first; r < first + N; r++) longest = max64(longest, rows[static_cast<size_t>(r)].position + 1);
    blocks_forward(g, g->rows + first, N, longest);
    const int64_t wanted = keep_wanted(g, rows.data() + first, N), V = g->config.vocab_size;
    for (int64_t at = 0; at < wanted; at += HEAD_ROWS) {
        const int64_t count = min64(HEAD_ROWS, wanted - at);
        head_forward(g, at, count);
        download(g->queue, logits, g->logits, DataType::float32, count * V);
        logits += count * V;
    }
    return logits;
}

/* The whole feed, if it is few rows that all want logits: the same kernels for any positions. */
static void decode(Generator *g, float *logits, int64_t N) {
    g->graphs.run(g->queue, {N}, [=] {
        blocks_forward(g, g->rows, N, g->positions);
        head_forward(g, 0, N);
    });
    download(g->queue, logits, g->logits, DataType::float32, N * g->config.vocab_size);
}

/* ---- sequences ---- */

static std::vector<GenerationRow> rows_of(const Generator *g, const int32_t *tokens, const int64_t *lengths,
                                          int64_t count, bool every) {
    std::vector<GenerationRow> rows;
    rows.reserve(static_cast<size_t>(count));
    for (int64_t b = 0; b < g->B; b++) {
        const int64_t length = g->lengths[static_cast<size_t>(b)];
        for (int64_t i = 0; i < lengths[b]; i++)
            rows.push_back({b, length + i, *tokens++, every || i + 1 == lengths[b]});
    }
    return rows;
}

int generator_feed(Generator *g, float *logits, const int32_t *tokens, const int64_t *lengths, int every) {
    USE_GENERATOR(g);
    int64_t count;
    int status = check_feed(&g->config, g->lengths.data(), g->B, g->positions, tokens, lengths, &count);
    if (status != PYGPT_OK || count == 0) return status;
    const std::vector<GenerationRow> rows = rows_of(g, tokens, lengths, count, every != 0);
    Queue &q = g->queue;
    note(q, cudaMemcpyAsync(g->rows, rows.data(), rows.size() * sizeof *g->rows, cudaMemcpyHostToDevice, q.stream),
         "the copy of the tokens");
    if (count <= HEAD_ROWS &&
        std::all_of(rows.begin(), rows.end(), [](const GenerationRow &row) { return row.wanted; })) {
        decode(g, logits, count);
    } else {
        for (int64_t first = 0; first < count; first += ROWS)
            logits = pass(g, logits, rows, first, min64(ROWS, count - first));
    }
    status = queue_status(q);
    if (status != PYGPT_OK) return status;
    for (int64_t b = 0; b < g->B; b++) g->lengths[static_cast<size_t>(b)] += lengths[b];
    return PYGPT_OK;
}

int generator_graphs(Generator *g, int64_t *launched, int64_t *refused) {
    USE_GENERATOR(g);
    *launched = g->graphs.launched;
    *refused = g->graphs.refused;
    return PYGPT_OK;
}

int generator_rewind(Generator *g, const int64_t *lengths) {
    USE_GENERATOR(g);
    const int status = check_rewind(g->lengths.data(), g->B, lengths);
    if (status != PYGPT_OK) return status;
    g->lengths.assign(lengths, lengths + g->B);
    return PYGPT_OK;
}
