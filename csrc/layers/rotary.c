/* Rotary position embedding (Su et al. 2021): queries and keys are turned by angles that grow with the position t.
 *
 *   forward    y_i = x_i cos θ_ti − x_j sin θ_ti      y_j = x_j cos θ_ti + x_i sin θ_ti      j = i + HS/2,  i < HS/2
 *   backward   the same with −θ
 *              θ_ti = t / 10000^(2i/HS)
 *
 * Values stay. Angles and their sines are computed in double, because a float has too few digits for a large angle: once for
 * a position, and used for all its heads and sequences.
 *
 * qkv: (B,T,3,NH,HS)
 */
#include <math.h>

#include "../internal.h"
#include "../positions.h"

enum { PAIRS = DIVIDES_WORK(32, 2) };   // of channels, whose sines are held at a time

void rotary_turn(float *y, const float *x, int64_t stride, int64_t rows, double position, int64_t heads, int64_t HS) {
    int64_t half = HS / 2;
    for (int64_t first = 0; first < half; first += PAIRS) {
        int64_t pairs = min64(PAIRS, half - first);
        float cosine[PAIRS], sine[PAIRS];
        for (int64_t i = 0; i < pairs; i++) {
            double angle = position_angle(position, first + i, HS);
            cosine[i] = (float)cos(angle);
            sine[i] = (float)sin(angle);
        }
        for (int64_t row = 0; row < rows; row++) {
            for (int64_t at = row * stride + first; at < row * stride + heads * HS; at += HS) {
                #pragma omp simd
                for (int64_t i = 0; i < pairs; i++) {
                    float a = x[at + i], b = x[at + half + i];
                    y[at + i] = a * cosine[i] - b * sine[i];
                    y[at + half + i] = b * cosine[i] + a * sine[i];
                }
            }
        }
    }
}

static void turn_all(float *y, const float *x, int64_t B, int64_t T, int64_t NH, int64_t HS, int sign) {
    int64_t C = NH * HS;
    #pragma omp parallel for
    for (int64_t t = 0; t < T; t++) {
        rotary_turn(y + t * 3 * C, x + t * 3 * C, T * 3 * C, B, (double)(sign * t), 2 * NH, HS);   // queries and keys
        for (int64_t b = 0; b < B; b++) {
            const float *v = x + (b * T + t) * 3 * C + 2 * C;
            float *yv = y + (v - x);
            #pragma omp simd
            for (int64_t c = 0; c < C; c++) yv[c] = v[c];
        }
    }
}

void rotary_forward(float *y, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS) {
    turn_all(y, qkv, B, T, NH, HS, 1);
}

void rotary_backward(float *dqkv, const float *dy, int64_t B, int64_t T, int64_t NH, int64_t HS) {
    turn_all(dqkv, dy, B, T, NH, HS, -1);
}
