#include "tensor_file.h"

#include <stdlib.h>
#include <string.h>

#include "../divides_work.h"
#include "json.h"
#include "refuse.h"

static const char PREFIX[] = "transformer.";
enum { LARGEST_HEADER = 1 << 24, CHUNK = DIVIDES_WORK(1 << 14, 10) };   // bytes, values

/* What is known of dtypes. Those that are not floats are the mask buffers of old files. */
static const struct {
    const char *name;
    int64_t bytes;
} DTYPES[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8}, {"U8", 1}, {"BOOL", 1}};

/* ---- the header ---- */

static int read_dtype(StoredTensor *tensor, int64_t *bytes, JsonValue value, const File *file) {
    if (!json_string(value, tensor->dtype, sizeof tensor->dtype)) tensor->dtype[0] = '\0';
    for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++) {
        if (strcmp(tensor->dtype, DTYPES[i].name) == 0) {
            *bytes = DTYPES[i].bytes;
            return 0;
        }
    }
    return refuse("%s: tensor %s has dtype %.*s, expected F32, F16 or BF16", file->path, tensor->name,
                  value.size < 60 ? (int)value.size : 60, value.text);
}

static int read_shape(StoredTensor *tensor, JsonValue value, const File *file) {
    tensor->size = 1;
    JsonValue rest = json_inside(value), element;
    while (json_is_array(value) && json_next(&rest, NULL, &element)) {
        int64_t length;
        if (tensor->ndim == 4) return refuse("%s: tensor %s has more than 4 axes", file->path, tensor->name);
        if (!json_integer(element, &length) || length < 0 ||
            __builtin_mul_overflow(tensor->size, length, &tensor->size)) {
            return refuse("%s: the shape of tensor %s is not one of sizes within 64 bits", file->path, tensor->name);
        }
        tensor->shape[tensor->ndim++] = length;
    }
    return json_is_array(value) ? 0 : refuse("%s: tensor %s has no shape", file->path, tensor->name);
}

static int read_place(StoredTensor *tensor, int64_t bytes_each, JsonValue value, const File *file, int64_t data) {
    int64_t place[2], bytes;
    int count = 0;
    JsonValue rest = json_inside(value), element;
    while (json_is_array(value) && json_next(&rest, NULL, &element)) {
        if (count == 2 || !json_integer(element, &place[count++])) count = 3;
        if (count == 3) break;
    }
    if (count != 2) return refuse("%s: tensor %s has no two data_offsets", file->path, tensor->name);
    if (place[0] < 0 || place[1] < place[0] || place[1] > file->size - data) {
        return refuse("%s: tensor %s lies at bytes %lld ... %lld of the data, expected a place within %lld bytes",
                      file->path, tensor->name, (long long)place[0], (long long)place[1],
                      (long long)(file->size - data));
    }
    tensor->offset = data + place[0];
    tensor->bytes = place[1] - place[0];
    if (__builtin_mul_overflow(tensor->size, bytes_each, &bytes) || bytes != tensor->bytes) {
        return refuse("%s: tensor %s has %lld values of %lld bytes, but %lld bytes of the data", file->path,
                      tensor->name, (long long)tensor->size, (long long)bytes_each, (long long)tensor->bytes);
    }
    return 0;
}

static int read_tensor(StoredTensor *tensor, JsonValue name, JsonValue value, const File *file, int64_t data) {
    char full_name[sizeof PREFIX + sizeof tensor->name];
    JsonValue dtype, shape, place;
    int64_t bytes_each = 0;
    if (!json_string(name, full_name, sizeof full_name)) full_name[0] = '\0';
    const char *bare = strncmp(full_name, PREFIX, strlen(PREFIX)) == 0 ? full_name + strlen(PREFIX) : full_name;
    if (!*bare || strlen(bare) >= sizeof tensor->name) {
        return refuse("%s: a tensor is called %.*s, expected a name of 1 to %zu characters", file->path,
                      name.size < 100 ? (int)name.size : 100, name.text, sizeof tensor->name - 1);
    }
    strcpy(tensor->name, bare);
    if (!json_is_object(value) || !json_member(value, "dtype", &dtype) || !json_member(value, "shape", &shape) ||
        !json_member(value, "data_offsets", &place)) {
        return refuse("%s: tensor %s has no dtype, shape and data_offsets", file->path, tensor->name);
    }
    int status = read_dtype(tensor, &bytes_each, dtype, file);
    if (status == 0) status = read_shape(tensor, shape, file);
    return status ? status : read_place(tensor, bytes_each, place, file, data);
}

static int by_place(const void *a, const void *b) {
    const StoredTensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);   // an empty tensor before the one that begins where it lies
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const StoredTensor *)a)->name, ((const StoredTensor *)b)->name);
}

/* The data belong to one tensor each, without gaps; and no name is there twice. */
static int check_together(TensorFile *f, int64_t data) {
    int64_t end = data;
    qsort(f->tensors, (size_t)f->count, sizeof *f->tensors, by_place);
    for (int64_t i = 0; i < f->count; i++) {
        const StoredTensor *tensor = &f->tensors[i];
        if (tensor->offset != end) {
            return refuse("%s: tensor %s begins at byte %lld of the data, expected %lld, where the one before it ends",
                          f->file.path, tensor->name, (long long)(tensor->offset - data), (long long)(end - data));
        }
        end += tensor->bytes;
    }
    if (end != f->file.size) {
        return refuse("%s: the tensors take %lld bytes, but the file has %lld after its header", f->file.path,
                      (long long)(end - data), (long long)(f->file.size - data));
    }
    qsort(f->tensors, (size_t)f->count, sizeof *f->tensors, by_name);
    for (int64_t i = 1; i < f->count; i++) {
        if (by_name(&f->tensors[i - 1], &f->tensors[i]) == 0) {
            return refuse("%s: tensor %s is there twice", f->file.path, f->tensors[i].name);
        }
    }
    return 0;
}

static int read_header(TensorFile *f, char *text, int64_t size) {
    JsonValue object, rest, name, value;
    size_t place;
    int status = file_read(&f->file, text, 8, size);
    if (status) return status;
    const char *wrong = json_parse(&object, text, (size_t)size, &place);
    if (wrong) return refuse("%s: the header is not JSON: %s at byte %zu", f->file.path, wrong, place);
    if (!json_is_object(object)) return refuse("%s: the header is not a JSON object", f->file.path);

    int64_t members = 0;
    for (rest = json_inside(object); json_next(&rest, &name, &value);) members++;
    f->tensors = calloc((size_t)members + 1, sizeof *f->tensors);
    if (!f->tensors) return refuse("%s: no memory for a list of %lld tensors", f->file.path, (long long)members);
    for (rest = json_inside(object); json_next(&rest, &name, &value) && status == 0;) {
        if (json_is(name, "\"__metadata__\"")) continue;
        status = read_tensor(&f->tensors[f->count++], name, value, &f->file, 8 + size);
    }
    return status ? status : check_together(f, 8 + size);
}

int tensor_file_open(TensorFile *f, const char *folder, const char *name) {
    *f = (TensorFile){0};
    int status = file_open(&f->file, folder, name);
    if (status) return status;

    unsigned char length[8] = {0};
    uint64_t size = 0;
    char *text = NULL;
    if (f->file.size >= 8) status = file_read(&f->file, length, 0, 8);
    for (int i = 7; i >= 0; i--) size = size << 8 | length[i];
    if (status == 0) {
        if (f->file.size < 8 || size > (uint64_t)f->file.size - 8) {
            status = refuse("%s: is truncated: %lld bytes, expected a header of %llu bytes after the first 8",
                            f->file.path, (long long)f->file.size, (unsigned long long)size);
        } else if (size > LARGEST_HEADER) {
            status = refuse("%s: has a header of %llu bytes, expected at most %d", f->file.path,
                            (unsigned long long)size, LARGEST_HEADER);
        } else if (!(text = malloc((size_t)size + 1))) {
            status = refuse("%s: no memory for a header of %llu bytes", f->file.path, (unsigned long long)size);
        } else {
            status = read_header(f, text, (int64_t)size);
        }
    }
    free(text);
    if (status) tensor_file_close(f);
    return status;
}

void tensor_file_close(TensorFile *f) {
    free(f->tensors);
    file_close(&f->file);
    *f = (TensorFile){0};
}

/* ---- the tensors ---- */

const StoredTensor *tensor_file_find(const TensorFile *f, const char *name) {
    StoredTensor wanted;
    snprintf(wanted.name, sizeof wanted.name, "%s", name);
    return bsearch(&wanted, f->tensors, (size_t)f->count, sizeof wanted, by_name);
}

int tensor_is_readable(const StoredTensor *tensor) {
    return strcmp(tensor->dtype, "F32") == 0 || strcmp(tensor->dtype, "F16") == 0 || strcmp(tensor->dtype, "BF16") == 0;
}

static float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* 1 sign, 5 exponent and 10 mantissa bits (IEEE 754 binary16) */
static float from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half >> 15) << 31, exponent = half >> 10 & 31, mantissa = half & 1023;
    if (exponent == 31) return from_bits(sign | 255u << 23 | mantissa << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)mantissa * 0x1p-24f;
    return from_bits(sign | (exponent + 127 - 15) << 23 | mantissa << 13);
}

int tensor_file_read(TensorFile *f, const StoredTensor *tensor, float *values) {
    if (strcmp(tensor->dtype, "F32") == 0) return file_read(&f->file, values, tensor->offset, tensor->bytes);
    int is_half = strcmp(tensor->dtype, "F16") == 0;
    uint16_t chunk[CHUNK];
    for (int64_t first = 0; first < tensor->size; first += CHUNK) {
        int64_t count = tensor->size - first < CHUNK ? tensor->size - first : CHUNK;
        int status = file_read(&f->file, chunk, tensor->offset + 2 * first, 2 * count);
        if (status) return status;
        for (int64_t i = 0; i < count; i++) {
            values[first + i] = is_half ? from_half(chunk[i]) : from_bits((uint32_t)chunk[i] << 16);
        }
    }
    return 0;
}
