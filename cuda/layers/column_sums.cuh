/* Sums over the rows of a matrix: the gradient of a bias. */
#pragma once

#include "layers.cuh"

/* sums += Σ_n x_n      sums: (C); x: (N,C) */
void add_column_sums(Queue &queue, float *sums, const void *x, int64_t N, int64_t C);
size_t column_sums_scratch(DataType type, int64_t N, int64_t C);

/* The second half of it, for kernels that leave several sums of each slice of the rows:
 * sums.of[i] += Σ_s partial_si, unless it is NULL      partial: (slices,count,C), of which count ≤ 3 */
struct Sums {
    float *of[3];
};
void add_slices(Queue &queue, Sums sums, int64_t count, const float *partial, int64_t slices, int64_t C);
