/* Planted faults, one a kernel. `faults NAME` runs it and prints the outputs' bits, or the error on one line. */
#include "common.cuh"

#include <cstdio>
#include <cstring>
#include <vector>

constexpr int N = 256;

__global__ void missing_barrier(float *y, const float *x) {
    SHARED(float, tile, [N]);
    const int t = threadIdx.x;
    tile[t] = x[t];
    // here
    y[t] = tile[N - 1 - t];
}

__global__ void missing_second_barrier(float *y, const float *x) {   // only values of another round are seen, no NaN
    SHARED(float, tile, [N]);
    const int t = threadIdx.x;
    tile[t] = 0;
    __syncthreads();
    float sum = 0;
    for (int i = 1; i <= 3; i++) {
        tile[t] = i * x[t];
        __syncthreads();
        sum += tile[(t + 100) % N];
        // here
    }
    y[t] = sum;
}

__global__ void missing_syncwarp(float *y, const float *x) {
    SHARED(float, tile, [N]);
    const int t = threadIdx.x;
    tile[t] = x[t];
    // here
    y[t] = tile[t ^ 1];
}

__global__ void blocks_in_order(float *y, const float *x) {   // each block reads what the one before has written
    const int t = threadIdx.x;
    if (t < N / 4) {
        const int i = blockIdx.x * N / 4 + t;
        y[i] = x[i] + (blockIdx.x > 0 ? y[i - N / 4] : 0.0f);
    }
}

__global__ void global_tail(float *y, const float *x, int n) {
    const int t = threadIdx.x;
    if (t <= n)   // off by one
        y[t] = x[t];
}

__global__ void global_head(float *y, const float *x) {
    const int t = threadIdx.x;
    y[t - 1] = x[t];   // off by one
}

__global__ void shared_tail(float *y, const float *x) {
    SHARED(float, tile, [N]);
    SHARED(float, other, [N]);
    const int t = threadIdx.x;
    tile[t] = other[t] = x[t];
    __syncthreads();
    y[t] = tile[t + 1] + other[t];   // off by one
}

__global__ void dynamic_shared_tail(float *y, const float *x) {
    DYNAMIC_SHARED(float, tile);
    const int t = threadIdx.x;
    tile[t + 1] = x[t];   // off by one
    __syncthreads();
    y[t] = tile[t + 1];
}

__global__ void mask_without_caller(float *y, const float *x) {
    const int t = threadIdx.x;
    y[t] = __shfl_down_sync(0x0000ffffu, x[t], 1);
}

__global__ void mask_with_exited_lane(float *y, const float *x) {
    const int t = threadIdx.x;
    if (t >= 20) return;
    y[t] = __shfl_xor_sync(0xffffffffu, x[t], 1);
}

__global__ void mask_with_diverged_lane(float *y, const float *x) {
    const int t = threadIdx.x;
    float value = x[t];
    if (t % 32 < 16) value += __shfl_xor_sync(0xffffffffu, value, 1);
    y[t] = value;
    __syncthreads();
}

__global__ void mask_differs(float *y, const float *x) {
    const int t = threadIdx.x;
    y[t] = __shfl_xor_sync(t % 32 < 16 ? 0xffffffffu : 0xfffffff0u, x[t], 1);
}

__global__ void source_outside_mask(float *y, const float *x) {
    const int t = threadIdx.x;
    y[t] = 0;
    if (t < 8) y[t] = __shfl_sync(0xffu, x[t], 9);
}

__global__ void active_mask(float *y, const float *x) {   // lanes need not run together
    const int t = threadIdx.x;
    y[t] = __shfl_xor_sync(__activemask(), x[t], 1);
}

__global__ void barrier_not_reached(float *y, const float *x) {
    const int t = threadIdx.x;
    if (t < 200) __syncthreads();
    y[t] = x[t];
}

__global__ void barriers_differ(float *y, const float *x) {
    const int t = threadIdx.x;
    y[t] = x[t];
    if (t < 128)
        __syncthreads();
    else
        __syncthreads();
}

__global__ void missing_copy_wait(float *y, const float *x) {
    SHARED(float, tile, [N * 4]);
    const int t = threadIdx.x;
    cp_async_16(tile + 4 * t, x + 4 * (t % 64));
    cp_async_commit();
    // here
    __syncthreads();
    y[t] = tile[4 * t];
}

__global__ void copy_waits_for_too_few(float *y, const float *x) {
    SHARED(float, tile, [N * 4]);
    const int t = threadIdx.x;
    cp_async_16(tile + 4 * t, x + 4 * (t % 64));
    cp_async_commit();
    cp_async_wait<1>();   // 0 is meant
    __syncthreads();
    y[t] = tile[4 * t];
}

__global__ void misaligned_copy(float *y, const float *x) {
    SHARED(float, tile, [N * 4]);
    const int t = threadIdx.x;
    cp_async_16(tile + t, x + 4 * (t % 64));
    cp_async_commit();
    cp_async_wait<0>();
    y[t] = tile[t];
}

__global__ void uninitialised_shared(float *y, const float *x) {
    SHARED(float, tile, [N]);
    const int t = threadIdx.x;
    if (t > 0)   // a padding that nobody clears
        tile[t] = x[t];
    __syncthreads();
    y[t] = tile[t];
}

__global__ void uninitialised_shared_integer(float *y, const float *x) {
    SHARED(int, counter);
    if (x[threadIdx.x] > 1e9f) counter = 0;
    __syncthreads();
    y[threadIdx.x] = static_cast<float>(counter & 1023);
}

__global__ void uninitialised_global(float *y, const float *) {
    if (threadIdx.x > 0) y[threadIdx.x] = 0;
}

__global__ void too_much_shared(float *y, const float *x) {
    SHARED(float, tile, [10000]);
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[threadIdx.x];
}

int main(int, char **argv) {
    std::vector<float> x(N), y(N);
    for (int i = 0; i < N; i++) x[i] = static_cast<float>(i);
    float *dx = nullptr, *dy = nullptr;
    cudaMalloc(&dx, N * sizeof(float));
    cudaMalloc(&dy, N * sizeof(float));
    cudaMemcpy(dx, x.data(), N * sizeof(float), cudaMemcpyHostToDevice);

    const auto is = [argv](const char *name) { return strcmp(argv[1], name) == 0; };
    cudaError_t error = cudaErrorInvalidValue;
#define FAULT(kernel, blocks, shared_bytes)                                                                            \
    if (is(#kernel)) error = LAUNCH(kernel, blocks, N, shared_bytes, nullptr, dy, dx);
    FAULT(missing_barrier, 1, 0)
    FAULT(missing_second_barrier, 1, 0)
    FAULT(missing_syncwarp, 1, 0)
    FAULT(blocks_in_order, 4, 0)
    FAULT(global_head, 1, 0)
    FAULT(shared_tail, 1, 0)
    FAULT(dynamic_shared_tail, 1, N * sizeof(float))
    FAULT(mask_without_caller, 1, 0)
    FAULT(mask_with_exited_lane, 1, 0)
    FAULT(mask_with_diverged_lane, 1, 0)
    FAULT(mask_differs, 1, 0)
    FAULT(source_outside_mask, 1, 0)
    FAULT(active_mask, 1, 0)
    FAULT(barrier_not_reached, 1, 0)
    FAULT(barriers_differ, 1, 0)
    FAULT(missing_copy_wait, 1, 0)
    FAULT(copy_waits_for_too_few, 1, 0)
    FAULT(misaligned_copy, 1, 0)
    FAULT(uninitialised_shared, 1, 0)
    FAULT(uninitialised_shared_integer, 1, 0)
    FAULT(uninitialised_global, 1, 0)
    FAULT(too_much_shared, 1, 12000)
    if (is("global_tail")) error = LAUNCH(global_tail, 1, N, 0, nullptr, dy + 200, dx, N - 200);
    if (error == cudaSuccess) error = cudaMemcpy(y.data(), dy, N * sizeof(float), cudaMemcpyDeviceToHost);
    if (error != cudaSuccess) {
        printf("error: %s\n", cudaGetErrorString(error));
        return 1;
    }
    for (float v : y) {
        uint32_t bits;
        memcpy(&bits, &v, sizeof bits);
        printf("%08x ", bits);
    }
    printf("\n");
    cudaFree(dx);
    cudaFree(dy);
    return 0;
}
