/* What comes into a row by its token and position: x = wte[token] + wpe[position], or the turn of its queries and keys. */
#include "generation.cuh"
#include "rotary.cuh"

namespace {

/* A thread has a piece of a row. */
template <int type>
__global__ void __launch_bounds__(ELEMENT_THREADS)
    embed_packed(float *x, const GenerationRow *rows, PackedMatrix wte, const float *wpe, int64_t N) {
    constexpr int inputs = Piece<type>::inputs, outputs = Piece<type>::outputs;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x, C = wte.K;
    const int64_t pieces = ceil_div<int64_t>(C, inputs);
    if (i >= N * pieces) return;
    const GenerationRow row = rows[i / pieces];
    const int64_t c = i % pieces * inputs;
    const int n = row.token % PACKED_WIDTH, first = n / outputs * outputs;
    Piece<type> piece;
    piece.read(wte, row.token / PACKED_WIDTH, c, first);
    float w[inputs][outputs];
    piece.weights(w);
    UNROLL
    for (int k = 0; k < inputs; k++) {
        const int64_t to = i / pieces * C + c + k;
        for (int j = 0; j < outputs; j++)
            if (first + j == n && c + k < C) x[to] = wpe ? w[k][j] + wpe[row.position * C + c + k] : w[k][j];
    }
}

__global__ void __launch_bounds__(ELEMENT_THREADS)
    rotate_rows(float *qkv, const GenerationRow *rows, int64_t N, int64_t NH, int64_t HS) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x, half = HS / 2;
    if (at >= N * half) return;
    const int64_t r = at / half, i = at % half;
    const Turn turn(static_cast<double>(rows[r].position), i, HS);
    float *const x = qkv + r * 3 * NH * HS + i;
    for (int64_t h = 0; h < 2 * NH; h++) turn(x + h * HS, x + h * HS, half);   // queries and keys
}

}   // namespace

void packed_embedding(Queue &queue, float *x, const GenerationRow *rows, const PackedMatrix &wte, const float *wpe,
                      int64_t N) {
    for_weights(wte.type, [&](auto type) {
        constexpr int of = decltype(type)::value;
        const int64_t threads = N * ceil_div<int64_t>(wte.K, Piece<of>::inputs);
        ENQUEUE(queue, embed_packed<of>, blocks_for(threads, ELEMENT_THREADS), ELEMENT_THREADS, 0, x, rows, wte, wpe,
                N);
    });
}

void rotary_rows(Queue &queue, float *qkv, const GenerationRow *rows, int64_t N, int64_t NH, int64_t HS) {
    ENQUEUE(queue, rotate_rows, blocks_for(N * (HS / 2), ELEMENT_THREADS), ELEMENT_THREADS, 0, qkv, rows, N, NH, HS);
}
