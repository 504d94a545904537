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
    const struct {
        const char *name;
        int32_t value, last;
    } variations[] = {{"activation_function", c->activation_function, PYGPT_RELU},
                      {"position_embedding", c->position_embedding, PYGPT_NO_POSITIONS},
                      {"bias", c->bias, PYGPT_NO_BIAS},
                      {"tie_word_embeddings", c->tie_word_embeddings, PYGPT_UNTIED},
                      {"causal", c->causal, PYGPT_BIDIRECTIONAL},
                      {"scale_attn_weights", c->scale_attn_weights, PYGPT_UNSCALED},
                      {"scale_attn_by_inverse_layer_idx", c->scale_attn_by_inverse_layer_idx, PYGPT_INVERSE_LAYER},
                      {"norm_position", c->norm_position, PYGPT_POST_NORM}};
    for (size_t i = 0; i < sizeof variations / sizeof *variations; i++) {
        if (variations[i].value < 0 || variations[i].value > variations[i].last) {
            return fail(PYGPT_ERROR_ARGUMENT, "%s is %" PRId32 ", expected 0 ... %" PRId32, variations[i].name,
                        variations[i].value, variations[i].last);
        }
    }
    if (c->position_embedding == PYGPT_ROTARY && c->n_embd / c->n_head % 2 != 0) {
        return fail(PYGPT_ERROR_ARGUMENT,
                    "rotary positions need an even head size, but n_embd / n_head is %" PRId64 " / %" PRId64, c->n_embd,
                    c->n_head);
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
    return fail(PYGPT_ERROR_ARGUMENT, "the optimizer's step is %" PRId64 ", expected 1 or more", step);
}

int64_t copies_of_weights(int purpose) {
    static const int64_t copies[] = {
        [PYGPT_INFERENCE] = 1, [PYGPT_ADAMW] = 4, [PYGPT_SGD] = 2, [PYGPT_MOMENTUM] = 3, [PYGPT_MUON] = 3};
    return purpose >= PYGPT_INFERENCE && purpose <= PYGPT_MUON ? copies[purpose] : -1;
}

int check_generator(const GPT2Config *config, int weights, int cache, int64_t B, int64_t positions) {
    if (check_config(config) != PYGPT_OK) return PYGPT_ERROR_ARGUMENT;
    if (!is_causal(config))
        return fail(PYGPT_ERROR_ARGUMENT,
                    "a model with causal = false does not generate: it looks at what comes after");
    if (weights < PYGPT_FLOAT32 || weights > PYGPT_INT4 || (cache != PYGPT_FLOAT32 && cache != PYGPT_BFLOAT16)) {
        return fail(PYGPT_ERROR_ARGUMENT, "weights of type %d with a cache of type %d are not in this library", weights,
                    cache);
    }
    if (B < 1 || positions < 1 || positions > config->n_positions || checked_mul(B, positions) < 0) {
        return fail(PYGPT_ERROR_ARGUMENT,
                    "a generator of %" PRId64 " sequences of %" PRId64
                    " positions was asked for, expected at least 1, and at most %" PRId64 " positions",
                    B, positions, config->n_positions);
    }
    return PYGPT_OK;
}

int check_scales(const GPT2Config *config, int weights, int64_t block, int number, int64_t size) {
    int64_t C = config->n_embd;
    const int64_t sizes[] = {3 * C * C, C * C, C * config->n_inner, config->n_inner * C};
    if (weights != PYGPT_INT8 && weights != PYGPT_INT4)
        return fail(PYGPT_ERROR_ARGUMENT, "only weights of 8 or 4 bits have scales");
    if (block < 0 || block >= config->n_layer || number < 0 || number > 3)
        return fail(PYGPT_ERROR_ARGUMENT, "there is no linear layer %d in block %" PRId64, number, block);
    if (size == sizes[number]) return PYGPT_OK;
    return fail(PYGPT_ERROR_ARGUMENT, "%" PRId64 " weights were given, expected %" PRId64, size, sizes[number]);
}

int check_feed(const GPT2Config *config, const int64_t *have, int64_t B, int64_t positions, const int32_t *tokens,
               const int64_t *lengths, int64_t *count) {
    *count = 0;
    for (int64_t b = 0; b < B; b++) {
        if (lengths[b] < 0 || lengths[b] > positions - have[b]) {
            return fail(PYGPT_ERROR_ARGUMENT,
                        "sequence %" PRId64 " has %" PRId64 " tokens, and %" PRId64
                        " more were to be appended, but there are %" PRId64 " positions",
                        b, have[b], lengths[b], positions);
        }
        for (int64_t i = 0; i < lengths[b]; i++) {
            int32_t token = tokens[*count + i];
            if (token < 0 || token >= config->vocab_size) {
                return fail(PYGPT_ERROR_ARGUMENT,
                            "token %" PRId32 " of sequence %" PRId64
                            " is outside the vocabulary, expected 0 ... %" PRId64,
                            token, b, config->vocab_size - 1);
            }
        }
        *count += lengths[b];
    }
    return PYGPT_OK;
}

int check_rewind(const int64_t *have, int64_t B, const int64_t *lengths) {
    for (int64_t b = 0; b < B; b++) {
        if (lengths[b] < 0 || lengths[b] > have[b]) {
            return fail(PYGPT_ERROR_ARGUMENT,
                        "sequence %" PRId64 " was to keep %" PRId64 " tokens, but it has %" PRId64, b, lengths[b],
                        have[b]);
        }
    }
    return PYGPT_OK;
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
