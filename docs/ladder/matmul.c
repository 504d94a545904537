/* The first rungs below csrc/layers/matmul.c: y = x W as one would write it down, and what each change brings.
 *
 *   gcc -O3 -march=native -ffp-contract=fast docs/ladder/matmul.c -o /tmp/ladder && /tmp/ladder
 *
 * One thread, x: (768,768), W: (768,3072), as in GPT-2's feed-forward layer; best of five.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N = 768, IC = 768, OC = 3072, REPEATS = 5 };

/* One output after the other. Each step of the sum is a new cache line of W, of which one float is used, and waits for
 * the addition before it. */
static void rows_times_columns(float *y, const float *x, const float *w) {
    for (int n = 0; n < N; n++) {
        for (int o = 0; o < OC; o++) {
            float sum = 0.0f;
            for (int i = 0; i < IC; i++) sum += x[n * IC + i] * w[i * OC + o];
            y[n * OC + o] = sum;
        }
    }
}

/* The two inner loops change places: W and y are read in the order in which they lie, many outputs at a time, as a vector.
 * But y goes from and to the cache for each multiply-add, and all of W goes by for each row. */
static void rows_of_weights(float *y, const float *x, const float *w) {
    memset(y, 0, sizeof(float) * N * OC);
    for (int n = 0; n < N; n++) {
        for (int i = 0; i < IC; i++) {
            for (int o = 0; o < OC; o++) y[n * OC + o] += x[n * IC + i] * w[i * OC + o];
        }
    }
}

/* Tiles of 4 rows by 32 columns are summed in registers: a loaded vector of W serves four rows, and y is written once. */
static void tiles(float *y, const float *x, const float *w) {
    for (int n = 0; n < N; n += 4) {
        for (int o = 0; o < OC; o += 32) {
            float sum[4][32] = {{0.0f}};
            for (int i = 0; i < IC; i++) {
                for (int r = 0; r < 4; r++) {
                    for (int c = 0; c < 32; c++) sum[r][c] += x[(n + r) * IC + i] * w[i * OC + o + c];
                }
            }
            for (int r = 0; r < 4; r++) memcpy(y + (n + r) * OC + o, sum[r], sizeof sum[r]);
        }
    }
}

static double seconds(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(void) {
    const struct {
        const char *name;
        void (*multiply)(float *y, const float *x, const float *w);
    } rungs[] = {{"rows times columns", rows_times_columns},
                 {"rows of weights", rows_of_weights},
                 {"tiles in registers", tiles}};
    float *x = malloc(sizeof(float) * N * IC), *w = malloc(sizeof(float) * IC * OC);
    float *y = malloc(sizeof(float) * N * OC), *first = malloc(sizeof(float) * N * OC);
    if (!x || !w || !y || !first) return 1;
    for (int i = 0; i < N * IC; i++) x[i] = (float)(i % 17 - 8) / 8.0f;
    for (int i = 0; i < IC * OC; i++) w[i] = (float)(i % 13 - 6) / 8.0f;
    for (int rung = 0; rung < 3; rung++) {
        double best = INFINITY;
        for (int repeat = 0; repeat < REPEATS; repeat++) {
            double start = seconds();
            rungs[rung].multiply(y, x, w);
            best = fmin(best, seconds() - start);
        }
        if (rung == 0) memcpy(first, y, sizeof(float) * N * OC);
        double difference = 0.0;
        for (int i = 0; i < N * OC; i++) difference = fmax(difference, fabs((double)y[i] - first[i]));
        printf("%-20s %7.1f GFLOP/s   largest difference %.1e\n", rungs[rung].name, 2e-9 * N * IC * OC / best,
               difference);
    }
    return 0;
}
