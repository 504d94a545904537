/* GELU in its tanh form and its derivative; gelu.cu has the formulas. */
#pragma once

#include "../common.cuh"

__device__ inline float gelu_of(float x) {
    const float s = 0.7978845608028654f;   // √(2/π)
    return 0.5f * x * (1.0f + tanhf(s * (x + 0.044715f * x * x * x)));
}

__device__ inline float dgelu_of(float x) {
    const float s = 0.7978845608028654f;
    const float t = tanhf(s * (x + 0.044715f * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * s * (1.0f + 3.0f * 0.044715f * x * x);
}
