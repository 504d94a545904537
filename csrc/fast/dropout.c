/* Dropout, csrc/layers/dropout.c in vectors: y_i = m_i x_i, dx_i = m_i dy_i. */
#include "../internal.h"
#include "dropout_mask.h"
#include "fast.h"

enum {
    BLOCK = 4 * LANES,   // elements of LANES counters
    SMALL = DIVIDES_WORK(1 << 12, 0),
};

/* The factors of elements first ... first + BLOCK - 1, first being a multiple of BLOCK. */
INLINE void block_factors(Floats factors[4], int64_t first, const Dropout *dropout) {
    /* Vector j of the result is to hold counters j LANES/4 ... as 4 neighbours each. The transposition takes them from
     * the lanes j, 4 + j, 8 + j ..., so there they must be. A block's counters differ in their low words alone. */
    Words lane = lane_numbers(), counter = (lane & 3) * (LANES / 4) + (lane >> 2);
    uint64_t first_counter = (uint64_t)first / 4;
    Words word[4];
    philox_words(word, counter + (uint32_t)first_counter, broadcast_word((uint32_t)(first_counter >> 32)), dropout);
    for (int j = 0; j < 4; j++) factors[j] = dropout_factors(word[j], dropout);
    transpose_4x4(factors);
}

void fast_dropout_forward(float *y, const float *x, int64_t n, const Dropout *dropout) {
    #pragma omp parallel for if (n > SMALL)
    for (int64_t i = 0; i < n; i += BLOCK) {
        Floats factors[4];
        block_factors(factors, i, dropout);
        for (int j = 0; j < 4; j++) {
            int64_t at = i + j * LANES;
            store_first(y + at, factors[j] * load_first(x + at, n - at), n - at);
        }
    }
}

void fast_dropout_backward(float *dx, const float *dy, int64_t n, const Dropout *dropout) {
    fast_dropout_forward(dx, dy, n, dropout);
}
