/* Attention on tensor cores, for bfloat16 storage: what attention.cu does, in tiles, with no row of P in memory
 * (docs/layers/attention_flash.md).
 *
 * Pointers are aligned to 16 bytes. The bits of the results depend on nothing but the inputs.
 */
#pragma once

#include "../common.cuh"
#include "../philox.cuh"

/* Head sizes 32, 64, 80, 96 and 128, from compute capability 8.0 on, which is given as 80. */
bool attention_flash_supports(int64_t HS, int compute_capability);

/* Bytes of scratch that the backward pass needs, of any head size. */
size_t attention_flash_scratch(int64_t B, int64_t T, int64_t NH);

/* cudaErrorInvalidValue: a head size without a kernel, or sizes that no grid holds. */
cudaError_t attention_flash_forward(__nv_bfloat16 *y, float *lse,   // (B,T,NH,HS) (B,NH,T)
                                    const __nv_bfloat16 *qkv,   // (B,T,3,NH,HS)
                                    int64_t B, int64_t T, int64_t NH, int64_t HS, const DropoutMask &dropout,
                                    cudaStream_t stream);

/* dqkv is overwritten (=), not added to. */
cudaError_t attention_flash_backward(__nv_bfloat16 *dqkv,   // (B,T,3,NH,HS)
                                     const __nv_bfloat16 *dy, const __nv_bfloat16 *y,   // (B,T,NH,HS) each
                                     const float *lse, const __nv_bfloat16 *qkv,   // (B,NH,T) (B,T,3,NH,HS)
                                     void *scratch,   // attention_flash_scratch()
                                     int64_t B, int64_t T, int64_t NH, int64_t HS, const DropoutMask &dropout,
                                     cudaStream_t stream);
