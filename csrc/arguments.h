/* What every library checks in the arguments of pygpt.h's functions. Each gives PYGPT_OK, or the error with its
 * sentence. N: rows of the latest forward pass, 0 before it. */
#ifndef PYGPT_ARGUMENTS_H
#define PYGPT_ARGUMENTS_H

#include "internal.h"

/* A size or a variation out of range, heads that do not divide the channels, or a probability that is none. */
int check_config(const GPT2Config *config);
int check_kernels(int kernels, int dtype);
int check_options(const GPT2Options *options);

int check_tokens_shape(const GPT2Config *config, int64_t B, int64_t T);
int check_logits(int64_t first, int64_t count, int64_t N);
int check_attention(const GPT2Config *config, const GPT2Options *options, int64_t layer, int64_t B, int64_t T,
                    int64_t size);
int check_step(int64_t step);   // of an optimizer

/* How often the weights are in memory: with gradients and the optimizer's moments in training, for Muon all but the second
 * moments; -1 for no purpose at all. */
int64_t copies_of_weights(int purpose);

int check_generator(const GPT2Config *config, int weights, int cache, int64_t B, int64_t positions);
/* Tokens to append to B sequences that have so many. *count: all of them. */
int check_feed(const GPT2Config *config, const int64_t *have, int64_t B, int64_t positions, const int32_t *tokens,
               const int64_t *lengths, int64_t *count);
int check_rewind(const int64_t *have, int64_t B, const int64_t *lengths);
/* Of generator_write(). */
int check_scales(const GPT2Config *config, int weights, int64_t block, int number, int64_t size);

/* Errors that each library finds in its own way: number n of the (B,T) tokens or targets is outside the vocabulary, or
 * there are no targets. */
int fail_token(int32_t token, int64_t n, int64_t T, int64_t V);
int fail_target(int32_t target, int64_t n, int64_t T, int64_t V);
int fail_no_loss(void);

#endif
