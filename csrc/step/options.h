/* The command line of pygpt-step. */
#ifndef PYGPT_STEP_OPTIONS_H
#define PYGPT_STEP_OPTIONS_H

#include <stdint.h>

typedef struct {
    const char *model, *tokens;
    int64_t batch_size, seq_len, steps, same_batch;
    double learning_rate, beta1, beta2, weight_decay;
    double dropout;
    int64_t seed;   // of dropout
    int64_t kernels, dtype, recompute, threads;   // threads: 0 for all
    int64_t help;
} Options;

int options_parse(Options *options, int argc, char **argv);
void options_print_help(void);

#endif
