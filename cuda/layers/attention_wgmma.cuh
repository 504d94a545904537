/* Flash attention on Hopper's tensor cores: what attention_flash.cuh declares, for bfloat16, head size 64 and no dropout,
 * on compute capability 9.0 (docs/layers/attention_wgmma.md). */
#pragma once

#include "../common.cuh"
#include "../philox.cuh"

/* Whether they are there for this device, head size and dropout. */
bool attention_wgmma_fits(int compute_capability, int64_t HS, const DropoutMask &dropout);

cudaError_t attention_wgmma_forward(__nv_bfloat16 *y, float *lse, const __nv_bfloat16 *qkv, int64_t B, int64_t T,
                                    int64_t NH, float scale, cudaStream_t stream);
cudaError_t attention_wgmma_backward(__nv_bfloat16 *dqkv, const __nv_bfloat16 *dy, const __nv_bfloat16 *y,
                                     const float *lse, const __nv_bfloat16 *qkv, void *scratch, int64_t B, int64_t T,
                                     int64_t NH, float scale, cudaStream_t stream);
