#include "options.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../pygpt.h"
#include "refuse.h"

static const Options DEFAULTS = {
    .batch_size = 4,
    .seq_len = 64,
    .steps = 10,
    .learning_rate = 1e-4,
    .beta1 = 0.9,
    .beta2 = 0.999,
    .weight_decay = 0.01,
    .kernels = PYGPT_PLAIN,
};

typedef enum { TEXT, INTEGER, NUMBER, CHOICE, SWITCH } Kind;

typedef struct {
    const char *name, *argument;   // argument: "" of a switch; the words of a choice in the order of their values
    Kind kind;
    size_t field;
    double low, below;   // low <= value < below
    const char *help;
} Flag;

#define FIELD(name) offsetof(Options, name)

static const Flag FLAGS[] = {
    {"--model", "FILE", TEXT, FIELD(model), 0, 0, "model file (.bin) in llm.c's format"},
    {"--tokens", "FILE", TEXT, FIELD(tokens), 0, 0, "token file (.bin) in llm.c's format"},
    {"--batch-size", "B", INTEGER, FIELD(batch_size), 1, INT32_MAX, "sequences in a batch (4)"},
    {"--seq-len", "T", INTEGER, FIELD(seq_len), 1, INT32_MAX, "tokens in a sequence (64)"},
    {"--steps", "N", INTEGER, FIELD(steps), 1, INT32_MAX, "forward pass, backward pass and update, N times (10)"},
    {"--same-batch", "", SWITCH, FIELD(same_batch), 0, 0, "train on the first batch again and again"},
    {"--learning-rate", "X", NUMBER, FIELD(learning_rate), 0, FLT_MAX, "of AdamW (1e-4)"},
    {"--beta1", "X", NUMBER, FIELD(beta1), 0, 1, "AdamW's decay of the first moment (0.9)"},
    {"--beta2", "X", NUMBER, FIELD(beta2), 0, 1, "AdamW's decay of the second moment (0.999)"},
    {"--weight-decay", "X", NUMBER, FIELD(weight_decay), 0, FLT_MAX, "AdamW's decay of matrices (0.01)"},
    {"--dropout", "P", NUMBER, FIELD(dropout), 0, 1, "probability of dropping, whatever the model says (0)"},
    {"--seed", "N", INTEGER, FIELD(seed), 0, INT32_MAX, "of dropout (0)"},
    {"--kernels", "plain|fast", CHOICE, FIELD(kernels), 0, 0, "plain: the code to read and step through (plain)"},
    {"--dtype", "float32|bfloat16", CHOICE, FIELD(dtype), 0, 0, "operands of matrix products (float32)"},
    {"--recompute", "none|cheap|block", CHOICE, FIELD(recompute), 0, 0, "computed again in the backward pass (none)"},
    {"--threads", "N", INTEGER, FIELD(threads), 1, 4096, "of the processor (all)"},
    {"--help", "", SWITCH, FIELD(help), 0, 0, "print this"},
};

enum { FLAG_COUNT = sizeof FLAGS / sizeof *FLAGS };

static int read_integer(int64_t *value, const Flag *flag, const char *text) {
    char *end;
    errno = 0;
    *value = strtoll(text, &end, 10);
    if (end != text && !*end && errno == 0 && *value >= (int64_t)flag->low && *value < (int64_t)flag->below) return 0;
    return refuse("%s is %s, expected an integer from %.0f to %.0f", flag->name, text, flag->low, flag->below - 1);
}

static int read_number(double *value, const Flag *flag, const char *text) {
    char *end;
    *value = strtod(text, &end);
    /* what AdamW and dropout see is the float */
    if (end != text && !*end && *value >= flag->low && (float)*value < flag->below) return 0;
    return refuse("%s is %s, expected a number from %g to below %g", flag->name, text, flag->low, flag->below);
}

static int read_choice(int64_t *value, const Flag *flag, const char *text) {
    size_t length = strlen(text);
    *value = 0;
    for (const char *word = flag->argument;; (*value)++) {
        size_t size = strcspn(word, "|");
        if (size == length && memcmp(word, text, size) == 0) return 0;
        if (!word[size]) break;
        word += size + 1;
    }
    return refuse("%s is %s, expected one of %s", flag->name, text, flag->argument);
}

static int read_value(Options *options, const Flag *flag, const char *text) {
    void *field = (char *)options + flag->field;
    switch (flag->kind) {
    case INTEGER: return read_integer(field, flag, text);
    case NUMBER: return read_number(field, flag, text);
    case CHOICE: return read_choice(field, flag, text);
    case SWITCH: *(int64_t *)field = 1; return 0;
    default: *(const char **)field = text; return 0;
    }
}

int options_parse(Options *options, int argc, char **argv) {
    *options = DEFAULTS;
    for (int i = 1; i < argc; i++) {
        size_t length = strcspn(argv[i], "=");
        const char *text = argv[i][length] ? argv[i] + length + 1 : NULL;
        const Flag *flag = NULL;
        for (int j = 0; j < FLAG_COUNT; j++) {
            if (strlen(FLAGS[j].name) == length && memcmp(FLAGS[j].name, argv[i], length) == 0) flag = &FLAGS[j];
        }
        if (!flag) return refuse("%s is not a flag of pygpt-step; --help lists them", argv[i]);
        if (flag->kind == SWITCH && text) return refuse("%s takes no value", flag->name);
        if (flag->kind != SWITCH && !text) {
            if (++i == argc) return refuse("%s expects a value", flag->name);
            text = argv[i];
        }
        int status = read_value(options, flag, text);
        if (status) return status;
    }
    if (options->help) return 0;
    if (!options->model) return refuse("--model FILE is missing");
    return options->tokens ? 0 : refuse("--tokens FILE is missing");
}

void options_print_help(void) {
    printf("pygpt-step: train a GPT-2 for some steps, without Python: for a debugger\n\n");
    for (int i = 0; i < FLAG_COUNT; i++) {
        int used = printf("  %s %s", FLAGS[i].name, FLAGS[i].argument);
        printf("%*s%s\n", used < 32 ? 32 - used : 1, "", FLAGS[i].help);
    }
}
