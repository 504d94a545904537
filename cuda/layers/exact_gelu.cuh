/* GELU in its exact form and its derivative; exact_gelu.cu has the formulas. */
#pragma once

#include "../common.cuh"

__device__ inline float normal_distribution(float x) {
    return 0.5f * erfcf(-0.7071067811865476f * x);
}

__device__ inline float exact_gelu_of(float x) {
    return x * normal_distribution(x);
}

__device__ inline float dexact_gelu_of(float x) {
    return normal_distribution(x) + x * 0.3989422804014327f * expf(-0.5f * x * x);
}
