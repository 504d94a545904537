/* Attention in float32: attention.h says how it is called. */
#include "layers/attention_fma_backward.cu"
#include "layers/attention_fma_forward.cu"

#include "attention.h"

int main(int count, char **words) {
    return attention_main<float>(count, words);
}
