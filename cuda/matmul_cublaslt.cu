/* Matrix products through cuBLASLt.
 *
 * cuBLASLt thinks in columns: a row-major c = op(a) op(b) is to it cᵀ = op(b)ᵀ op(a)ᵀ, so b comes first, and what it
 * calls a column vector of m values runs along our N. */
#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "common.cuh"
#include "matmul.cuh"
#include "matmul_epilogue.cuh"

namespace {

constexpr size_t workspace_bytes = size_t{32} << 20;
constexpr int most_candidates = 8;
constexpr int timed_runs = 5;

struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
    bool fused = false;   // its epilogue
    bool timed = false;
};

/* Everything that the choice of an algorithm may depend on. */
using Key = std::tuple<int64_t, int64_t, int64_t, unsigned>;

unsigned alignment_of(const void *p) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    return address % 16 == 0 ? 16 : address % 4 == 0 ? 4 : 2;
}

unsigned alignment_of(const Matmul &m) {
    return std::min({alignment_of(m.a), alignment_of(m.b), alignment_of(m.c), alignment_of(m.bias),
                     alignment_of(m.pre_gelu), alignment_of(m.dgelu)});
}

Key key_of(const Matmul &m) {
    const bool flags[] = {
        m.transpose_a, m.transpose_b,     m.ab_type == DataType::bfloat16, m.c_type == DataType::bfloat16,
        m.accumulate,  m.bias != nullptr, m.pre_gelu != nullptr,           m.dgelu != nullptr};
    unsigned bits = alignment_of(m);
    for (const bool flag : flags) bits = bits << 1 | flag;
    return {m.M, m.N, m.K, bits};
}

cudaDataType_t cuda_type(DataType type) {
    return type == DataType::float32 ? CUDA_R_32F : CUDA_R_16BF;
}

template <class T> __global__ void count_differences(int *differences, const T *a, const T *b, int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n && a[i] != b[i]) atomicAdd(differences, 1);
}

} // namespace

struct MatmulContext {
    cublasLtHandle_t handle = nullptr;
    void *workspace = nullptr;
    std::map<Key, Plan> plans;
    std::string error;

    cudaError_t failed(cublasStatus_t status, const char *what) {
        error = std::string("cuBLASLt: ") + what + ": " + cublasLtGetStatusString(status);
        return status == CUBLAS_STATUS_ALLOC_FAILED ? cudaErrorMemoryAllocation : cudaErrorUnknown;
    }
};

#define CUBLAS_TRY(context, call)                                                                                      \
    do {                                                                                                               \
        if (const cublasStatus_t status = (call); status != CUBLAS_STATUS_SUCCESS)                                     \
            return (context)->failed(status, #call);                                                                   \
    } while (0)

template <class Value>
static cublasStatus_t set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute,
                          const Value &value) {
    return cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value);
}
template <class Value>
static cublasStatus_t set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
                          const Value &value) {
    return cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value);
}

static void free_plan(Plan &plan) {
    if (plan.operation) cublasLtMatmulDescDestroy(plan.operation);
    for (cublasLtMatrixLayout_t layout : {plan.a, plan.b, plan.c})
        if (layout) cublasLtMatrixLayoutDestroy(layout);
    plan = {};
}

/* Describes the product to the library, with as much of the epilogue as the plan says. */
static cudaError_t describe(MatmulContext *context, Plan &plan, const Matmul &m) {
    CUBLAS_TRY(context, cublasLtMatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t op_a = m.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                            op_b = m.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    CUBLAS_TRY(context, set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, op_b));
    CUBLAS_TRY(context, set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, op_a));
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    if (plan.fused && m.pre_gelu)
        epilogue = m.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    else if (plan.fused && m.dgelu)
        epilogue = CUBLASLT_EPILOGUE_DGELU;
    else if (plan.fused && m.bias)
        epilogue = CUBLASLT_EPILOGUE_BIAS;
    CUBLAS_TRY(context, set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue));
    if (plan.fused && (m.pre_gelu || m.dgelu)) {
        CUBLAS_TRY(context, set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, m.N));
        const int32_t type = cuda_type(m.c_type);
        CUBLAS_TRY(context, set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, type));
    }
    const cudaDataType_t ab = cuda_type(m.ab_type);
    CUBLAS_TRY(context, m.transpose_b ? cublasLtMatrixLayoutCreate(&plan.b, ab, m.K, m.N, m.K)
                                      : cublasLtMatrixLayoutCreate(&plan.b, ab, m.N, m.K, m.N));
    CUBLAS_TRY(context, m.transpose_a ? cublasLtMatrixLayoutCreate(&plan.a, ab, m.M, m.K, m.M)
                                      : cublasLtMatrixLayoutCreate(&plan.a, ab, m.K, m.M, m.K));
    CUBLAS_TRY(context, cublasLtMatrixLayoutCreate(&plan.c, cuda_type(m.c_type), m.N, m.M, m.N));
    return cudaSuccess;
}

static cudaError_t set_pointers(MatmulContext *context, const Plan &plan, const Matmul &m) {
    if (plan.fused && m.bias) CUBLAS_TRY(context, set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, m.bias));
    if (plan.fused && m.pre_gelu)
        CUBLAS_TRY(context, set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, m.pre_gelu));
    if (plan.fused && m.dgelu)
        CUBLAS_TRY(context, set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, m.dgelu));
    return cudaSuccess;
}

/* The product into d; sums onto c if it accumulates. */
static cudaError_t multiply(MatmulContext *context, const Plan &plan, const Matmul &m, void *d,
                            const cublasLtMatmulAlgo_t &algorithm, cudaStream_t stream) {
    const float alpha = 1, beta = m.accumulate ? 1 : 0;
    CUBLAS_TRY(context, cublasLtMatmul(context->handle, plan.operation, &alpha, m.b, plan.b, m.a, plan.a, &beta, m.c,
                                       plan.c, d, plan.c, &algorithm, context->workspace, workspace_bytes, stream));
    return cudaSuccess;
}

/* Algorithms for the product, the library's favourite first; none if it cannot do it. */
static cudaError_t find_candidates(MatmulContext *context, std::vector<cublasLtMatmulAlgo_t> &candidates,
                                   const Plan &plan, const Matmul &m) {
    cublasLtMatmulPreference_t preference;
    CUBLAS_TRY(context, cublasLtMatmulPreferenceCreate(&preference));
    const uint32_t alignment = alignment_of(m);
    const uint32_t reductions =
        CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;   // partial sums in float32, in a fixed order; or none
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
    cublasLtMatmulHeuristicResult_t results[most_candidates];
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        context->handle, plan.operation, plan.b, plan.a, plan.c, plan.c, preference, most_candidates, results, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    candidates.clear();
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return cudaSuccess;
    if (status != CUBLAS_STATUS_SUCCESS) return context->failed(status, "cublasLtMatmulAlgoGetHeuristic");
    for (int i = 0; i < count; i++)
        if (results[i].state == CUBLAS_STATUS_SUCCESS) candidates.push_back(results[i].algo);
    return cudaSuccess;
}

/* The same bits in both? Reads the answer back, so it waits for the stream. */
static cudaError_t compare(bool *same, int *differences, const Matmul &m, const void *a, const void *b,
                           cudaStream_t stream) {
    const int64_t n = m.M * m.N;
    const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(n, 256));
    CUDA_TRY(cudaMemsetAsync(differences, 0, sizeof *differences, stream));
    if (m.c_type == DataType::float32)
        CUDA_TRY(LAUNCH(count_differences<uint32_t>, blocks, 256, 0, stream, differences,
                        static_cast<const uint32_t *>(a), static_cast<const uint32_t *>(b), n));
    else
        CUDA_TRY(LAUNCH(count_differences<uint16_t>, blocks, 256, 0, stream, differences,
                        static_cast<const uint16_t *>(a), static_cast<const uint16_t *>(b), n));
    int found = 0;
    CUDA_TRY(cudaMemcpyAsync(&found, differences, sizeof found, cudaMemcpyDeviceToHost, stream));
    CUDA_TRY(cudaStreamSynchronize(stream));
    *same = found == 0;
    return cudaSuccess;
}

/* Takes the fastest candidate whose bits are those of the first. The results go to scratch memory, c stays as it is. */
static cudaError_t time_candidates(MatmulContext *context, Plan &plan,
                                   const std::vector<cublasLtMatmulAlgo_t> &candidates, const Matmul &m,
                                   cudaStream_t stream) {
    const size_t bytes = static_cast<size_t>(m.M * m.N) * (m.c_type == DataType::float32 ? 4 : 2);
    struct Scratch {
        void *first = nullptr, *other = nullptr;
        int *differences = nullptr;
        cudaEvent_t start = nullptr, end = nullptr;
        ~Scratch() {
            cudaFree(first);
            cudaFree(other);
            cudaFree(differences);
            if (start) cudaEventDestroy(start);
            if (end) cudaEventDestroy(end);
        }
    } s;
    if (cudaMalloc(&s.first, bytes) != cudaSuccess || cudaMalloc(&s.other, bytes) != cudaSuccess ||
        cudaMalloc(&s.differences, sizeof *s.differences) != cudaSuccess) {
        cudaGetLastError();
        return cudaSuccess;   // no memory to try with: the library's favourite it is
    }
    CUDA_TRY(cudaEventCreate(&s.start));
    CUDA_TRY(cudaEventCreate(&s.end));
    float best = 0;
    for (size_t i = 0; i < candidates.size(); i++) {
        void *const d = i == 0 ? s.first : s.other;
        if (multiply(context, plan, m, d, candidates[i], stream) != cudaSuccess) {
            if (i == 0) return cudaErrorUnknown;
            context->error.clear();
            continue;
        }
        bool same = true;
        if (i > 0) CUDA_TRY(compare(&same, s.differences, m, s.first, s.other, stream));
        if (!same) continue;
        CUDA_TRY(cudaEventRecord(s.start, stream));
        for (int run = 0; run < timed_runs; run++) CUDA_TRY(multiply(context, plan, m, d, candidates[i], stream));
        CUDA_TRY(cudaEventRecord(s.end, stream));
        CUDA_TRY(cudaEventSynchronize(s.end));
        float milliseconds = 0;
        CUDA_TRY(cudaEventElapsedTime(&milliseconds, s.start, s.end));
        if (i == 0 || milliseconds < best) {
            best = milliseconds;
            plan.algorithm = candidates[i];
        }
    }
    return cudaSuccess;
}

static cudaError_t make_plan(MatmulContext *context, Plan &plan, const Matmul &m, bool may_wait, cudaStream_t stream) {
    const bool epilogue = m.bias || m.pre_gelu || m.dgelu;
    std::vector<cublasLtMatmulAlgo_t> candidates;
    for (int fused = epilogue; fused >= 0 && candidates.empty(); fused--) {   // first with all on the way, then without
        free_plan(plan);
        plan.fused = fused;
        CUDA_TRY(describe(context, plan, m));
        CUDA_TRY(set_pointers(context, plan, m));
        CUDA_TRY(find_candidates(context, candidates, plan, m));
    }
    if (candidates.empty()) return context->failed(CUBLAS_STATUS_NOT_SUPPORTED, "no algorithm for this product");
    plan.algorithm = candidates[0];
    plan.timed = may_wait;
    return may_wait ? time_candidates(context, plan, candidates, m, stream) : cudaSuccess;
}

cudaError_t matmul_create(MatmulContext **context) {
    *context = new MatmulContext;
    const cublasStatus_t status = cublasLtCreate(&(*context)->handle);
    const cudaError_t error = status == CUBLAS_STATUS_SUCCESS ? cudaMalloc(&(*context)->workspace, workspace_bytes)
                                                              : (*context)->failed(status, "cublasLtCreate");
    if (error != cudaSuccess) {
        matmul_destroy(*context);
        *context = nullptr;
    }
    return error;
}

void matmul_destroy(MatmulContext *context) {
    if (!context) return;
    for (auto &entry : context->plans) free_plan(entry.second);
    if (context->handle) cublasLtDestroy(context->handle);
    cudaFree(context->workspace);
    delete context;
}

const char *matmul_error(const MatmulContext *context) {
    return context->error.c_str();
}

cudaError_t matmul(MatmulContext *context, const Matmul &m, cudaStream_t stream) {
    context->error.clear();
    if (!matmul_arguments_valid(m)) return cudaErrorInvalidValue;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    CUDA_TRY(cudaStreamIsCapturing(stream, &status));
    const bool may_wait = status == cudaStreamCaptureStatusNone;
    Plan &plan = context->plans[key_of(m)];
    if (!plan.operation || (!plan.timed && may_wait))
        if (const cudaError_t error = make_plan(context, plan, m, may_wait, stream)) {
            free_plan(plan);
            return error;
        }
    CUDA_TRY(set_pointers(context, plan, m));
    CUDA_TRY(multiply(context, plan, m, m.c, plan.algorithm, stream));
    return !plan.fused && (m.bias || m.pre_gelu || m.dgelu) ? finish(m, stream) : cudaSuccess;
}
