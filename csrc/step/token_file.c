#include "token_file.h"

#include "../divides_work.h"
#include "refuse.h"

enum { HEADER = 256, MAGIC = 20240520, VERSION = 1, CHUNK = DIVIDES_WORK(1 << 14, 10) };

int token_file_open(TokenFile *t, const char *path) {
    int32_t header[HEADER];
    int64_t data;
    *t = (TokenFile){0};
    int status = file_open(&t->file, path);
    if (status) return status;
    data = t->file.size - (int64_t)sizeof header;
    if (data < 0) {
        status = refuse("%s: has %lld bytes, expected a header of %zu", path, (long long)t->file.size, sizeof header);
    } else if ((status = file_read(&t->file, header, 0, sizeof header)) == 0) {
        t->count = header[2];
        if (header[0] != MAGIC) {
            status = refuse("%s: begins with %d, expected %d: it is not a token file", path, header[0], MAGIC);
        } else if (header[1] != VERSION) {
            status = refuse("%s: is a token file of version %d, expected %d", path, header[1], VERSION);
        } else if (t->count < 0 || data != 2 * t->count) {
            status = refuse("%s: the header says %lld tokens of 2 bytes, but %lld bytes follow it", path,
                            (long long)t->count, (long long)data);
        }
    }
    if (status) token_file_close(t);
    return status;
}

void token_file_close(TokenFile *t) {
    file_close(&t->file);
    *t = (TokenFile){0};
}

int token_file_batch(TokenFile *t, int32_t *batch, int64_t B, int64_t T, int64_t number, int64_t vocab_size) {
    uint16_t chunk[CHUNK];
    int64_t size;
    if (__builtin_mul_overflow(B, T, &size) || size >= t->count) {
        return refuse("%s: holds %lld tokens, too few for one batch of %lld x %lld and the token after it",
                      t->file.path, (long long)t->count, (long long)B, (long long)T);
    }
    int64_t start = number % ((t->count - 1) / size) * size;
    for (int64_t first = 0; first <= size; first += CHUNK) {
        int64_t count = size + 1 - first < CHUNK ? size + 1 - first : CHUNK;
        int status = file_read(&t->file, chunk, (int64_t)sizeof(int32_t[HEADER]) + 2 * (start + first), 2 * count);
        if (status) return status;
        for (int64_t i = 0; i < count; i++) {
            if (chunk[i] >= vocab_size) {
                return refuse("%s: token %lld is %d, expected 0 ... %lld, the vocabulary of the model", t->file.path,
                              (long long)(start + first + i), chunk[i], (long long)vocab_size - 1);
            }
            batch[first + i] = chunk[i];
        }
    }
    return 0;
}
