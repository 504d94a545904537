/* Matrix products through cuBLASLt.
 *
 * cuBLASLt thinks in columns: a row-major c = op(a) op(b) is to it cᵀ = op(b)ᵀ op(a)ᵀ, so b comes first, and what it
 * calls a column vector of m values runs along our N. */
#include <cublasLt.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "common.cuh"
#include "matmul.cuh"
#include "matmul_epilogue.cuh"
#include "matmul_log.cuh"

namespace {

constexpr int most_candidates = 16;
constexpr int rounds = 4, launches = 3;   // of timing: in each round each candidate is launched so often
constexpr float hopeless = 1.2f;          // times the fastest: no further rounds
constexpr std::chrono::milliseconds warming_up{50};

struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
    bool fused = false;     // its epilogue
    bool settled = false;   // no faster algorithm needs to be looked for
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

__global__ void find_difference(int *different, const uint16_t *a, const uint16_t *b, int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
    if (i < n && a[i] != b[i]) *different = 1;
}

} // namespace

struct MatmulContext {
    cublasLtHandle_t handle = nullptr;
    void *workspace = nullptr;
    bool log = false;
    bool warm = false;   // its clocks have risen
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
                                       plan.c, d, plan.c, &algorithm, context->workspace, MATMUL_WORKSPACE, stream));
    return cudaSuccess;
}

/* Algorithms for the product, the library's favourite first; none if it cannot do it. */
static cudaError_t find_candidates(MatmulContext *context, std::vector<Candidate> &candidates, const Plan &plan,
                                   const Matmul &m) {
    cublasLtMatmulPreference_t preference;
    CUBLAS_TRY(context, cublasLtMatmulPreferenceCreate(&preference));
    const uint32_t alignment = alignment_of(m);
    const uint32_t reductions =
        CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;   // partial sums in float32, in a fixed order; or none
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, MATMUL_WORKSPACE);
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
        if (results[i].state == CUBLAS_STATUS_SUCCESS)
            candidates.push_back({results[i].algo, results[i].workspaceSize});
    return cudaSuccess;
}

/* Where candidates write while they are tried, c and pre_gelu staying as they are: the first one to its own place, the
 * others to another. */
struct Scratch {
    void *c[2] = {}, *pre_gelu[2] = {};
    int *different = nullptr;
    size_t bytes = 0;   // of each
    cudaEvent_t start = nullptr, end = nullptr;

    cudaError_t allocate(const Plan &plan, const Matmul &m) {
        bytes = static_cast<size_t>(m.M * m.N) * (m.c_type == DataType::float32 ? 4 : 2);
        CUDA_TRY(cudaMalloc(&different, sizeof *different));
        for (const int place : {0, 1}) {
            CUDA_TRY(cudaMalloc(&c[place], bytes));
            if (plan.fused && m.pre_gelu) CUDA_TRY(cudaMalloc(&pre_gelu[place], bytes));
        }
        CUDA_TRY(cudaEventCreate(&start));
        return cudaEventCreate(&end);
    }
    ~Scratch() {
        for (void *p : {c[0], c[1], pre_gelu[0], pre_gelu[1], static_cast<void *>(different)}) cudaFree(p);
        if (start) cudaEventDestroy(start);
        if (end) cudaEventDestroy(end);
    }
};

/* Launches a candidate some times, with its results in one of the two places. */
static cudaError_t try_candidate(MatmulContext *context, const Plan &plan, const Candidate &candidate, Matmul m,
                                 const Scratch &s, int place, int times, cudaStream_t stream) {
    m.pre_gelu = s.pre_gelu[place];
    CUDA_TRY(set_pointers(context, plan, m));
    for (int i = 0; i < times; i++) CUDA_TRY(multiply(context, plan, m, s.c[place], candidate.algorithm, stream));
    return cudaSuccess;
}

/* The same bits in both places? Waits for the stream. */
static cudaError_t compare(bool *same, const Scratch &s, cudaStream_t stream) {
    const auto n = static_cast<int64_t>(s.bytes / sizeof(uint16_t));
    const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(n, ELEMENT_THREADS));
    CUDA_TRY(cudaMemsetAsync(s.different, 0, sizeof *s.different, stream));
    for (const auto &places : {s.c, s.pre_gelu})
        if (places[0])
            CUDA_TRY(LAUNCH(find_difference, blocks, ELEMENT_THREADS, 0, stream, s.different,
                            static_cast<const uint16_t *>(places[0]), static_cast<const uint16_t *>(places[1]), n));
    int different = 0;
    CUDA_TRY(cudaMemcpyAsync(&different, s.different, sizeof different, cudaMemcpyDeviceToHost, stream));
    CUDA_TRY(cudaStreamSynchronize(stream));
    *same = !different;
    return cudaSuccess;
}

/* Finds which candidates launch, and which of them give the bits of the first, *reference. Only the product is compared,
 * since a sum with c would hide differences. One that is zero everywhere would hide all: then nothing is settled. */
static cudaError_t check_candidates(MatmulContext *context, const Candidate **reference, Plan &plan,
                                    std::vector<Candidate> &candidates, Matmul m, const Scratch &s,
                                    cudaStream_t stream) {
    m.accumulate = false;
    *reference = nullptr;
    for (Candidate &candidate : candidates) {
        candidate.launches =
            try_candidate(context, plan, candidate, m, s, *reference ? 1 : 0, 1, stream) == cudaSuccess;
        if (!candidate.launches) {
            context->error.clear();
            cudaGetLastError();
        } else if (*reference) {
            CUDA_TRY(compare(&candidate.same_bits, s, stream));
        } else {
            *reference = &candidate;
            candidate.same_bits = true;
            for (void *p : {s.c[1], s.pre_gelu[1]})
                if (p) CUDA_TRY(cudaMemsetAsync(p, 0, s.bytes, stream));
            bool zero;
            CUDA_TRY(compare(&zero, s, stream));
            plan.settled = !zero;
            if (zero) return cudaSuccess;
        }
    }
    if (*reference) return cudaSuccess;
    return context->failed(CUBLAS_STATUS_NOT_SUPPORTED, "no algorithm for this product launches");
}

static cudaError_t warm_up(MatmulContext *context, const Plan &plan, const Candidate &candidate, const Matmul &m,
                           const Scratch &s, cudaStream_t stream) {
    using clock = std::chrono::steady_clock;
    for (const auto end = clock::now() + warming_up; !context->warm && clock::now() < end;) {
        CUDA_TRY(try_candidate(context, plan, candidate, m, s, 1, launches, stream));
        CUDA_TRY(cudaStreamSynchronize(stream));
    }
    context->warm = true;
    return cudaSuccess;
}

/* The fastest candidate with the bits of the first. They are timed in turns, because clocks change meanwhile, and the
 * least time of each counts. */
static cudaError_t find_fastest(MatmulContext *context, const Candidate **taken, Plan &plan,
                                std::vector<Candidate> &candidates, const Matmul &m, cudaStream_t stream) {
    plan.settled = true;
    Scratch s;
    if (s.allocate(plan, m) != cudaSuccess) {
        cudaGetLastError();
        return cudaSuccess;   // no memory to try with: the library's favourite it is
    }
    CUDA_TRY(check_candidates(context, taken, plan, candidates, m, s, stream));
    if (!plan.settled) return cudaSuccess;
    CUDA_TRY(warm_up(context, plan, **taken, m, s, stream));
    for (int round = 0; round < rounds; round++)
        for (Candidate &candidate : candidates) {
            const bool wanted = candidate.same_bits || (candidate.launches && context->log);
            if (!wanted || (round > 0 && candidate.milliseconds > hopeless * (*taken)->milliseconds)) continue;
            CUDA_TRY(cudaEventRecord(s.start, stream));
            CUDA_TRY(try_candidate(context, plan, candidate, m, s, 1, launches, stream));
            CUDA_TRY(cudaEventRecord(s.end, stream));
            CUDA_TRY(cudaEventSynchronize(s.end));
            float elapsed = 0;
            CUDA_TRY(cudaEventElapsedTime(&elapsed, s.start, s.end));
            elapsed /= launches;
            if (round == 0 || elapsed < candidate.milliseconds) candidate.milliseconds = elapsed;
            if (candidate.same_bits && candidate.milliseconds < (*taken)->milliseconds) *taken = &candidate;
        }
    return cudaSuccess;
}

static cudaError_t make_plan(MatmulContext *context, Plan &plan, const Matmul &m, bool may_wait, cudaStream_t stream) {
    const bool epilogue = m.bias || m.pre_gelu || m.dgelu;
    std::vector<Candidate> candidates;
    for (int fused = epilogue; fused >= 0 && candidates.empty(); fused--) {   // first with all on the way, then without
        free_plan(plan);
        plan.fused = fused;
        CUDA_TRY(describe(context, plan, m));
        CUDA_TRY(set_pointers(context, plan, m));
        CUDA_TRY(find_candidates(context, candidates, plan, m));
    }
    if (candidates.empty()) return context->failed(CUBLAS_STATUS_NOT_SUPPORTED, "no algorithm for this product");
    const Candidate *taken = candidates.data();
    if (may_wait) CUDA_TRY(find_fastest(context, &taken, plan, candidates, m, stream));
    plan.algorithm = taken->algorithm;
    if (context->log) log_plan(m, plan.fused, *taken, candidates);
    return cudaSuccess;
}

cudaError_t matmul_create(MatmulContext **context) {
    *context = new MatmulContext;
    const char *const log = getenv("PYGPT_CUDA_LOG");
    (*context)->log = log && strcmp(log, "1") == 0;
    const cublasStatus_t status = cublasLtCreate(&(*context)->handle);
    const cudaError_t error = status == CUBLAS_STATUS_SUCCESS ? cudaMalloc(&(*context)->workspace, MATMUL_WORKSPACE)
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
    if (!plan.operation || (!plan.settled && may_wait))
        if (const cudaError_t error = make_plan(context, plan, m, may_wait, stream)) {
            free_plan(plan);
            return error;
        }
    CUDA_TRY(set_pointers(context, plan, m));
    CUDA_TRY(multiply(context, plan, m, m.c, plan.algorithm, stream));
    return !plan.fused && (m.bias || m.pre_gelu || m.dgelu) ? finish(m, stream) : cudaSuccess;
}
