/* pygpt-step: forward pass, backward pass and update of a GPT-2, step by step and without Python, so that a debugger can
 * follow every line of it. What it reads are a model and tokens, in llm.c's files; what it changes stays in memory. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "pygpt.h"
#include "step/model_file.h"
#include "step/options.h"
#include "step/refuse.h"
#include "step/token_file.h"

static const float EPSILON = 1e-8f;   // AdamW's
static const double GIB = 1024.0 * 1024.0 * 1024.0;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int check_memory(const GPT2Config *config, const GPT2Options *options, const Options *o) {
    int64_t bytes = gpt2_memory(config, options, o->batch_size, o->seq_len, 1);
    if (bytes < 0) {
        const char *sentence = pygpt_last_error();
        return refuse("%s: %s", o->model, *sentence ? sentence : "batches of this size overflow 64 bits");
    }
#ifdef _SC_PHYS_PAGES
    double machine = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if ((double)bytes > machine) {
        return refuse("%s: this model needs %.1f GiB for batches of %lld x %lld, and the machine has %.1f", o->model,
                      (double)bytes / GIB, (long long)o->batch_size, (long long)o->seq_len, machine / GIB);
    }
#endif
    return 0;
}

/* Opens the file, creates the model of its configuration, and loads it. */
static int load_model(GPT2 **model, GPT2Config *config, const Options *o) {
    ModelFile file;
    GPT2Options options = {.dtype = (int)o->dtype, .kernels = (int)o->kernels, .recompute = (int)o->recompute};
    *model = NULL;
    int status = model_file_open(&file, o->model);
    if (status) return status;
    *config = file.config;
    config->embd_pdrop = config->attn_pdrop = config->resid_pdrop = (float)o->dropout;
    if (o->seq_len > config->n_positions) {
        status = refuse("--seq-len is %lld, expected at most %lld, the n_positions of %s", (long long)o->seq_len,
                        (long long)config->n_positions, o->model);
    }
    if (!status) status = check_memory(config, &options, o);
    if (!status && gpt2_create(model, config, &options)) status = refuse("%s: %s", o->model, pygpt_last_error());
    if (!status) status = model_file_load(&file, *model);
    model_file_close(&file);
    return status;
}

/* number: from 1 */
static int step(GPT2 *model, const int32_t *batch, int64_t number, const Options *o) {
    Dropout dropout = {.seed = (uint64_t)o->seed, .step = (uint32_t)(number - 1)};
    float loss;
    double norm, start = seconds();
    if (gpt2_zero_grad(model) ||
        gpt2_forward(model, &loss, batch, batch + 1, o->batch_size, o->seq_len, o->dropout > 0 ? &dropout : NULL) ||
        gpt2_backward(model, 1.0f) || gpt2_clip_grad_norm(model, &norm, 0.0f) ||   // measures it
        gpt2_adamw_step(model, (float)o->learning_rate, (float)o->beta1, (float)o->beta2, EPSILON,
                        (float)o->weight_decay, number)) {
        return refuse("step %lld: %s", (long long)number, pygpt_last_error());
    }
    printf("step %3lld   loss %.6f   gradient norm %.6g   %.1f ms\n", (long long)number, loss, norm,
           1e3 * (seconds() - start));
    fflush(stdout);
    return 0;
}

static int run(const Options *o) {
    GPT2Config config;
    GPT2 *model;
    TokenFile tokens = {0};
    if (o->threads) pygpt_set_threads((int)o->threads);
    int status = load_model(&model, &config, o);
    if (!status) status = token_file_open(&tokens, o->tokens);
    int32_t *batch = NULL;
    if (!status && !(batch = calloc((size_t)(o->batch_size * o->seq_len + 1), sizeof *batch))) {
        status = refuse("no memory for a batch of tokens");
    }
    for (int64_t number = 1; number <= o->steps && !status; number++) {
        status = token_file_batch(&tokens, batch, o->batch_size, o->seq_len, o->same_batch ? 0 : number - 1,
                                  config.vocab_size);
        if (!status) status = step(model, batch, number, o);
    }
    free(batch);
    token_file_close(&tokens);
    gpt2_free(model);
    return status;
}

int main(int argc, char **argv) {
    Options options;
    int status = options_parse(&options, argc, argv);
    if (!status && options.help) {
        options_print_help();
        return 0;
    }
    if (!status) status = run(&options);
    if (status) fprintf(stderr, "error: %s\n", refusal());
    return status ? 2 : 0;
}
