#include "positions.h"

void fill_sinusoidal(float *wpe, int64_t positions, int64_t C) {
    #pragma omp parallel for
    for (int64_t t = 0; t < positions; t++) {
        for (int64_t c = 0; c < C; c++) {
            double angle = position_angle((double)t, c / 2, C);
            wpe[t * C + c] = (float)((c % 2 ? cos(angle) : sin(angle)) / sqrt((double)C));
        }
    }
}
