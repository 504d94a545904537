/* The two layers of generation: a product with packed weights, and attention to keys and values that a cache holds.
 *
 *   product     y = x w + b                          w as packed.h keeps it; but with float32, x is rounded too
 *   attention   s_u = scale q·k_u      P_u = 2^(s_u − ⌈max s⌉)      y = Σ_u P_u v_u / Σ_u P_u
 *
 * With a cache in bfloat16, q is rounded too, and so is P where it multiplies v. That 2 to a whole number is taken out of P makes
 * its rounding independent of which number that is, so that it may be another one for a part of the keys.
 */
#include "../generation.h"

#include <math.h>

#include "../bf16.h"

enum { WIDTH = 8 };   // of panels

/* Σ_groups s_n sx Σ_k q_kn qx_k, for one row. */
static float integer_sum(const QuantisedInputs *x, const PackedMatrix *w, int64_t n) {
    float sum = 0.0f;
    for (int64_t k0 = 0; k0 < w->K; k0 += GROUP, x++) {
        float scale = packed_scale(w, k0, n);
        int32_t dot = 0;
        for (int64_t k = k0; k < min64(k0 + GROUP, w->K); k++) dot += packed_integer(w, k, n) * x->q[k - k0];
        sum += (float)dot * (scale * x->scale);
    }
    return sum;
}

static void plain_integer_product(const Team *team, float *y, const float *x, const PackedMatrix *w, const float *b,
                                  int64_t rows, QuantisedInputs *inputs) {
    Range columns = columns_of(team, w);
    for (int64_t r = 0; r < rows; r++) {
        quantise_inputs(inputs, x + r * w->K, w->K);
        for (int64_t n = columns.first; n < columns.end; n++)
            y[r * w->N + n] = (b ? b[n] : 0.0f) + integer_sum(inputs, w, n);
    }
}

static void plain_packed_product(const Team *team, float *y, const float *x, const PackedMatrix *w, const float *b,
                                 int64_t rows, float *shared, float *own) {
    (void)shared;
    if (packs_integers(w)) {
        plain_integer_product(team, y, x, w, b, rows, (QuantisedInputs *)own);
        return;
    }
    Range columns = columns_of(team, w);
    for (int64_t n = columns.first; n < columns.end; n++) {
        for (int64_t r = 0; r < rows; r++) {
            float sum = b ? b[n] : 0.0f;
            for (int64_t k = 0; k < w->K; k++) {
                float xk = x[r * w->K + k];
                if (w->type == PYGPT_BFLOAT16) xk = round_to_bf16(xk);
                sum += xk * packed_value(w, k, n);
            }
            y[r * w->N + n] = sum;
        }
    }
}

static inline float cached(const void *numbers, int cache, int64_t i) {
    return cache == PYGPT_FLOAT32 ? ((const float *)numbers)[i] : from_bf16(((const uint16_t *)numbers)[i]);
}

/* What meets numbers of the cache has as many bits. */
static inline float as_cached(const CachedHead *head, float x) {
    return head->cache == PYGPT_FLOAT32 ? x : round_to_bf16(x);
}

static void keep(void *numbers, int cache, int64_t i, float x) {
    if (cache == PYGPT_FLOAT32)
        ((float *)numbers)[i] = x;
    else
        ((uint16_t *)numbers)[i] = to_bf16(x);
}

static void plain_cache_row(const CachedHead *head, int64_t u, const float *k, const float *v) {
    for (int64_t i = 0; i < head->HS; i++) {
        keep(head->keys, head->cache, u * head->HS + i, k[i]);
        keep(head->values, head->cache, u * head->HS + i, v[i]);
    }
}

static int64_t plain_cached_numbers(int cache, int64_t positions, int64_t HS) {
    (void)cache;
    return checked_mul(positions, HS);
}

static void attend_query(const CachedHead *head, float *y, const float *q, int64_t count, float *scores) {
    int64_t HS = head->HS;
    for (int64_t u = 0; u < count; u++) {
        float dot = 0.0f;
        for (int64_t i = 0; i < HS; i++) dot += as_cached(head, q[i]) * cached(head->keys, head->cache, u * HS + i);
        scores[u] = head->scale * dot;
    }

    float largest = scores[0];
    for (int64_t u = 1; u < count; u++) largest = scores[u] > largest ? scores[u] : largest;

    float sum = 0.0f;
    for (int64_t i = 0; i < HS; i++) y[i] = 0.0f;
    for (int64_t u = 0; u < count; u++) {
        float p = exp2f(scores[u] - ceilf(largest));
        sum += p;
        for (int64_t i = 0; i < HS; i++) y[i] += as_cached(head, p) * cached(head->values, head->cache, u * HS + i);
    }
    for (int64_t i = 0; i < HS; i++) y[i] /= sum;
}

static void plain_cached_attention(const CachedHead *head, float *scores) {
    for (int64_t i = 0; i < head->queries; i++)
        attend_query(head, head->y + i * head->y_stride, head->q + i * head->q_stride, head->count + i, scores);
}

static int64_t plain_shared_floats(int64_t rows, int64_t K) {
    (void)rows, (void)K;
    return 0;
}

/* Of a row in eight bits. */
static int64_t plain_own_floats(int64_t K) {
    return divide_up(K, GROUP) * (int64_t)(sizeof(QuantisedInputs) / sizeof(float));
}

static int64_t plain_attention_floats(int64_t positions, int64_t HS) {
    (void)HS;
    return positions;
}

const GenerationKernels plain_generation = {
    .product = plain_packed_product,
    .attention = plain_cached_attention,
    .width = WIDTH,
    .few_rows = 1,
    .queries = 4,
    .cached_numbers = plain_cached_numbers,
    .cache_row = plain_cache_row,
    .shared_floats = plain_shared_floats,
    .own_floats = plain_own_floats,
    .attention_floats = plain_attention_floats,
};
