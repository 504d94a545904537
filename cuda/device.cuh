/* The device, and sentences for what can go wrong with it. */
#pragma once

#include "layers/layers.cuh"

extern "C" {
#include "../csrc/internal.h"
}

/* PYGPT_OK if there is a device that this library can use, with this element type; otherwise the error, with its
 * sentence. */
int check_device(DataType type);

/* The device's name and compute capability; only after check_device(). */
const char *device_name();

/* Keeps the sentence for an error of CUDA, and returns the code of pygpt.h. what: what was being done. */
int fail_cuda(cudaError_t error, const char *what);

/* The same for a queue's first error, which the queue then forgets; PYGPT_OK if there was none. */
int queue_status(Queue &queue);

/* dtype: as in pygpt.h */
inline DataType data_type(int dtype) {
    return dtype == PYGPT_BFLOAT16 ? DataType::bfloat16 : DataType::float32;
}

/* V rounded up, so that rows of logits are aligned. */
inline int64_t padded_vocabulary(int64_t V) {
    return ceil_div<int64_t>(V, 64) * 64;
}
