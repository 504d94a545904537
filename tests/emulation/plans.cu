/* Which of cuBLASLt's algorithms cuda/matmul_cublaslt.cu takes, with the library of tests/emulation/cublaslt/. Prints a line
 * for each case. */
#include <cublasLt.h>

#include "matmul.cuh"

#include <cstdio>
#include <cstdlib>

static const int64_t M = 8, N = 16, K = 100;

struct Operands {
    std::vector<float> a, b, c, pre_gelu;
    Matmul m;

    explicit Operands(float size) : a(M * K), b(K * N), c(M * N, 1e6f), pre_gelu(M * N) {
        for (size_t i = 0; i < a.size(); i++) a[i] = size * std::sin(1.0f + static_cast<float>(i));
        for (size_t i = 0; i < b.size(); i++) b[i] = std::sin(2.5f + 3 * static_cast<float>(i));
        m.a = a.data(), m.b = b.data(), m.c = c.data();
        m.M = M, m.N = N, m.K = K;
    }
};

/* The algorithm that the product runs by; 0 if it fails. */
static uint32_t taken(MatmulContext *context, const Matmul &m) {
    latest = 0;
    if (matmul(context, m, nullptr) == cudaSuccess) return latest;
    printf("%s: ", matmul_error(context));
    return 0;
}

static bool failed = false;

static void expect(const char *name, uint32_t found, uint32_t expected) {
    printf("%s %s: algorithm %u\n", name, found == expected ? "ok" : "FAILED", found);
    failed = failed || found != expected;
}

int main() {
    using A = Algorithm;
    MatmulContext *context = nullptr;
    const auto renew = [&] {
        matmul_destroy(context);
        if (matmul_create(&context) != cudaSuccess) exit(1);
    };
    const std::vector<Algorithm> several = {
        {1, 0, A::fails}, {2, 20, A::plain}, {3, 0.1, A::backwards}, {4, 1, A::plain}, {5, 0.1, A::fails}};
    Operands numbers(1), small(1e-4f), zeros(0);

    offered = several;
    renew();
    expect("fastest_with_the_bits_of_the_first_that_launches", taken(context, numbers.m), 4);

    renew();
    small.m.accumulate = true;   // onto numbers that hide in which order it was summed
    expect("bits_of_the_product_alone", taken(context, small.m), 4);

    renew();
    Operands sum(1);
    sum.c.assign(sum.c.size(), 0.0f);
    sum.m.accumulate = true;
    expect("accumulate", taken(context, sum.m), 4);
    expect("without_accumulate", taken(context, numbers.m), 4);
    expect("nothing_is_added_while_trying", sum.c == numbers.c ? 4 : 0, 4);

    renew();
    offered = {{1, 20, A::plain}, {2, 0.1, A::other_aux}, {3, 1, A::plain}};
    numbers.m.pre_gelu = numbers.pre_gelu.data();
    expect("bits_of_what_gelu_is_applied_to", taken(context, numbers.m), 3);

    renew();
    offers_epilogues = false;
    expect("without_epilogue", taken(context, numbers.m), 2);   // pre_gelu is then written by a kernel of our own
    offers_epilogues = true;
    numbers.m.pre_gelu = nullptr;

    renew();
    offered = several;
    expect("zeros_settle_nothing", taken(context, zeros.m), 2);
    expect("what_comes_after_zeros", taken(context, numbers.m), 4);

    renew();
    offered = {{1, 0, A::fails}};
    expect("none", taken(context, numbers.m), 0);
    matmul_destroy(context);
    return failed;
}
