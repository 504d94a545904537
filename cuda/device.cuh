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

constexpr double GIB = 1024.0 * 1024.0 * 1024.0;
