/* Attention in tiles, with no row of P in memory: what attention.cu does, for bfloat16 on tensor cores, from compute
 * capability 8.0 on (docs/layers/attention_flash.md), and for float32 on any device (docs/layers/attention_fma.md).
 *
 * Pointers are aligned to 16 bytes. The bits of the results depend on nothing but the inputs.
 */
#pragma once

#include "../common.cuh"
#include "../philox.cuh"

/* cudaErrorInvalidValue: a head size without a kernel (for_head_size() in attention_tiles.cuh has them), or sizes that
 * no grid holds. */
cudaError_t attention_flash_forward(float *y, float *lse,   // (B,T,NH,HS) (B,NH,T)
                                    const float *qkv,   // (B,T,3,NH,HS)
                                    int64_t B, int64_t T, int64_t NH, int64_t HS, float scale,
                                    const DropoutMask &dropout, cudaStream_t stream);
cudaError_t attention_flash_forward(__nv_bfloat16 *y, float *lse, const __nv_bfloat16 *qkv, int64_t B, int64_t T,
                                    int64_t NH, int64_t HS, float scale, const DropoutMask &dropout,
                                    cudaStream_t stream);

/* dqkv is overwritten (=), not added to. */
cudaError_t attention_flash_backward(float *dqkv,   // (B,T,3,NH,HS)
                                     const float *dy, const float *y,   // (B,T,NH,HS) each
                                     const float *lse, const float *qkv,   // (B,NH,T) (B,T,3,NH,HS)
                                     void *scratch,   // rows_bytes() in attention_rows.cuh
                                     int64_t B, int64_t T, int64_t NH, int64_t HS, float scale,
                                     const DropoutMask &dropout, cudaStream_t stream);
cudaError_t attention_flash_backward(__nv_bfloat16 *dqkv, const __nv_bfloat16 *dy, const __nv_bfloat16 *y,
                                     const float *lse, const __nv_bfloat16 *qkv, void *scratch, int64_t B, int64_t T,
                                     int64_t NH, int64_t HS, float scale, const DropoutMask &dropout,
                                     cudaStream_t stream);
