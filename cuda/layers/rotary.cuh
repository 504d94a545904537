/* The turn of a pair of channels in rotary.cu. */
#pragma once

#include "../common.cuh"

struct Turn {
    float cosine, sine;

    /* By the angle of a position; one that is negative turns back. In double: a float has too few digits for a large angle. */
    __device__ Turn(double position, int64_t i, int64_t HS) {
        const double angle = position * pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(HS));
        cosine = static_cast<float>(cos(angle));
        sine = static_cast<float>(sin(angle));
    }

    /* Channels i and i + half, at y and x; y may be x. */
    template <class T> __device__ void operator()(T *y, const T *x, int64_t half) const {
        const float a = static_cast<float>(x[0]), b = static_cast<float>(x[half]);
        y[0] = static_cast<T>(a * cosine - b * sine);
        y[half] = static_cast<T>(b * cosine + a * sine);
    }
};
