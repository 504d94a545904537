/* Attention in bfloat16 on Hopper's tensor cores: attention.h says how it is called. */
#include "layers/attention_wgmma_backward.cu"
#include "layers/attention_wgmma_forward.cu"

/* What attention.h calls. */
static cudaError_t attention_flash_forward(bf16 *y, float *lse, const bf16 *qkv, int64_t B, int64_t T, int64_t NH,
                                           int64_t HS, float scale, const DropoutMask &dropout, cudaStream_t stream) {
    if (!attention_wgmma_fits(90, HS, dropout)) return cudaErrorInvalidValue;
    return attention_wgmma_forward(y, lse, qkv, B, T, NH, scale, stream);
}
static cudaError_t attention_flash_backward(bf16 *dqkv, const bf16 *dy, const bf16 *y, const float *lse,
                                            const bf16 *qkv, void *scratch, int64_t B, int64_t T, int64_t NH, int64_t,
                                            float scale, const DropoutMask &, cudaStream_t stream) {
    return attention_wgmma_backward(dqkv, dy, y, lse, qkv, scratch, B, T, NH, scale, stream);
}

#include "attention.h"

int main(int count, char **words) {
    return attention_main<bf16>(count, words);
}
