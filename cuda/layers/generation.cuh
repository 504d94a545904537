/* The layers that generation has of its own; packed_embedding.cu, packed_product.cu and cached_attention.cu have the formulas.
 * float32 in and out.
 *
 * Each number is made by the same instructions, and each sum taken in an order that depends on its own length alone, whatever
 * the number of rows. So the activation and the residual are part of the product: the elementwise kernels would treat the last
 * elements of all rows by code of their own. */
#pragma once

#include "layers.cuh"
#include "packed.cuh"

/* A token of a sequence. */
struct GenerationRow {
    int64_t sequence, position;
    int32_t token;
    bool wanted;   // are its logits
};

struct Norm {
    const float *w = nullptr, *b = nullptr;   // w: NULL where there is none
    float eps = 0;
};

/* y = residual + activation(LayerNorm(x) w + b) */
struct PackedProduct {
    float *y;   // (rows,N)
    const float *x;   // (rows,K)
    Norm norm;   // before the product
    float *normalised = nullptr;   // (rows,K) or NULL: gets LayerNorm(x)
    PackedMatrix w;   // its data lies on the device
    const float *b = nullptr;   // (N) or NULL
    bool activated = false;
    int activation_function;   // of pygpt.h
    const float *residual = nullptr;   // (rows,N) or NULL; may be y
    int64_t rows;
};

/* Keys or values: (B,NH,positions,HS), of this type. */
struct CacheShape {
    DataType type;
    int64_t NH, positions, HS;
};

/* Scratch of attention. */
struct ChunkSums {
    float *sums;   // chunk_sums()
    unsigned *arrived;   // ATTENDED_ROWS · NH, which are 0 between two calls
};

constexpr int64_t ATTENDED_ROWS = DIVIDES_WORK(32, 2);   // at a time

/* Floats, for so many rows. */
int64_t chunk_sums(const CacheShape &cache, int64_t rows);

struct CachedAttention {
    float *y;   // (N,NH,HS)
    void *keys, *values;   // the caches
    const float *qkv;   // (N,3,NH,HS)
    const GenerationRow *rows;   // (N), on the device
    int64_t N;
    int64_t longest;   // of their positions + 1, or more
    CacheShape cache;
    float scale;   // of the scores, such that the softmax is one of powers of two
    ChunkSums scratch;
};

// clang-format off: shapes in one column

void packed_embedding(Queue &queue, float *x,                                             // (N,C)
                      const GenerationRow *rows, const PackedMatrix &wte, const float *wpe,   // (N) (C,V) (positions,C) or NULL
                      int64_t N);
/* Queries and keys turned by their positions (rotary.cu), in place. */
void rotary_rows(Queue &queue, float *qkv,                                                // (N,3,NH,HS)
                 const GenerationRow *rows, int64_t N, int64_t NH, int64_t HS);           // (N)
void packed_product(Queue &queue, const PackedProduct &p);
/* Caches the rows' keys and values, and attends to what is then cached. */
void cached_attention(Queue &queue, CachedAttention a);

// clang-format on
