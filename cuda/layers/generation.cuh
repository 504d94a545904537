/* The layers that generation has of its own; generation.cu has the formulas. float32 in and out. */
#pragma once

#include "layers.cuh"

extern "C" {
#include "../../csrc/packed.h"
}

constexpr int64_t PACKED_WIDTH = 32;   // of panels: a lane has an output

/* A token of a sequence. */
struct GenerationRow {
    int64_t sequence, position;
    int32_t token;
    bool wanted;   // are its logits
};

/* Keys or values: (B,NH,positions,HS), of this type. */
struct CacheShape {
    DataType type;
    int64_t NH, positions, HS;
};

struct PackedProduct {
    float *y;                   // (rows,N)
    const float *x;             // (rows,K)
    PackedMatrix w;             // its data lies on the device
    const float *b = nullptr;   // (N) or NULL
    bool activated = false;
    int activation_function;    // of pygpt.h
    const float *residual = nullptr;   // (rows,N) or NULL; may be y
    int64_t rows;
    QuantisedInputs *inputs;    // scratch (rows,⌈K/32⌉), with int4
};

// clang-format off: shapes in one column

void packed_embedding(Queue &queue, float *x,                                             // (N,C)
                      const GenerationRow *rows, const PackedMatrix &wte, const float *wpe,   // (N) (C,V) (positions,C) or NULL
                      int64_t N);
/* Queries and keys turned by their positions (rotary.cu), in place. */
void rotary_rows(Queue &queue, float *qkv,                                                // (N,3,NH,HS)
                 const GenerationRow *rows, int64_t N, int64_t NH, int64_t HS);           // (N)
/* y = residual + activation(x w + b) */
void packed_product(Queue &queue, const PackedProduct &p);
/* Caches the rows' keys and values, and attends to what is then cached. */
void cached_attention(Queue &queue, float *y, void *keys, void *values,                   // (N,NH,HS), the caches
                      const float *qkv, const GenerationRow *rows, int64_t N,             // (N,3,NH,HS) (N)
                      const CacheShape &cache, float scale);

// clang-format on
