/* A model in one file, as llm.c has it; docs/models.md has its header, and pygpt/files/llmc.py is the same in Python. A file may
 * come from anybody, so every check is made before the first number is read. */
#ifndef PYGPT_STEP_MODEL_FILE_H
#define PYGPT_STEP_MODEL_FILE_H

#include "../pygpt.h"
#include "file.h"

typedef struct {
    File file;
    GPT2Config config;
    int64_t padded_vocab_size;   // rows of wte
    int64_t bytes_each;   // 4: float32, 2: bfloat16
} ModelFile;

/* After it, a model of this configuration is no larger than the file makes credible. Whether n_embd divides among the heads
 * is gpt2_create()'s to say. */
int model_file_open(ModelFile *file, const char *path);
int model_file_load(ModelFile *file, GPT2 *model);   // into a model of this configuration
void model_file_close(ModelFile *file);

#endif
