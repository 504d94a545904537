/* Kernels that use all that the emulation offers, against plain loops, on the CPU or a GPU. Prints a line for each. */
#include "common.cuh"

#include <cmath>
#include <cstdio>
#include <vector>

/* A copy of `host` on the device. */
template <class T> T *upload(const std::vector<T> &host) {
    T *p = nullptr;
    if (cudaMalloc(&p, host.size() * sizeof(T)) == cudaSuccess)
        cudaMemcpy(p, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice);
    return p;
}

template <class T> std::vector<T> download(const T *p, size_t n) {
    std::vector<T> host(n);
    cudaMemcpy(host.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost);
    return host;
}

static std::vector<float> numbers(size_t n) {   // small integers: sums and products are exact in any order
    std::vector<float> x(n);
    for (size_t i = 0; i < n; i++) x[i] = static_cast<float>((i * 7919 + 13) % 17) - 8;
    return x;
}

static bool succeeded(cudaError_t error) {
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    if (error != cudaSuccess) printf("%s ", cudaGetErrorString(error));
    return error == cudaSuccess;
}

/* ---- no synchronisation at all ---- */

__global__ void scale(float *y, const float *x, float factor, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}

static bool test_elementwise() {
    const int n = 1000;
    const auto x = numbers(n);
    float *dx = upload(x), *dy = upload(x);
    bool good = succeeded(LAUNCH(scale, ceil_div(n, 128), 128, 0, nullptr, dy, dx, 3.0f, n));
    const auto y = download(dy, n);
    for (int i = 0; i < n; i++) good = good && y[i] == 3 * x[i];
    cudaFree(dx);
    cudaFree(dy);
    return good;
}

/* ---- barriers and shuffles ---- */

__global__ void row_sums(float *sums, const float *x, int columns) {
    float sum = 0, largest = -INFINITY;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
        sum += x[blockIdx.x * columns + i];
        largest = fmaxf(largest, x[blockIdx.x * columns + i]);
    }
    sum = block_sum(sum);
    largest = block_max(largest);
    if (threadIdx.x == blockDim.x - 1) sums[blockIdx.x] = sum + 1000 * largest;
}

static bool test_block_reduction() {
    const int rows = 5, columns = 777;
    const auto x = numbers(rows * columns);
    float *dx = upload(x), *dy = upload(numbers(rows));
    bool good = succeeded(LAUNCH(row_sums, rows, 256, 0, nullptr, dy, dx, columns));
    const auto y = download(dy, rows);
    for (int r = 0; r < rows; r++) {
        float sum = 0, largest = -INFINITY;
        for (int c = 0; c < columns; c++) {
            sum += x[r * columns + c];
            largest = fmaxf(largest, x[r * columns + c]);
        }
        good = good && y[r] == sum + 1000 * largest;
    }
    cudaFree(dx);
    cudaFree(dy);
    return good;
}

__global__ void shuffles(int *y) {
    const int lane = threadIdx.x % 32;
    int *out = y + threadIdx.x * 9;
    out[0] = __shfl_sync(0xffffffffu, lane, 5);
    out[1] = __shfl_sync(0xffffffffu, lane, 9, 8);
    out[2] = __shfl_up_sync(0xffffffffu, lane, 3);
    out[3] = __shfl_down_sync(0xffffffffu, lane, 4, 16);
    out[4] = __shfl_xor_sync(0xffffffffu, lane, 17);
    out[5] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 3 == 0));
    out[6] = __any_sync(0xffffffffu, lane == 31) + 2 * __all_sync(0xffffffffu, lane < 31);
    if (lane < 16)   // the halves of a warp go different ways
        out[7] = static_cast<int>(__ballot_sync(0x0000ffffu, lane & 1));
    else
        out[7] = static_cast<int>(__ballot_sync(0xffff0000u, lane & 2));
    __syncwarp();
    out[8] = static_cast<int>(__shfl_xor_sync(0xffffffffu, static_cast<double>(lane), 1));
}

static bool test_shuffles() {
    const int threads = 64;
    int *dy = upload(std::vector<int>(threads * 9));
    bool good = succeeded(LAUNCH(shuffles, 1, dim3(threads), 0, nullptr, dy));
    const auto y = download(dy, threads * 9);
    for (int i = 0; i < threads; i++) {
        const int lane = i % 32;
        const int expected[9] = {5,
                                 lane / 8 * 8 + 1,
                                 lane < 3 ? lane : lane - 3,
                                 lane % 16 < 12 ? lane + 4 : lane,
                                 lane ^ 17,
                                 0x49249249,
                                 1,
                                 lane < 16 ? 0xaaaa : static_cast<int>(0xcccc0000u),
                                 lane ^ 1};
        for (int k = 0; k < 9; k++) good = good && y[i * 9 + k] == expected[k];
    }
    cudaFree(dy);
    return good;
}

template <int TILE> __global__ void transpose(float *y, const float *x, int rows, int columns) {
    SHARED(float, tile, [TILE][TILE + 1]);
    const int r = blockIdx.y * TILE + threadIdx.y, c = blockIdx.x * TILE + threadIdx.x;
    if (r < rows && c < columns) tile[threadIdx.y][threadIdx.x] = x[r * columns + c];
    __syncthreads();
    const int to_r = blockIdx.x * TILE + threadIdx.y, to_c = blockIdx.y * TILE + threadIdx.x;
    if (to_r < columns && to_c < rows) y[to_r * rows + to_c] = tile[threadIdx.x][threadIdx.y];
}

static bool test_transpose() {
    const int rows = 37, columns = 53;
    const auto x = numbers(rows * columns);
    float *dx = upload(x), *dy = upload(x);
    bool good = succeeded(LAUNCH(transpose<16>, dim3(ceil_div(columns, 16), ceil_div(rows, 16)), dim3(16, 16), 0,
                                 nullptr, dy, dx, rows, columns));
    const auto y = download(dy, rows * columns);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) good = good && y[c * rows + r] == x[r * columns + c];
    cudaFree(dx);
    cudaFree(dy);
    return good;
}

/* ---- tensor cores: C (16,8) = A (16,16) B (16,8), B stored (16,8) or transposed ---- */

__global__ void tensor_core_bf16(float *c, const __nv_bfloat16 *a, const __nv_bfloat16 *b) {
    SHARED(__nv_bfloat16, sa, [16][16]);
    SHARED(__nv_bfloat16, sb, [16][8]);
    SHARED(__nv_bfloat16, sbt, [8][16]);
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    for (int i = lane; i < 256; i += 32) sa[i / 16][i % 16] = a[i];
    for (int i = lane; i < 128; i += 32) sbt[i % 8][i / 8] = sb[i / 8][i % 8] = b[i];
    __syncwarp();
    uint32_t fa[4], fb[2], fbt[2], first[1];
    ldmatrix(fa, &sa[lane % 16][lane / 16 * 8]);
    ldmatrix_transposed(fb, &sb[lane % 16][0]);
    ldmatrix(fbt, &sbt[lane % 8][lane / 8 % 2 * 8]);
    ldmatrix_transposed(first, &sb[lane % 8][0]);
    float d[4] = {0, 0, 0, 0};
    mma_bf16(d, fa, fb[0], fb[1]);
    float e[4] = {1, 1, 1, 1};
    mma_bf16(e, fa, first[0], fbt[1]);   // the same operands, fetched in other ways
    for (int i = 0; i < 4; i++) {
        const int at = (g + i / 2 * 8) * 8 + 2 * t + i % 2;
        c[at] = d[i];
        c[128 + at] = e[i];
    }
}

static bool test_tensor_core_bf16() {
    const auto a = numbers(256), b = numbers(128);
    std::vector<__nv_bfloat16> a16(256), b16(128);
    for (int i = 0; i < 256; i++) a16[i] = __float2bfloat16(a[i]);
    for (int i = 0; i < 128; i++) b16[i] = __float2bfloat16(b[i]);
    __nv_bfloat16 *da = upload(a16), *db = upload(b16);
    float *dc = upload(numbers(256));
    bool good = succeeded(LAUNCH(tensor_core_bf16, 1, 32, 0, nullptr, dc, da, db));
    const auto c = download(dc, 256);
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++) {
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += a[m * 16 + k] * b[k * 8 + n];
            good = good && c[m * 8 + n] == sum && c[128 + m * 8 + n] == sum + 1;
        }
    cudaFree(da);
    cudaFree(db);
    cudaFree(dc);
    return good;
}

__global__ void tensor_core_tf32(float *c, const float *a, const float *b) {   // C (16,8) = A (16,8) B (8,8)
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    uint32_t fa[4];
    for (int i = 0; i < 4; i++) fa[i] = round_to_tf32(a[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
    float d[4] = {0, 0, 0, 0};
    mma_tf32(d, fa, round_to_tf32(b[t * 8 + g]), round_to_tf32(b[(t + 4) * 8 + g]));
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

static bool test_tensor_core_tf32() {
    const auto a = numbers(128), b = numbers(64);
    float *da = upload(a), *db = upload(b), *dc = upload(numbers(128));
    bool good = succeeded(LAUNCH(tensor_core_tf32, 1, 32, 0, nullptr, dc, da, db));
    const auto c = download(dc, 128);
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++) {
            float sum = 0;
            for (int k = 0; k < 8; k++) sum += a[m * 8 + k] * b[k * 8 + n];
            good = good && c[m * 8 + n] == sum;
        }
    cudaFree(da);
    cudaFree(db);
    cudaFree(dc);
    return good;
}

/* ---- asynchronous copies: the next piece travels while this one is added up; the tail is filled with zeros ---- */

__global__ void sum_in_pieces(float *y, const float *x, int n) {
    const int piece = 4 * blockDim.x, t = threadIdx.x;
    DYNAMIC_SHARED(float, buffers);   // two pieces
    const auto start = [&](int i) {
        const int from = i * piece + 4 * t;
        cp_async_16(buffers + i % 2 * piece + 4 * t, from < n ? x + from : x, from < n);
        cp_async_commit();
    };
    const int pieces = ceil_div(n, piece);
    float sum = 0;
    start(0);
    for (int i = 0; i < pieces; i++) {
        if (i + 1 < pieces) {
            start(i + 1);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncthreads();
        for (int k = 0; k < 4; k++) sum += buffers[i % 2 * piece + k * blockDim.x + (t + 1) % blockDim.x];
        __syncthreads();
    }
    y[t] = sum;
}

static bool test_async_copy() {
    const int n = 1100, threads = 64, piece = 4 * threads;
    const auto x = numbers(n);
    float *dx = upload(x), *dy = upload(numbers(threads));
    bool good = succeeded(LAUNCH(sum_in_pieces, 1, threads, 2 * piece * sizeof(float), nullptr, dy, dx, n));
    const auto y = download(dy, threads);
    for (int t = 0; t < threads; t++) {
        float sum = 0;
        for (int i = (t + 1) % threads; i < n; i += threads) sum += x[i];
        good = good && y[t] == sum;
    }
    cudaFree(dx);
    cudaFree(dy);
    return good;
}

/* ---- integer atomics: the last block to finish adds up what all have left ---- */

__global__ void sum_by_the_last_block(float *y, float *parts, unsigned *finished, const float *x) {
    SHARED(bool, last);
    const float sum = block_sum(x[blockIdx.x * blockDim.x + threadIdx.x]);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(finished, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float total = 0;
        for (unsigned i = 0; i < gridDim.x; i++) total += __ldcg(parts + i);
        *y = total;
    }
}

static bool test_last_block() {
    const int blocks = 7, threads = 96;
    const auto x = numbers(blocks * threads);
    float *dx = upload(x), *dy = upload(numbers(1)), *parts = upload(numbers(blocks));
    unsigned *finished = upload(std::vector<unsigned>{0});
    bool good = succeeded(LAUNCH(sum_by_the_last_block, blocks, threads, 0, nullptr, dy, parts, finished, dx));
    float sum = 0;
    for (float v : x) sum += v;
    good = good && download(dy, 1)[0] == sum;
    cudaFree(dx);
    cudaFree(dy);
    cudaFree(parts);
    cudaFree(finished);
    return good;
}

/* ---- bfloat16 rounds to nearest, ties to even, on the host and in a kernel ---- */

__global__ void round_to_bf16(unsigned short *y, const float *x, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = __bfloat16_as_ushort(__float2bfloat16(x[i]));
}

static bool test_bf16() {
    const std::vector<float> x{1.0f,    1.00390625f, 1.01171875f, 1.00390637f, -1.00390625f,
                               3.4e38f, 1e-40f,      INFINITY,    -0.0f};
    const unsigned short expected[] = {0x3f80, 0x3f80, 0x3f82, 0x3f81, 0xbf80, 0x7f80, 0x0001, 0x7f80, 0x8000};
    const int n = static_cast<int>(x.size());
    float *dx = upload(x);
    unsigned short *dy = upload(std::vector<unsigned short>(n));
    bool good = succeeded(LAUNCH(round_to_bf16, 1, 32, 0, nullptr, dy, dx, n));
    const auto y = download(dy, n);
    for (int i = 0; i < n; i++)
        good = good && y[i] == expected[i] && __bfloat16_as_ushort(__float2bfloat16(x[i])) == expected[i];
    good = good && std::isnan(__bfloat162float(__float2bfloat16(NAN)));
    cudaFree(dx);
    cudaFree(dy);
    return good;
}

/* ---- a captured graph does its work when launched, each time, on the memory as it then is ---- */

static bool test_graph() {
    const int n = 100;
    const auto x = numbers(n);
    float *dx = upload(x), *dy = upload(numbers(n)), *never = nullptr;
    cudaStream_t stream, side;
    cudaEvent_t fork, join;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&fork, cudaEventDisableTiming);
    cudaEventCreateWithFlags(&join, cudaEventDisableTiming);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    cudaMemcpyAsync(dy, dx, n * sizeof(float), cudaMemcpyDeviceToDevice, stream);
    cudaEventRecord(fork, stream);
    cudaStreamWaitEvent(side, fork, 0);
    bool good = LAUNCH(scale, 1, 128, 0, side, dx, dy, 2.0f, n) == cudaSuccess;
    cudaEventRecord(join, side);
    cudaStreamWaitEvent(stream, join, 0);
    good = good && cudaStreamEndCapture(stream, &graph) == cudaSuccess;
    good = good && download(dx, n) == x;   // nothing has run
    good = good && cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess;
    for (int i = 0; i < 3; i++) good = good && cudaGraphLaunch(exec, stream) == cudaSuccess;
    good = succeeded(cudaStreamSynchronize(stream)) && good;
    const auto y = download(dx, n);
    for (int i = 0; i < n; i++) good = good && y[i] == 8 * x[i];
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);

    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);   // an allocation spoils a capture
    good = good && cudaMalloc(&never, 16) == cudaErrorStreamCaptureUnsupported;
    good = good && cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated;
    cudaGetLastError();
    cudaEventDestroy(fork);
    cudaEventDestroy(join);
    cudaStreamDestroy(stream);
    cudaStreamDestroy(side);
    cudaFree(dx);
    cudaFree(dy);
    return good;
}

/* ---- what a launch must refuse ---- */

__global__ void needs_shared(float *y) {
    DYNAMIC_SHARED(float, buffer);
    buffer[threadIdx.x] = 1;
    y[threadIdx.x] = buffer[threadIdx.x];
}

static bool test_limits() {
    float *dy = upload(numbers(32));
    const size_t much = 60 << 10;
    bool good = LAUNCH(needs_shared, 1, 32, much, nullptr, dy) == cudaErrorInvalidValue;
    good = good && LAUNCH(needs_shared, 1, 2048, 0, nullptr, dy) == cudaErrorInvalidConfiguration;
    good = good && LAUNCH(needs_shared, 0, 32, 128, nullptr, dy) == cudaErrorInvalidConfiguration;
    good = good && cudaGetLastError() == cudaSuccess;   // LAUNCH has reported it
    cudaFuncSetAttribute(needs_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(much));
    good = succeeded(LAUNCH(needs_shared, 1, 32, much, nullptr, dy)) && good;
    cudaFree(dy);
    return good;
}

int main() {
    const struct {
        const char *name;
        bool (*run)();
    } tests[] = {
        {"elementwise", test_elementwise},
        {"block_reduction", test_block_reduction},
        {"shuffles", test_shuffles},
        {"transpose", test_transpose},
        {"tensor_core_bf16", test_tensor_core_bf16},
        {"tensor_core_tf32", test_tensor_core_tf32},
        {"async_copy", test_async_copy},
        {"last_block", test_last_block},
        {"bf16", test_bf16},
        {"graph", test_graph},
        {"limits", test_limits},
    };
    int failed = 0;
    for (const auto &test : tests) {
        const bool good = test.run();
        printf("%s %s\n", test.name, good ? "ok" : "FAILED");
        failed += !good;
    }
    return failed != 0;
}
