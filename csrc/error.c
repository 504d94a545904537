/* The sentence of the latest failure, one for each thread. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

static _Thread_local char sentence[512];
static _Thread_local char handed_out[512];

int fail(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    return code;
}

const char *pygpt_last_error(void) {
    memcpy(handed_out, sentence, sizeof sentence);
    sentence[0] = '\0';
    return handed_out;
}
