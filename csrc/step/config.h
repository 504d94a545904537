/* A model folder's config.json, with Hugging Face's keys; pygpt/config.py is the same in Python. */
#ifndef PYGPT_STEP_CONFIG_H
#define PYGPT_STEP_CONFIG_H

#include "../pygpt.h"

/* Whether n_embd divides among the heads is gpt2_create()'s to say. */
int config_read(GPT2Config *config, const char *folder);

#endif
