/* Attention in bfloat16 on tensor cores: attention.h says how it is called. */
#include "layers/attention_flash_backward.cu"
#include "layers/attention_flash_forward.cu"

#include "attention.h"

int main(int count, char **words) {
    return attention_main<bf16>(count, words);
}
