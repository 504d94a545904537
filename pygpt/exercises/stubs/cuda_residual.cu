/* A first kernel in CUDA: the residual connection.
 *
 *   y_i = x1_i + x2_i      i = 0 ... n − 1
 *
 * One thread for each element: its number is blockIdx.x blockDim.x + threadIdx.x, as int64_t. The last block has threads
 * beyond n, which must not touch memory. The pointers are to float32 (queue.type may be bfloat16 elsewhere, not here).
 * A launch is written ENQUEUE(queue, kernel, blocks, threads, 0, arguments...), so that nvcc and a C++ compiler, which
 * runs it here, both understand it; blocks_for(n, 256) is how many blocks of 256 threads n elements take.
 *
 * Read: docs/emulation.md, docs/cuda.md, docs/layers/residual.md
 */
#include "elements.cuh"
#include "layers.cuh"

__global__ static void add(float *y, const float *x1, const float *x2, int64_t n) {
    // to be written
}

void residual_forward(Queue &queue, void *y, const void *x1, const void *x2, int64_t n) {
    ENQUEUE(queue, add, blocks_for(n, 256), 256, 0, as<float>(y), as<float>(x1), as<float>(x2), n);
}
