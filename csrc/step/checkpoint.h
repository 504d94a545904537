/* The model folder: config.json and model.safetensors, as Hugging Face's GPT-2 has them; pygpt/files/checkpoint.py is the same
 * in Python. A folder may come from anybody, so every check is made before the first number is read. */
#ifndef PYGPT_STEP_CHECKPOINT_H
#define PYGPT_STEP_CHECKPOINT_H

#include "../pygpt.h"
#include "tensor_file.h"

typedef struct {
    GPT2Config config;
    TensorFile weights;
} Checkpoint;

/* After it, a model of this configuration is no larger than the folder's files make credible. */
int checkpoint_open(Checkpoint *checkpoint, const char *folder);
int checkpoint_load(Checkpoint *checkpoint, GPT2 *model);   // into a model of this configuration
void checkpoint_close(Checkpoint *checkpoint);

#endif
