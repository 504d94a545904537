/* Angles that tell positions apart where no table of them is learned: θ_ti = t / 10000^(2i/n) of n channels, i < n/2
 * (Vaswani et al. 2017, section 3.5). */
#ifndef PYGPT_POSITIONS_H
#define PYGPT_POSITIONS_H

#include <math.h>
#include <stdint.h>

#include "pygpt.h"

static inline double position_angle(double position, int64_t i, int64_t channels) {
    return position * pow(10000.0, -2.0 * (double)i / (double)channels);
}

/* Whether the embedding adds a row for the position, one that is learned or one of fill_sinusoidal(). */
static inline int adds_positions(const GPT2Config *c) {
    return c->position_embedding == PYGPT_LEARNED || c->position_embedding == PYGPT_SINUSOIDAL;
}

/* Rows to add to the embedding in place of wpe: sin θ_ti / √C in channel 2i, cos θ_ti / √C in channel 2i + 1. */
void fill_sinusoidal(float *wpe, int64_t positions, int64_t C);   // (positions,C)

/* Turns so many heads side by side, of one position, in rows that lie `stride` floats apart; layers/rotary.c. y may be x. */
void rotary_turn(float *y, const float *x, int64_t stride, int64_t rows, double position, int64_t heads, int64_t HS);

#endif
