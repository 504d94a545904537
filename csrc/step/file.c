#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "refuse.h"

int file_open(File *file, const char *path) {
    *file = (File){.path = path};
    struct stat status;
    int code = 0, number = open(path, O_RDONLY | O_NONBLOCK);   // without waiting for whoever writes to a pipe
    int found = number >= 0 && fstat(number, &status) == 0;
    if (found && !S_ISREG(status.st_mode)) {
        code = refuse("%s: is not a file", path);
    } else if (!found || !(file->stream = fdopen(number, "rb"))) {
        code = refuse("%s: cannot be read: %s", path, strerror(errno));
    }
    if (code) {
        if (number >= 0) close(number);
        file_close(file);
        return code;
    }
    file->size = status.st_size;
    return 0;
}

int file_read(File *file, void *to, int64_t offset, int64_t bytes) {
    errno = 0;
    if (fseeko(file->stream, offset, SEEK_SET) == 0 && fread(to, 1, (size_t)bytes, file->stream) == (size_t)bytes) {
        return 0;
    }
    return refuse("%s: cannot be read: %s", file->path, errno ? strerror(errno) : "it became shorter");
}

void file_close(File *file) {
    if (file->stream) fclose(file->stream);
    *file = (File){0};
}
