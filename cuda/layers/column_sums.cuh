/* Sums over the rows of a matrix: the gradient of a bias. */
#pragma once

#include "layers.cuh"

/* sums += Σ_n x_n      sums: (C); x: (N,C) */
void add_column_sums(Queue &queue, float *sums, const void *x, int64_t N, int64_t C);
size_t column_sums_scratch(DataType type, int64_t N, int64_t C);
