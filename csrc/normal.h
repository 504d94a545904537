/* Normal numbers by Box and Muller's method (1958), in double, from the words of Philox's step that no forward pass reaches.
 */
#ifndef PYGPT_NORMAL_H
#define PYGPT_NORMAL_H

#include <math.h>

#include "philox.h"

/* Numbers 4 i ... 4 i + 3 of weight tensor `number`. */
HOST_AND_DEVICE static inline void normal_numbers(double normal[4], int64_t i, uint32_t number, uint64_t seed) {
    PhiloxWords words = philox4x32((uint64_t)i, number, UINT32_MAX, seed);
    for (int pair = 0; pair < 4; pair += 2) {
        double radius = sqrt(-2.0 * log((words.word[pair] + 0.5) / 4294967296.0));
        double angle = 6.283185307179586 * ((words.word[pair + 1] + 0.5) / 4294967296.0);
        normal[pair] = radius * cos(angle);
        normal[pair + 1] = radius * sin(angle);
    }
}

#endif
