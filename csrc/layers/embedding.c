/* Embedding: the row of wte that belongs to the token, plus the row of wpe that belongs to its position.
 *
 *   forward    x_bt = wte[token_bt] + wpe[t]
 *   backward   dwte[token_bt] += dx_bt      dwpe[t] += Σ_b dx_bt
 *
 * Without wpe nothing is added; without dwpe, as with positions that are not learned, only dwte is computed.
 *
 * A token may stand in many places. So the backward pass shares out channels, not places, among the threads: no two of them
 * write to one element, and each element is summed in the order of the places.
 */
#include <string.h>

#include "../internal.h"

enum { CHANNELS = DIVIDES_WORK(16, 3) };   // of one thread at a time: a cache line of floats

void embedding_forward(float *x,                                                    // (B,T,C)
                       const int32_t *tokens, const float *wte, const float *wpe,   // (B,T) (V,C) (>=T,C) or NULL
                       int64_t B, int64_t T, int64_t C) {
    #pragma omp parallel for
    for (int64_t n = 0; n < B * T; n++) {
        const float *token = wte + tokens[n] * C;
        if (!wpe) {
            memcpy(x + n * C, token, (size_t)C * sizeof *x);
            continue;
        }
        const float *position = wpe + n % T * C;
        #pragma omp simd
        for (int64_t c = 0; c < C; c++) x[n * C + c] = token[c] + position[c];
    }
}

void embedding_backward(float *dwte, float *dwpe,                 // += (V,C), += (>=T,C) or NULL
                        const float *dx, const int32_t *tokens,   // (B,T,C) (B,T)
                        int64_t B, int64_t T, int64_t C) {
    #pragma omp parallel for
    for (int64_t first = 0; first < C; first += CHANNELS) {
        int64_t end = min64(first + CHANNELS, C);
        for (int64_t n = 0; n < B * T; n++) {
            float *token = dwte + tokens[n] * C;
            #pragma omp simd
            for (int64_t c = first; c < end; c++) token[c] += dx[n * C + c];
            if (!dwpe) continue;
            float *position = dwpe + n % T * C;
            #pragma omp simd
            for (int64_t c = first; c < end; c++) position[c] += dx[n * C + c];
        }
    }
}
