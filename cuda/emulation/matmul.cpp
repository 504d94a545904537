/* Matrix products by a loop, in place of cuBLASLt. */
#include "matmul.cuh"
#include "matmul_epilogue.cuh"

#include <vector>

struct MatmulContext {};

static const int64_t PART = 256;   // of a sum, as on a device that sums in tiles: one long sum would lose more

cudaError_t matmul_create(MatmulContext **context) {
    *context = new MatmulContext;
    return cudaSuccess;
}

void matmul_destroy(MatmulContext *context) {
    delete context;
}

const char *matmul_error(const MatmulContext *) {
    return "";
}

/* A (rows,columns) operand, or the transpose of the (columns,rows) one that is stored, as float32. */
static std::vector<float> operand(const void *p, DataType type, bool transposed, int64_t rows, int64_t columns) {
    std::vector<float> x(static_cast<size_t>(rows * columns));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            const int64_t at = transposed ? c * rows + r : r * columns + c;
            x[static_cast<size_t>(r * columns + c)] =
                type == DataType::float32 ? static_cast<const float *>(p)[at]
                                          : static_cast<float>(static_cast<const __nv_bfloat16 *>(p)[at]);
        }
    return x;
}

template <class T> static void product(const Matmul &m, bool fused) {
    const std::vector<float> a = operand(m.a, m.ab_type, m.transpose_a, m.M, m.K);
    const std::vector<float> b = operand(m.b, m.ab_type, m.transpose_b, m.K, m.N);
    T *const c = static_cast<T *>(m.c);
    const auto columns = static_cast<size_t>(m.N);
    std::vector<float> sums(columns), parts(columns);
    for (int64_t i = 0; i < m.M; i++) {
        sums.assign(columns, 0.0f);
        for (int64_t first = 0; first < m.K; first += PART) {
            parts.assign(columns, 0.0f);
            for (int64_t k = first; k < m.K && k < first + PART; k++) {
                const float factor = a[static_cast<size_t>(i * m.K + k)];
                const float *row = b.data() + k * m.N;
                for (size_t j = 0; j < columns; j++) parts[j] += factor * row[j];
            }
            for (size_t j = 0; j < columns; j++) sums[j] += parts[j];
        }
        for (int64_t j = 0; j < m.N; j++) {
            const int64_t at = i * m.N + j;
            float x = sums[static_cast<size_t>(j)];
            if (m.accumulate) x += static_cast<float>(c[at]);
            if (fused && m.bias) x += static_cast<float>(static_cast<const T *>(m.bias)[j]);
            if (fused && m.pre_gelu) {
                static_cast<T *>(m.pre_gelu)[at] = static_cast<T>(x);
                x = gelu_of(x);
            }
            if (fused && m.dgelu) x *= dgelu_of(static_cast<float>(static_cast<const T *>(m.dgelu)[at]));
            c[at] = static_cast<T>(x);
        }
    }
}

cudaError_t matmul(MatmulContext *, const Matmul &m, cudaStream_t stream) {
    if (!matmul_arguments_valid(m)) return cudaErrorInvalidValue;
    const bool fused = m.N % 8 == 0;   // as on the device, where the library finishes only aligned rows on the way
    CUDA_TRY(emulation::enqueue(stream, [m, fused] {
        if (m.c_type == DataType::float32)
            product<float>(m, fused);
        else
            product<__nv_bfloat16>(m, fused);
        return cudaSuccess;
    }));
    return !fused && (m.bias || m.pre_gelu || m.dgelu) ? finish(m, stream) : cudaSuccess;
}
