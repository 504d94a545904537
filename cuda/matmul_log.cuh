/* The algorithms that cuBLASLt offers for a product, and what PYGPT_CUDA_LOG=1 says of them on stderr: a line for the
 * product with the one that is taken, and an indented line for each. */
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <cstdio>
#include <vector>

#include "matmul.cuh"

struct Candidate {
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace;          // bytes
    bool launches = false;     // found by trying, as is the rest
    bool same_bits = false;    // as the first that launches
    float milliseconds = 0;    // of a product, the least of several; 0: not timed
};

inline uint32_t attribute(const Candidate &c, cublasLtMatmulAlgoConfigAttributes_t which) {
    uint32_t value = 0;   // the ones below are all of four bytes
    size_t written = 0;
    cublasLtMatmulAlgoConfigGetAttribute(&c.algorithm, which, &value, sizeof value, &written);
    return value;
}

inline void log_candidate(const Candidate &c, double flops) {
    fprintf(stderr, "algorithm %u, tile %u, stages %u, split-K %u, reduction %u, workspace %zu, ",
            attribute(c, CUBLASLT_ALGO_CONFIG_ID), attribute(c, CUBLASLT_ALGO_CONFIG_TILE_ID),
            attribute(c, CUBLASLT_ALGO_CONFIG_STAGES_ID), attribute(c, CUBLASLT_ALGO_CONFIG_SPLITK_NUM),
            attribute(c, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME), c.workspace);
    if (c.milliseconds > 0)
        fprintf(stderr, "%.4f ms, %.1f TFLOP/s", static_cast<double>(c.milliseconds),
                flops / static_cast<double>(c.milliseconds) / 1e9);
    else
        fprintf(stderr, "not timed");
}

inline void log_plan(const Matmul &m, bool fused, const Candidate &taken, const std::vector<Candidate> &candidates) {
    const double flops = 2.0 * static_cast<double>(m.M) * static_cast<double>(m.N) * static_cast<double>(m.K);
    const auto name = [](DataType type) { return type == DataType::float32 ? "float32" : "bfloat16"; };
    fprintf(stderr, "product M %lld N %lld K %lld%s%s, %s to %s%s", static_cast<long long>(m.M),
            static_cast<long long>(m.N), static_cast<long long>(m.K), m.transpose_a ? " transpose_a" : "",
            m.transpose_b ? " transpose_b" : "", name(m.ab_type), name(m.c_type), m.accumulate ? " accumulate" : "");
    if (m.bias || m.pre_gelu || m.dgelu)
        fprintf(stderr, ",%s%s%s %s", m.bias ? " bias" : "", m.pre_gelu ? " gelu" : "", m.dgelu ? " dgelu" : "",
                fused ? "fused" : "not fused");
    fprintf(stderr, ": ");
    log_candidate(taken, flops);
    fprintf(stderr, "\n");
    for (const Candidate &c : candidates) {
        fprintf(stderr, "    ");
        log_candidate(c, flops);
        fprintf(stderr, ", %s%s\n",
                !c.launches   ? "does not launch"
                : c.same_bits ? "same bits"
                              : "other bits",
                &c == &taken ? ", taken" : "");
    }
}
