#include "refuse.h"

#include <stdarg.h>
#include <stdio.h>

#include "../pygpt.h"

static char sentence[1024];

int refuse(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    for (char *c = sentence; *c; c++) {
        if (*c < ' ' || *c > '~') *c = '?';
    }
    return PYGPT_ERROR_FILE;
}

const char *refusal(void) {
    return sentence;
}
