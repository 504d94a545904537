/* What LayerNorm needs of a row; layernorm.cu has the formulas. */
#pragma once

#include "../common.cuh"

struct RowStatistics {
    float mean, rstd;
};

/* Of C channels, W side by side in a lane: read(x, c) gives those from c on. A whole warp calls it. */
template <int W, class Read> __device__ inline RowStatistics row_statistics(int64_t C, float eps, Read read) {
    const int first = threadIdx.x % 32 * W;
    float sum = 0;
    for (int64_t c = first; c < C; c += 32 * W) {
        float x[W];
        read(x, c);
        for (int i = 0; i < W; i++) sum += x[i];
    }
    const float about = warp_sum(sum) / static_cast<float>(C);

    float rest = 0, squares = 0;
    for (int64_t c = first; c < C; c += 32 * W) {
        float x[W];
        read(x, c);
        for (int i = 0; i < W; i++) {
            rest += x[i] - about;
            squares += (x[i] - about) * (x[i] - about);
        }
    }
    const float correction = warp_sum(rest) / static_cast<float>(C);
    const float variance = fmaxf(warp_sum(squares) / static_cast<float>(C) - correction * correction, 0.0f);
    return {about + correction, 1.0f / sqrtf(variance + eps)};
}
