/* Dropout's factors from Philox4x32-10 (csrc/philox.h), LANES counters at once. */
#ifndef PYGPT_DROPOUT_MASK_H
#define PYGPT_DROPOUT_MASK_H

#include "../philox.h"
#include "simd.h"

/* word[w][lane]: word w of the four that belong to the lane's counter, whose 64 bits are high and low. */
INLINE void philox_words(Words word[4], Words low, Words high, const Dropout *dropout) {
    Words c0 = low, c1 = high, c2 = broadcast_word(dropout->site), c3 = broadcast_word(dropout->step);
    uint32_t k0 = (uint32_t)dropout->seed, k1 = (uint32_t)(dropout->seed >> 32);
    for (int round = 0; round < 10; round++) {
        Words high0, low0, high1, low1;
        multiply_words(&high0, &low0, c0, 0xD2511F53u);
        multiply_words(&high1, &low1, c2, 0xCD9E8D57u);
        c0 = high1 ^ c1 ^ k0;
        c2 = high0 ^ c3 ^ k1;
        c1 = low1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
}

/* 0 where a word drops its element, 1 / (1 − p) elsewhere */
INLINE Floats dropout_factors(Words word, const Dropout *dropout) {
    return choose((Ints)(word < dropout_threshold(dropout)), (Floats){0}, broadcast(dropout_scale(dropout)));
}

#endif
