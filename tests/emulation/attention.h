/* Flash attention of what a file holds, forward and backward; for the CPU and for a GPU.
 *
 *     attention B T NH HS p seed site step INPUT OUTPUT      p, seed, site, step: of dropout
 *
 * INPUT: qkv (B,T,3,NH,HS) and dy (B,T,NH,HS), elements of type E. OUTPUT: y, lse in float32, dqkv. */
#pragma once

#include <cstdio>
#include <cstdlib>

static bool succeeded(cudaError_t error) {
    if (error != cudaSuccess) printf("error: %s\n", cudaGetErrorString(error));
    return error == cudaSuccess;
}

template <class E>
static bool compute(FILE *in, FILE *out, int64_t B, int64_t T, int64_t NH, int64_t HS, float p, DropoutDraw draw,
                    uint32_t site) {
    struct Buffer {
        size_t bytes;
        void *host = nullptr, *device = nullptr;
    };
    const size_t n = static_cast<size_t>(B * T * NH * HS) * sizeof(E), rows = static_cast<size_t>(B * T * NH);
    Buffer qkv{3 * n}, dy{n}, y{n}, lse{4 * rows}, dqkv{3 * n}, scratch{rows_bytes(B, T, NH)}, drawn{sizeof draw};
    for (Buffer *b : {&qkv, &dy, &y, &lse, &dqkv, &scratch, &drawn}) {
        b->host = malloc(b->bytes);
        if (!b->host || !succeeded(cudaMalloc(&b->device, b->bytes))) return false;
        memset(b->host, 0xff, b->bytes);   // NaN
    }
    for (const Buffer *b : {&qkv, &dy})
        if (fread(b->host, 1, b->bytes, in) != b->bytes) return false;
    memcpy(drawn.host, &draw, sizeof draw);
    for (const Buffer *b : {&qkv, &dy, &y, &lse, &dqkv, &drawn})
        if (!succeeded(cudaMemcpy(b->device, b->host, b->bytes, cudaMemcpyHostToDevice))) return false;

    const DropoutMask mask = dropout_mask(p, site, static_cast<const DropoutDraw *>(drawn.device));
    const auto elements = [](const Buffer &b) { return static_cast<E *>(b.device); };
    float *const lse_device = static_cast<float *>(lse.device);
    if (!succeeded(attention_flash_forward(elements(y), lse_device, elements(qkv), B, T, NH, HS,
                                           1.0f / sqrtf(static_cast<float>(HS)), mask, nullptr)) ||
        !succeeded(attention_flash_backward(elements(dqkv), elements(dy), elements(y), lse_device, elements(qkv),
                                            scratch.device, B, T, NH, HS, 1.0f / sqrtf(static_cast<float>(HS)), mask,
                                            nullptr)) ||
        !succeeded(cudaDeviceSynchronize()))
        return false;

    bool good = true;
    for (const Buffer *b : {&y, &lse, &dqkv})
        good = good && succeeded(cudaMemcpy(b->host, b->device, b->bytes, cudaMemcpyDeviceToHost)) &&
               fwrite(b->host, 1, b->bytes, out) == b->bytes;
    for (const Buffer *b : {&qkv, &dy, &y, &lse, &dqkv, &scratch, &drawn}) {
        free(b->host);
        cudaFree(b->device);
    }
    return good;
}

template <class E> int attention_main(int count, char **words) {
    if (count != 11) return 2;
    const auto number = [&](int i) { return strtoull(words[i], nullptr, 10); };
    const DropoutDraw draw{number(6), static_cast<uint32_t>(number(8))};
    FILE *in = fopen(words[9], "rb"), *out = fopen(words[10], "wb");
    if (!in || !out) return 2;
    const auto size = [&](int i) { return static_cast<int64_t>(number(i)); };
    const bool good = compute<E>(in, out, size(1), size(2), size(3), size(4), strtof(words[5], nullptr), draw,
                                 static_cast<uint32_t>(number(7)));
    fclose(in);
    return fclose(out) == 0 && good ? 0 : 1;
}
