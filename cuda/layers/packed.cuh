/* Packed weights as kernels read them: in pieces of 16 bytes, of a few neighbouring inputs and outputs. csrc/packed.h has the
 * formats. */
#pragma once

#include "elements.cuh"

extern "C" {
#include "../../csrc/packed.h"
}

constexpr int PACKED_WIDTH = 8;   // of panels: so few that the narrowest matrix has a panel for most multiprocessors

template <int type> struct Piece {
    static constexpr int outputs = 4;
    static constexpr int inputs = type == PYGPT_FLOAT32 ? 1 : type == PYGPT_BFLOAT16 ? 2 : type == PYGPT_INT8 ? 4 : 8;
    static constexpr int across = PACKED_WIDTH / outputs;   // pieces side by side
    static constexpr bool integers = type == PYGPT_INT8 || type == PYGPT_INT4;
    static constexpr int scale_bytes = integers ? 2 * PACKED_WIDTH : 0;   // with which a group begins
    static constexpr int group_bytes = scale_bytes + GROUP / inputs * across * 16;
    static constexpr int words = inputs / 4;   // of four bytes that bytes() gives for an output
    static constexpr int surplus = type == PYGPT_INT4 ? 8 : 0;   // of these bytes over q

    uint4 bits;
    Vector<bf16, outputs> scales;   // of integers

    /* Inputs k, k + 1, ... and outputs n, n + 1, ... of a panel: multiples of `inputs` and `outputs`. */
    __device__ void read(const PackedMatrix &m, int64_t panel, int64_t k, int n) {
        const int64_t groups = ceil_div<int64_t>(m.K, GROUP);
        const unsigned char *const group = m.data + (panel * groups + k / GROUP) * group_bytes;
        const int row = static_cast<int>(k % GROUP) / inputs;
        bits = __ldg(reinterpret_cast<const uint4 *>(group + scale_bytes) + row * across + n / outputs);
        if constexpr (integers) scales = *reinterpret_cast<const Vector<bf16, outputs> *>(group + 2 * n);
    }

    /* As numbers; not of int4. */
    __device__ void weights(float (&w)[inputs][outputs]) const {
        static_assert(type != PYGPT_INT4);
        if constexpr (type == PYGPT_FLOAT32) {
            memcpy(w, &bits, sizeof bits);
        } else if constexpr (type == PYGPT_BFLOAT16) {
            Vector<bf16, outputs * inputs> v;
            memcpy(&v, &bits, sizeof bits);
            for (int j = 0; j < outputs; j++)
                for (int i = 0; i < inputs; i++) w[i][j] = static_cast<float>(v.element[inputs * j + i]);
        } else {
            Vector<uint8_t, inputs * outputs> q;
            memcpy(&q, &bits, sizeof bits);
            for (int i = 0; i < inputs; i++)
                for (int j = 0; j < outputs; j++)
                    w[i][j] =
                        static_cast<float>(scales.element[j]) * static_cast<float>(q.element[inputs * j + i] - 128);
        }
    }

    /* Of integers: surplus + q of all inputs of output j, four in a word. */
    __device__ void bytes(int (&q)[words][outputs]) const {
        static_assert(integers);
        uint32_t word[outputs];
        memcpy(word, &bits, sizeof bits);
        for (int j = 0; j < outputs; j++) {
            if constexpr (type == PYGPT_INT8) {
                q[0][j] = static_cast<int>(word[j] ^ 0x80808080u);   // 128 + q becomes q
            } else {
                q[0][j] = static_cast<int>(word[j] & 0x0f0f0f0fu);
                q[1][j] = static_cast<int>(word[j] >> 4 & 0x0f0f0f0fu);
            }
        }
    }
};

/* All types but int4, with which only a product works. */
template <class F> void for_weights(int type, F f) {
    if (type == PYGPT_FLOAT32) f(std::integral_constant<int, PYGPT_FLOAT32>{});
    if (type == PYGPT_BFLOAT16) f(std::integral_constant<int, PYGPT_BFLOAT16>{});
    if (type == PYGPT_INT8) f(std::integral_constant<int, PYGPT_INT8>{});
}
