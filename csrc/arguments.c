/* Checks of arguments; see arguments.h. */
#include "arguments.h"

#include <inttypes.h>

int check_config(const GPT2Config *c) {
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"vocab_size", c->vocab_size}, {"n_positions", c->n_positions}, {"n_embd", c->n_embd},
                 {"n_layer", c->n_layer},       {"n_head", c->n_head},           {"n_inner", c->n_inner}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (sizes[i].value < 1 || sizes[i].value > INT32_MAX) {
            return fail(PYGPT_ERROR_ARGUMENT, "%s is %" PRId64 ", expected 1 ... %d", sizes[i].name, sizes[i].value,
                        INT32_MAX);
        }
    }
    if (c->n_embd % c->n_head != 0) {
        return fail(PYGPT_ERROR_ARGUMENT, "n_embd is %" PRId64 ", expected a multiple of n_head = %" PRId64, c->n_embd,
                    c->n_head);
    }
    const float probabilities[] = {c->embd_pdrop, c->attn_pdrop, c->resid_pdrop};
    for (int i = 0; i < 3; i++) {
        if (!(probabilities[i] >= 0.0f && probabilities[i] < 1.0f)) {
            return fail(PYGPT_ERROR_ARGUMENT, "a dropout probability is %g, expected at least 0 and less than 1",
                        probabilities[i]);
        }
    }
    return PYGPT_OK;
}

int check_kernels(int kernels, int dtype) {
    if ((kernels == PYGPT_PLAIN || kernels == PYGPT_FAST) && (dtype == PYGPT_FLOAT32 || dtype == PYGPT_BFLOAT16)) {
        return PYGPT_OK;
    }
    return fail(PYGPT_ERROR_ARGUMENT, "kernels %d with dtype %d are not in this library", kernels, dtype);
}

int check_options(const GPT2Options *options) {
    int status = check_kernels(options->kernels, options->dtype);
    if (status == PYGPT_OK && (options->recompute < PYGPT_KEEP_ALL || options->recompute > PYGPT_RECOMPUTE_BLOCK)) {
        status = fail(PYGPT_ERROR_ARGUMENT, "recompute is %d, expected 0, 1 or 2", options->recompute);
    }
    return status;
}

int check_tokens_shape(const GPT2Config *config, int64_t B, int64_t T) {
    if (B >= 1 && T >= 1 && T <= config->n_positions && checked_mul(B, T) >= 0) return PYGPT_OK;
    return fail(PYGPT_ERROR_ARGUMENT,
                "tokens have shape (%" PRId64 ", %" PRId64 "), expected (B, T) with B >= 1 and 1 <= T <= %" PRId64, B,
                T, config->n_positions);
}

int check_logits(int64_t first, int64_t count, int64_t N) {
    if (N > 0 && first >= 0 && count >= 0 && first <= N - count) return PYGPT_OK;
    return fail(PYGPT_ERROR_ARGUMENT,
                "%" PRId64 " rows of the logits from row %" PRId64
                " on were asked for, but the latest forward pass has %" PRId64,
                count, first, N);
}

int check_attention(const GPT2Config *config, const GPT2Options *options, int64_t layer, int64_t B, int64_t T,
                    int64_t size) {
    if (B == 0 || layer < 0 || layer >= config->n_layer) {
        return fail(PYGPT_ERROR_ARGUMENT,
                    "attention of layer %" PRId64 " was asked for, expected 0 ... %" PRId64 " after a forward pass",
                    layer, config->n_layer - 1);
    }
    if (options->recompute == PYGPT_RECOMPUTE_BLOCK) {
        return fail(PYGPT_ERROR_ARGUMENT,
                    "attention probabilities need recompute \"none\" or \"cheap\", this model has \"block\"");
    }
    if (size == checked_mul(checked_mul(B, config->n_head), checked_mul(T, T))) return PYGPT_OK;
    return fail(PYGPT_ERROR_ARGUMENT,
                "room for %" PRId64 " attention probabilities was given, but the latest forward pass has B = %" PRId64
                " and T = %" PRId64,
                size, B, T);
}

int check_step(int64_t step) {
    if (step >= 1) return PYGPT_OK;
    return fail(PYGPT_ERROR_ARGUMENT, "AdamW's step is %" PRId64 ", expected 1 or more", step);
}

int fail_token(int32_t token, int64_t n, int64_t T, int64_t V) {
    return fail(PYGPT_ERROR_ARGUMENT, "token %d at row %" PRId64 ", position %" PRId64 ", expected 0 ... %" PRId64,
                token, n / T, n % T, V - 1);
}

int fail_target(int32_t target, int64_t n, int64_t T, int64_t V) {
    return fail(PYGPT_ERROR_ARGUMENT, "target %d at row %" PRId64 ", position %" PRId64 ", expected at most %" PRId64,
                target, n / T, n % T, V - 1);
}

int fail_no_loss(void) {
    return fail(PYGPT_ERROR_ARGUMENT, "the backward pass needs a forward pass with targets before it");
}
