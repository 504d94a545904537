/* As much of cuBLASLt as cuda/matmul_cublaslt.cu uses, with plain loops: float32, and GELU_AUX as the only epilogue. A test
 * says in `offered` which algorithms there are, and how long each takes by the clock that events read here. */
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS,
    CUBLAS_STATUS_ALLOC_FAILED,
    CUBLAS_STATUS_INVALID_VALUE,
    CUBLAS_STATUS_NOT_SUPPORTED
};
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cudaDataType_t { CUDA_R_32F, CUDA_R_16BF };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F };
enum cublasLtEpilogue_t {
    CUBLASLT_EPILOGUE_DEFAULT,
    CUBLASLT_EPILOGUE_BIAS,
    CUBLASLT_EPILOGUE_GELU_AUX,
    CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
    CUBLASLT_EPILOGUE_DGELU
};
enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_TRANSA,
    CUBLASLT_MATMUL_DESC_TRANSB,
    CUBLASLT_MATMUL_DESC_EPILOGUE,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE
};
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES
};
enum cublasLtMatmulAlgoConfigAttributes_t {
    CUBLASLT_ALGO_CONFIG_ID,
    CUBLASLT_ALGO_CONFIG_TILE_ID,
    CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
    CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
    CUBLASLT_ALGO_CONFIG_STAGES_ID
};
enum { CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2 };

/* ---- what a test says and asks ---- */

struct Algorithm {
    uint32_t id;
    double milliseconds;
    enum Kind { plain, backwards, other_aux, fails } kind;   // backwards: sums from the last k on
};
inline std::vector<Algorithm> offered;
inline bool offers_epilogues = true;
inline uint32_t latest;   // algorithm that was launched
inline double now;   // milliseconds

inline std::map<cudaEvent_t, double> recorded;
inline cudaError_t record(cudaEvent_t event, cudaStream_t) {
    recorded[event] = now;
    return cudaSuccess;
}
inline cudaError_t elapsed_time(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = static_cast<float>(recorded[end] - recorded[start]);
    return cudaSuccess;
}
#define cudaEventRecord record
#define cudaEventElapsedTime elapsed_time

/* ---- the library ---- */

struct Operation {
    cublasOperation_t transpose[2] = {};
    cublasLtEpilogue_t epilogue = {};
    float *aux = nullptr;
};
struct Layout {
    uint64_t rows, columns;
    int64_t stride;
};
using cublasLtHandle_t = int *;
using cublasLtMatmulDesc_t = Operation *;
using cublasLtMatrixLayout_t = Layout *;
using cublasLtMatmulPreference_t = int *;
using cublasLtMatmulAlgo_t = Algorithm;
struct cublasLtMatmulHeuristicResult_t {
    Algorithm algo;
    size_t workspaceSize;
    cublasStatus_t state;
};

template <class T, class... Values> cublasStatus_t make(T **made, Values... values) {
    *made = new T{values...};
    return CUBLAS_STATUS_SUCCESS;
}
template <class T> cublasStatus_t unmake(T *made) {
    delete made;
    return CUBLAS_STATUS_SUCCESS;
}

inline const char *cublasLtGetStatusString(cublasStatus_t) {
    return "not supported";
}
inline cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    return make(handle);
}
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    return unmake(handle);
}
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *operation, cublasComputeType_t, cudaDataType_t) {
    return make(operation);
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
    return unmake(operation);
}
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation,
                                                     cublasLtMatmulDescAttributes_t which, const void *value,
                                                     size_t n) {
    if (which == CUBLASLT_MATMUL_DESC_TRANSA) memcpy(&operation->transpose[0], value, n);
    if (which == CUBLASLT_MATMUL_DESC_TRANSB) memcpy(&operation->transpose[1], value, n);
    if (which == CUBLASLT_MATMUL_DESC_EPILOGUE) memcpy(&operation->epilogue, value, n);
    if (which == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER) memcpy(&operation->aux, value, n);
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t, int64_t rows,
                                                 int64_t columns, int64_t stride) {
    return make(layout, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns), stride);
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    return unmake(layout);
}
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    return make(preference);
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    return unmake(preference);
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t,
                                                           cublasLtMatmulPreferenceAttributes_t, const void *, size_t) {
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const Algorithm *algorithm,
                                                           cublasLtMatmulAlgoConfigAttributes_t which, void *value,
                                                           size_t n, size_t *written) {
    const uint32_t found = which == CUBLASLT_ALGO_CONFIG_ID ? algorithm->id : 0;
    memcpy(value, &found, *written = n);
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t operation,
                                                     cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                     cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                     cublasLtMatmulPreference_t, int most,
                                                     cublasLtMatmulHeuristicResult_t *results, int *count) {
    *count = 0;
    if (operation->epilogue != CUBLASLT_EPILOGUE_DEFAULT && !offers_epilogues) return CUBLAS_STATUS_NOT_SUPPORTED;
    for (const Algorithm &algorithm : offered)
        if (*count < most) results[(*count)++] = {algorithm, 0, CUBLAS_STATUS_SUCCESS};
    return CUBLAS_STATUS_SUCCESS;
}

/* Columns: element (i,j) of a matrix is at i + j * stride. */
inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation, const float *alpha,
                                     const void *a, cublasLtMatrixLayout_t at, const void *b, cublasLtMatrixLayout_t bt,
                                     const float *beta, const void *c, cublasLtMatrixLayout_t ct, void *d,
                                     cublasLtMatrixLayout_t dt, const Algorithm *algorithm, void *, size_t,
                                     cudaStream_t) {
    if (algorithm->kind == Algorithm::fails) return CUBLAS_STATUS_NOT_SUPPORTED;
    const auto element = [](const void *p, const Layout *layout, uint64_t i, uint64_t j) {
        return static_cast<const float *>(p)[i + j * static_cast<uint64_t>(layout->stride)];
    };
    const bool ta = operation->transpose[0] == CUBLAS_OP_T, tb = operation->transpose[1] == CUBLAS_OP_T;
    const uint64_t K = ta ? at->rows : at->columns;
    for (uint64_t j = 0; j < dt->columns; j++)
        for (uint64_t i = 0; i < dt->rows; i++) {
            float x = 0;
            for (uint64_t step = 0; step < K; step++) {
                const uint64_t k = algorithm->kind == Algorithm::backwards ? K - 1 - step : step;
                x += (ta ? element(a, at, k, i) : element(a, at, i, k)) *
                     (tb ? element(b, bt, j, k) : element(b, bt, k, j));
            }
            x *= *alpha;
            if (*beta != 0) x += *beta * element(c, ct, i, j);
            const uint64_t to = i + j * static_cast<uint64_t>(dt->stride);
            if (operation->epilogue == CUBLASLT_EPILOGUE_GELU_AUX) {
                operation->aux[to] = algorithm->kind == Algorithm::other_aux ? x + 1 : x;
                x = std::fmax(x, 0.0f);   // for GELU
            }
            static_cast<float *>(d)[to] = x;
        }
    now += algorithm->milliseconds;
    latest = algorithm->id;
    return CUBLAS_STATUS_SUCCESS;
}
