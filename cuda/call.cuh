/* What a layer alone, called from the host, needs around it: buffers on the device, and copies there and back. */
#pragma once

#include "device.cuh"

#include <algorithm>
#include <mutex>
#include <vector>

/* One call of a layer. Its buffers on the device live as long as it does. */
class Call {
  public:
    Call(DataType type, bool fast) : lock(mutex), on(queue_for(type, fast)) {}
    ~Call() {
        if (on.error == cudaSuccess) note(on, cudaStreamSynchronize(on.stream), "a layer");
        queue_status(on);   // leaves the sentence
        for (void *buffer : buffers) cudaFree(buffer);
    }
    Call(const Call &) = delete;

    Queue &queue() {
        return on;
    }

    /* Room for n elements of the table's type, or of another; zeros. */
    void *room(int64_t n, DataType type) {
        void *made = nullptr;
        const size_t bytes = static_cast<size_t>(std::max<int64_t>(n, 1)) * element_size(type);
        if (on.error == cudaSuccess) note(on, cudaMalloc(&made, bytes), "the buffers of a layer");
        if (on.error != cudaSuccess) return nullptr;
        buffers.push_back(made);
        note(on, cudaMemsetAsync(made, 0, bytes, on.stream), "the buffers of a layer");
        return made;
    }
    void *room(int64_t n) {
        return room(n, on.type);
    }
    float *floats(int64_t n) {
        return static_cast<float *>(room(n, DataType::float32));
    }

    /* A copy of the host's values on the device; NULL of NULL. With `more` elements behind them, which are 0. */
    const void *input(const float *values, int64_t n, int64_t more = 0) {
        if (!values) return nullptr;
        void *const copy = room(n + more);
        upload(on, copy, on.type, values, n);
        return copy;
    }
    float *float_input(const float *values, int64_t n, int64_t more = 0) {
        if (!values) return nullptr;
        float *const copy = floats(n + more);
        upload(on, copy, DataType::float32, values, n);
        return copy;
    }
    int32_t *input(const int32_t *values, int64_t n) {
        float *const copy = floats(n);   // of the same size
        upload(on, copy, DataType::float32, reinterpret_cast<const float *>(values), n);
        return reinterpret_cast<int32_t *>(copy);
    }
    DropoutMask mask(const Dropout *dropout) {
        if (!dropout) return {};
        const DropoutDraw draw = {dropout->seed, dropout->step};
        void *const copy = room(sizeof draw, DataType::float32);
        if (on.error == cudaSuccess)
            note(on, cudaMemcpyAsync(copy, &draw, sizeof draw, cudaMemcpyHostToDevice, on.stream),
                 "the seed of dropout");
        return dropout_mask(dropout->p, dropout->site, static_cast<DropoutDraw *>(copy));
    }

    /* host = device, or host += device; nothing where the host wants none */
    void output(float *values, const void *device, int64_t n) {
        if (values && on.error == cudaSuccess) download(on, values, device, on.type, n);
    }
    void float_output(float *values, const void *device, int64_t n) {
        if (values && on.error == cudaSuccess) download(on, values, device, DataType::float32, n);
    }
    void add_output(float *values, const void *device, int64_t n) {
        std::vector<float> found(static_cast<size_t>(n));
        output(found.data(), device, n);
        if (on.error == cudaSuccess)
            for (int64_t i = 0; i < n; i++) values[i] += found[static_cast<size_t>(i)];
    }

  private:
    static Queue &queue_for(DataType type, bool fast) {
        static Queue queues[2][2];
        Queue &queue = queues[type == DataType::bfloat16][fast];
        if (!queue.stream) {
            const cudaError_t error = queue_create(&queue, type, fast);
            queue.type = type;
            note(queue, error, "setting up");
        }
        return queue;
    }

    static inline std::mutex mutex;
    std::lock_guard<std::mutex> lock;
    Queue &on;
    std::vector<void *> buffers;
};
