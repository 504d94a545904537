/* Tokens in llm.c's format: a header of 256 int32 (20240520, version 1, number of tokens, zeros), then uint16 tokens. */
#ifndef PYGPT_STEP_TOKEN_FILE_H
#define PYGPT_STEP_TOKEN_FILE_H

#include "file.h"

typedef struct {
    File file;
    int64_t count;
} TokenFile;

int token_file_open(TokenFile *tokens, const char *path);

/* The tokens of a batch and the one after it, (B*T+1): from its second on they are the targets. Batches follow one another
 * from the start of the file, and from there again after the last whole one. */
int token_file_batch(TokenFile *tokens, int32_t *batch, int64_t B, int64_t T, int64_t number, int64_t vocab_size);
void token_file_close(TokenFile *tokens);

#endif
