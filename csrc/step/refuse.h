/* What is wrong with the command line or a file, as one sentence. */
#ifndef PYGPT_STEP_REFUSE_H
#define PYGPT_STEP_REFUSE_H

/* Keeps the sentence and returns an error code, so that a function ends with `return refuse(...)`. */
int refuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The latest sentence, with everything beyond printable ASCII as '?': a path may hold anything. */
const char *refusal(void);

#endif
