/* A regular file of known size, read in pieces. */
#ifndef PYGPT_STEP_FILE_H
#define PYGPT_STEP_FILE_H

#include <stdint.h>
#include <stdio.h>

typedef struct {
    const char *path;   // the caller's
    FILE *stream;
    int64_t size;
} File;

int file_open(File *file, const char *path);   // on failure there is nothing to close
int file_read(File *file, void *to, int64_t offset, int64_t bytes);
void file_close(File *file);

#endif
