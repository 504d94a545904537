/* Every kind of product in cuda/matmul.cuh against plain loops in double precision. Prints a line for each. */
#include "common.cuh"
#include "matmul.cuh"

#include <cmath>
#include <cstdio>
#include <vector>

using bf16 = __nv_bfloat16;

static uint64_t state = 1;

static std::vector<float> random_numbers(int64_t n) {
    std::vector<float> x(static_cast<size_t>(n));
    for (float &v : x) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        v = static_cast<float>(state >> 40) / (1 << 23) - 1;
    }
    return x;
}

/* A device buffer of either type, and the values that it holds after rounding. */
struct Buffer {
    void *p = nullptr;
    DataType type;
    std::vector<float> values;

    Buffer(DataType type_, const std::vector<float> &x) : type(type_), values(x) {
        if (type == DataType::bfloat16) {
            std::vector<bf16> rounded(x.begin(), x.end());
            values.assign(rounded.begin(), rounded.end());
            cudaMalloc(&p, x.size() * sizeof(bf16));
            cudaMemcpy(p, rounded.data(), x.size() * sizeof(bf16), cudaMemcpyHostToDevice);
        } else {
            cudaMalloc(&p, x.size() * sizeof(float));
            cudaMemcpy(p, x.data(), x.size() * sizeof(float), cudaMemcpyHostToDevice);
        }
    }
    Buffer(const Buffer &) = delete;
    ~Buffer() {
        cudaFree(p);
    }
    std::vector<float> now() const {
        if (type == DataType::float32) {
            std::vector<float> x(values.size());
            cudaMemcpy(x.data(), p, x.size() * sizeof(float), cudaMemcpyDeviceToHost);
            return x;
        }
        std::vector<bf16> x(values.size());
        cudaMemcpy(x.data(), p, x.size() * sizeof(bf16), cudaMemcpyDeviceToHost);
        return {x.begin(), x.end()};
    }
};

static double gelu_exact(double x) {
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double dgelu_exact(double x) {
    const double s = std::sqrt(2 / M_PI), t = std::tanh(s * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * s * (1 + 3 * 0.044715 * x * x);
}

/* ‖a − b‖ / ‖b‖ */
static double relative_error(const std::vector<float> &a, const std::vector<double> &b) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < b.size(); i++) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        size += b[i] * b[i];
    }
    return std::sqrt(difference / size);
}

struct Case {
    const char *name;
    int64_t M, N, K;
    bool transpose_a, transpose_b, accumulate, bias, gelu, dgelu;
};

static bool run(MatmulContext *context, const Case &t, DataType ab_type, DataType c_type) {
    Buffer a(ab_type, random_numbers(t.M * t.K)), b(ab_type, random_numbers(t.K * t.N)),
        c(c_type, random_numbers(t.M * t.N));
    Buffer bias(c_type, random_numbers(t.N)), pre_gelu(c_type, random_numbers(t.M * t.N));
    std::vector<double> expected, expected_pre_gelu;
    for (int64_t m = 0; m < t.M; m++)
        for (int64_t n = 0; n < t.N; n++) {
            double x = t.bias ? bias.values[n] : 0;
            for (int64_t k = 0; k < t.K; k++)
                x += static_cast<double>(a.values[t.transpose_a ? k * t.M + m : m * t.K + k]) *
                     b.values[t.transpose_b ? n * t.K + k : k * t.N + n];
            if (t.accumulate) x += c.values[m * t.N + n];
            expected_pre_gelu.push_back(x);
            if (t.gelu) x = gelu_exact(x);
            if (t.dgelu) x *= dgelu_exact(pre_gelu.values[m * t.N + n]);
            expected.push_back(x);
        }

    Matmul m;
    m.c = c.p;
    m.a = a.p;
    m.b = b.p;
    m.M = t.M;
    m.N = t.N;
    m.K = t.K;
    m.transpose_a = t.transpose_a;
    m.transpose_b = t.transpose_b;
    m.ab_type = ab_type;
    m.c_type = c_type;
    m.accumulate = t.accumulate;
    m.bias = t.bias ? bias.p : nullptr;
    m.pre_gelu = t.gelu ? pre_gelu.p : nullptr;
    m.dgelu = t.dgelu ? pre_gelu.p : nullptr;
    const cudaError_t error = matmul(context, m, nullptr);
    if (error != cudaSuccess) {
        printf("%s %s ", cudaGetErrorString(error), matmul_error(context));
        return false;
    }
    const double bound = c_type == DataType::float32 ? 2e-6 : 5e-3;
    return relative_error(c.now(), expected) < bound &&
           (!t.gelu || relative_error(pre_gelu.now(), expected_pre_gelu) < bound);
}

int main() {
    const Case cases[] = {
        {"plain", 5, 7, 9, false, false, false, false, false, false},
        {"one_by_one", 1, 1, 1, false, false, false, false, false, false},
        {"transpose_a", 16, 24, 40, true, false, false, false, false, false},
        {"transpose_b", 16, 24, 40, false, true, false, false, false, false},
        {"transpose_both", 9, 7, 5, true, true, false, false, false, false},
        {"accumulate", 8, 16, 32, false, false, true, false, false, false},
        {"bias", 8, 16, 32, false, false, false, true, false, false},
        {"bias_odd", 3, 13, 11, false, false, false, true, false, false},
        {"bias_gelu", 8, 16, 32, false, false, false, true, true, false},
        {"bias_gelu_odd", 3, 13, 11, false, false, false, true, true, false},
        {"gelu", 8, 16, 32, false, false, false, false, true, false},
        {"dgelu", 8, 16, 32, false, true, false, false, false, true},
        {"dgelu_odd", 3, 13, 11, false, true, false, false, false, true},
        {"weight_gradient", 24, 40, 64, true, false, true, false, false, false},
        {"weight_gradient_odd", 9, 37, 70, true, false, true, false, false, false},
    };
    MatmulContext *context = nullptr;
    if (matmul_create(&context) != cudaSuccess) return 1;
    int failed = 0;
    for (const Case &t : cases) {
        const bool float32 = run(context, t, DataType::float32, DataType::float32);
        const bool mixed = run(context, t, DataType::bfloat16, DataType::float32);
        const bool bfloat16 = run(context, t, DataType::bfloat16, DataType::bfloat16);
        printf("%s float32 %s, bfloat16 to float32 %s, bfloat16 %s\n", t.name, float32 ? "ok" : "FAILED",
               mixed ? "ok" : "FAILED", bfloat16 ? "ok" : "FAILED");
        failed += !float32 || !mixed || !bfloat16;
    }
    Matmul impossible;
    impossible.M = impossible.N = impossible.K = 1;
    impossible.accumulate = true;
    impossible.dgelu = impossible.pre_gelu = &impossible;
    const bool refused = matmul(context, impossible, nullptr) == cudaErrorInvalidValue;
    printf("refusal %s\n", refused ? "ok" : "FAILED");
    matmul_destroy(context);
    return failed != 0 || !refused;
}
