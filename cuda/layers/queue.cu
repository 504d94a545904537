/* What the layers need of a device: a stream, plans for matrix products, scratch memory. */
#include "elements.cuh"
#include "layers.cuh"

#include <vector>

cudaError_t queue_create(Queue *queue, DataType type, bool fast, bool products) {
    *queue = {};
    queue->type = type;
    queue->fast = fast;
    int device, major, minor;
    CUDA_TRY(cudaGetDevice(&device));
    CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    CUDA_TRY(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    queue->compute_capability = 10 * major + minor;
    CUDA_TRY(
        cudaDeviceGetAttribute(&queue->shared_of_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
    CUDA_TRY(cudaStreamCreateWithFlags(&queue->stream, cudaStreamNonBlocking));
    const cudaError_t error = products ? matmul_create(&queue->matmul) : cudaSuccess;
    if (error != cudaSuccess) queue_destroy(queue);
    return error;
}

void queue_destroy(Queue *queue) {
    if (queue->stream) cudaStreamDestroy(queue->stream);
    matmul_destroy(queue->matmul);
    cudaFree(queue->scratch);
    *queue = {};
}

void *scratch(Queue &queue, size_t bytes) {
    if (queue.error != cudaSuccess) return nullptr;
    if (bytes <= queue.scratch_bytes) return queue.scratch;
    note(queue, cudaStreamSynchronize(queue.stream), "scratch memory");   // a kernel may still use the old one
    cudaFree(queue.scratch);
    queue.scratch = nullptr;
    queue.scratch_bytes = 0;
    queue.replaced++;
    note(queue, cudaMalloc(&queue.scratch, bytes), "scratch memory");
    if (queue.error != cudaSuccess) return nullptr;
    queue.scratch_bytes = bytes;
    return queue.scratch;
}

void copy(Queue &queue, void *to, const void *from, int64_t n) {
    if (queue.error != cudaSuccess || to == from) return;
    const size_t bytes = static_cast<size_t>(n) * element_size(queue.type);
    note(queue, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, queue.stream), "a copy");
}

/* The bits as they are. */
static void fetch(Queue &queue, void *to, const void *from, size_t bytes) {
    if (queue.error != cudaSuccess) return;
    note(queue, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, queue.stream), "a copy to the host");
    if (queue.error == cudaSuccess) note(queue, cudaStreamSynchronize(queue.stream), "a copy to the host");
}

void download(Queue &queue, float *to, const void *from, DataType type, int64_t n) {
    if (type == DataType::float32) {
        fetch(queue, to, from, static_cast<size_t>(n) * sizeof *to);
        return;
    }
    std::vector<bf16> values(static_cast<size_t>(n));
    fetch(queue, values.data(), from, values.size() * sizeof(bf16));
    for (bf16 value : values) *to++ = static_cast<float>(value);
}

void download_rows(Queue &queue, float *to, const void *from, int64_t rows, int64_t columns, int64_t stride) {
    std::vector<float> values(static_cast<size_t>(rows * stride));
    download(queue, values.data(), from, queue.type, rows * stride);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t column = 0; column < columns; column++) *to++ = values[static_cast<size_t>(row * stride + column)];
}

void upload(Queue &queue, void *to, DataType type, const float *from, int64_t n) {
    if (queue.error != cudaSuccess) return;
    std::vector<bf16> rounded;
    if (type == DataType::bfloat16) rounded.assign(from, from + n);
    const void *const values = type == DataType::bfloat16 ? static_cast<const void *>(rounded.data()) : from;
    const size_t bytes = static_cast<size_t>(n) * element_size(type);
    note(queue, cudaMemcpyAsync(to, values, bytes, cudaMemcpyHostToDevice, queue.stream), "a copy to the device");
    if (queue.error == cudaSuccess) note(queue, cudaStreamSynchronize(queue.stream), "a copy to the device");
}

void product(Queue &queue, const Matmul &m) {
    if (queue.error == cudaSuccess) note(queue, matmul(queue.matmul, m, queue.stream), "a matrix product");
}
