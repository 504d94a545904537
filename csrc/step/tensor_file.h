/* Named tensors in a safetensors file: 8 bytes with the length of the header, a JSON header with the name, dtype, shape
 * and place of each tensor, and the tensors' bytes without gaps (https://huggingface.co/docs/safetensors). */
#ifndef PYGPT_STEP_TENSOR_FILE_H
#define PYGPT_STEP_TENSOR_FILE_H

#include "file.h"

typedef struct {
    char name[96];   // without the prefix `transformer.`
    char dtype[8];
    int32_t ndim;
    int64_t shape[4];
    int64_t size;   // product of the shape
    int64_t offset, bytes;   // in the file
} StoredTensor;

typedef struct {
    File file;
    StoredTensor *tensors;   // sorted by name
    int64_t count;
} TensorFile;

/* Reads and checks the header; what is allocated is bounded by the size of the file. */
int tensor_file_open(TensorFile *file, const char *folder, const char *name);
const StoredTensor *tensor_file_find(const TensorFile *file, const char *name);   // NULL if it is not there
int tensor_is_readable(const StoredTensor *tensor);   // F32, F16 or BF16
int tensor_file_read(TensorFile *file, const StoredTensor *tensor, float *values);
void tensor_file_close(TensorFile *file);

#endif
