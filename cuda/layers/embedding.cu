/* Embedding: the row of wte that belongs to the token, plus the row of wpe that belongs to its position.
 *
 *   forward    x_bt = wte[token_bt] + wpe[t]
 *   backward   dwte[token_bt] += dx_bt      dwpe[t] += Σ_b dx_bt
 *
 * Without wpe nothing is added; without dwpe, as with positions that are not learned, only dwte is computed.
 *
 * A token may stand in many places, and a few tokens stand in very many. So the backward pass sorts the places by
 * token, with a stable radix sort (places of one token stay in order; work in proportion to B T), and cuts the sorted
 * list into slices of equal length. A block sums a slice. A token that lies within one slice is then done; one that
 * reaches over the end of a slice leaves partial sums, which a second kernel adds up in order. No atomics on floats,
 * no work for the host, no long row for a single block, and the same bits in every run.
 */
#include "elements.cuh"
#include "layers.cuh"

namespace {

constexpr int BITS = DIVIDES_WORK(8, 5);   // that one pass of the sort looks at
constexpr int DIGITS = 1 << BITS;          // their values
constexpr int CHUNK = DIGITS;   // places that a block sorts at a time: a thread has a place, and counts a digit
constexpr int SLICE = DIVIDES_WORK(32, 3);   // sorted places that a block sums
constexpr int COLUMNS = DIVIDES_WORK(128, 32);   // threads of a block along the channels

template <class T, int W>
__global__ void __launch_bounds__(ELEMENT_THREADS)
    embed(T *x, const int32_t *tokens, const T *wte, const T *wpe, int64_t N, int64_t T_, int64_t C) {
    const int64_t at = (static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x) * W;
    if (at >= N * C) return;
    const int64_t n = at / C, c = at % C;
    float token[W], position[W] = {};
    load<W>(token, wte + tokens[n] * C + c);
    if (wpe) load<W>(position, wpe + n % T_ * C + c);
    for (int i = 0; i < W; i++) token[i] += position[i];
    store<W>(x + at, token);
}

/* ---- the sort ---- */

/* A list of places with their tokens. places NULL: 0, 1, 2, ... */
struct List {
    int32_t *tokens, *places;
};

__device__ int digit_of(int32_t token, int shift) {
    return token >> shift & (DIGITS - 1);
}

/* counts (DIGITS, chunks) of the digits in each chunk. */
__global__ void __launch_bounds__(CHUNK) count_digits(int32_t *counts, const int32_t *tokens, int shift, int64_t N) {
    SHARED(int32_t, found, [DIGITS]);
    const int64_t n = static_cast<int64_t>(blockIdx.x) * CHUNK + threadIdx.x;
    found[threadIdx.x] = 0;
    __syncthreads();
    if (n < N) atomicAdd(&found[digit_of(tokens[n], shift)], 1);   // of integers: any order gives the same sum
    __syncthreads();
    counts[static_cast<int64_t>(threadIdx.x) * gridDim.x + blockIdx.x] = found[threadIdx.x];
}

/* The sum of x over the threads of the block before this one; `all` is that over all. */
__device__ int32_t sum_before(int32_t x, int32_t &all) {
    SHARED(int32_t, of_warp, [32]);
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int32_t sum = x, before = 0;
    for (unsigned delta = 1; delta < 32; delta *= 2) {
        const int32_t lower = __shfl_up_sync(0xffffffffu, sum, delta);
        if (lane >= delta) sum += lower;
    }
    if (lane == 31) of_warp[warp] = sum;
    __syncthreads();
    all = 0;
    for (unsigned i = 0; i < blockDim.x / 32; i++) {
        if (i == warp) before = all;
        all += of_warp[i];
    }
    __syncthreads();   // the next call writes to of_warp
    return before + sum - x;
}

/* Each count becomes the sum of those of the same digit before it, and `of_digit` that of all. One block for each digit. */
__global__ void __launch_bounds__(CHUNK) sum_counts(int32_t *of_digit, int32_t *counts, unsigned chunks) {
    int32_t *const mine = counts + static_cast<int64_t>(blockIdx.x) * chunks;
    int32_t sum = 0, all;
    for (unsigned first = 0; first < chunks; first += CHUNK) {
        const unsigned i = first + threadIdx.x;
        const int32_t before = sum_before(i < chunks ? mine[i] : 0, all);
        if (i < chunks) mine[i] = sum + before;
        sum += all;
    }
    if (threadIdx.x == 0) of_digit[blockIdx.x] = sum;
}

/* Moves each place behind those with smaller digits and those before it with the same digit. */
__global__ void __launch_bounds__(CHUNK)
    move(List to, List from, const int32_t *of_digit, const int32_t *counts, int shift, int64_t N) {
    SHARED(int32_t, digits, [CHUNK]);
    SHARED(int32_t, begins, [DIGITS]);
    const int64_t n = static_cast<int64_t>(blockIdx.x) * CHUNK + threadIdx.x;
    const int32_t token = n < N ? from.tokens[n] : 0;
    const int digit = digit_of(token, shift);
    digits[threadIdx.x] = digit;
    int32_t all;
    begins[threadIdx.x] = sum_before(of_digit[threadIdx.x], all);
    __syncthreads();
    if (n >= N) return;
    int64_t at = begins[digit] + counts[static_cast<int64_t>(digit) * gridDim.x + blockIdx.x];
    for (unsigned i = 0; i < threadIdx.x; i++) at += digits[i] == digit;
    to.tokens[at] = token;
    to.places[at] = from.places ? from.places[n] : static_cast<int32_t>(n);
}

/* ---- the sums ---- */

struct Slices {
    List list;
    int64_t N, C;

    __device__ int32_t token(int64_t at) const {
        return list.tokens[at];
    }
    __device__ bool begins(int64_t at) const {   // a token
        return at == 0 || token(at - 1) != token(at);
    }
    __device__ bool ends(int64_t at) const {
        return at == N - 1 || token(at + 1) != token(at);
    }
};

/* partial: (slices,2,C). In [0] the sum for a token that began in an earlier slice, in [1] for one that begins here
 * and goes on. */
template <class T, int W>
__global__ void __launch_bounds__(COLUMNS) sum_slices(float *dwte, float *partial, const T *dx, Slices s) {
    const int64_t c = (static_cast<int64_t>(blockIdx.y) * COLUMNS + threadIdx.x) * W, C = s.C;
    if (c >= C) return;
    const int64_t slice = blockIdx.x, first = slice * SLICE, end = min(first + SLICE, s.N);
    float sum[W] = {};
    bool begun_here = s.begins(first);
    for (int64_t at = first; at < end; at++) {
        float x[W];
        load<W>(x, dx + s.list.places[at] * C + c);
        for (int i = 0; i < W; i++) sum[i] += x[i];
        const bool ended = s.ends(at);
        if (!ended && at < end - 1) continue;
        const bool whole = begun_here && ended;
        float *const row = whole ? dwte + s.token(at) * C + c : partial + (slice * 2 + begun_here) * C + c;
        for (int i = 0; i < W; i++) {
            row[i] = whole ? row[i] + sum[i] : sum[i];
            sum[i] = 0;
        }
        begun_here = true;
    }
}

/* For each token that begins in this slice and goes on: the partial sums of all its slices. */
__global__ void __launch_bounds__(COLUMNS) join_slices(float *dwte, const float *partial, Slices s) {
    const int64_t c = static_cast<int64_t>(blockIdx.y) * COLUMNS + threadIdx.x, slice = blockIdx.x,
                  last = (slice + 1) * SLICE - 1;
    if (c >= s.C || last >= s.N || s.ends(last)) return;
    const int32_t token = s.token(last);
    if (s.token(slice * SLICE) == token && !s.begins(slice * SLICE)) return;   // it began earlier
    float sum = partial[(slice * 2 + 1) * s.C + c];
    for (int64_t next = slice + 1; next * SLICE < s.N && s.token(next * SLICE) == token; next++)
        sum += partial[next * 2 * s.C + c];
    dwte[token * s.C + c] += sum;
}

template <class T, int W>
__global__ void __launch_bounds__(ELEMENT_THREADS)
    sum_positions(float *dwpe, const T *dx, int64_t B, int64_t T_, int64_t C) {
    const int64_t at = (static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x) * W;
    if (at >= T_ * C) return;
    float sum[W] = {};
    for (int64_t b = 0; b < B; b++) {
        float x[W];
        load<W>(x, dx + b * T_ * C + at);
        for (int i = 0; i < W; i++) sum[i] += x[i];
    }
    for (int i = 0; i < W; i++) dwpe[at + i] += sum[i];
}

/* ---- scratch memory ---- */

struct Scratch {
    List lists[2];
    int32_t *of_digit, *counts;
    float *partial;
    size_t bytes = 0;

    Scratch(void *memory, int64_t N, int64_t C) {
        lists[0] = {take<int32_t>(memory, N), take<int32_t>(memory, N)};
        lists[1] = {take<int32_t>(memory, N), take<int32_t>(memory, N)};
        of_digit = take<int32_t>(memory, DIGITS);
        counts = take<int32_t>(memory, DIGITS * ceil_div<int64_t>(N, CHUNK));
        partial = take<float>(memory, ceil_div<int64_t>(N, SLICE) * 2 * C);
    }

  private:
    template <class E> E *take(void *memory, int64_t n) {
        E *const taken = memory ? reinterpret_cast<E *>(static_cast<char *>(memory) + bytes) : nullptr;
        bytes += ceil_div<size_t>(static_cast<size_t>(n) * sizeof(E), 256) * 256;
        return taken;
    }
};

/* The places by token. */
List sort(Queue &queue, const Scratch &s, const int32_t *tokens, int64_t N, int64_t V) {
    const auto chunks = blocks_for(N, CHUNK);
    List from = {const_cast<int32_t *>(tokens), nullptr};
    for (int shift = 0, pass = 0; shift == 0 || (V - 1) >> shift > 0; shift += BITS, pass++) {
        const List to = s.lists[pass % 2];
        ENQUEUE(queue, count_digits, chunks, CHUNK, 0, s.counts, from.tokens, shift, N);
        ENQUEUE(queue, sum_counts, DIGITS, CHUNK, 0, s.of_digit, s.counts, chunks);
        ENQUEUE(queue, move, chunks, CHUNK, 0, to, from, s.of_digit, s.counts, shift, N);
        from = to;
    }
    return from;
}

} // namespace

size_t embedding_scratch(int64_t B, int64_t T, int64_t C) {
    return Scratch(nullptr, B * T, C).bytes;
}

void embedding_forward(Queue &queue, void *x, const int32_t *tokens, const void *wte, const void *wpe, int64_t B,
                       int64_t T, int64_t C) {
    for_rows(queue.type, C, [&](auto element, auto width) {
        using E = decltype(element);
        constexpr int W = decltype(width)::value;
        ENQUEUE(queue, (embed<E, W>), blocks_for(B * T * C, ELEMENT_THREADS * W), ELEMENT_THREADS, 0, as<E>(x), tokens,
                as<E>(wte), as<E>(wpe), B * T, T, C);
    });
}

void embedding_backward(Queue &queue, float *dwte, float *dwpe, const void *dx, const int32_t *tokens, int64_t B,
                        int64_t T, int64_t C, int64_t V) {
    const int64_t N = B * T;
    const Scratch memory(scratch(queue, embedding_scratch(B, T, C)), N, C);
    if (queue.error != cudaSuccess) return;
    const Slices s{sort(queue, memory, tokens, N, V), N, C};
    const auto slices = blocks_for(N, SLICE);
    for_rows(queue.type, C, [&](auto element, auto width) {
        using E = decltype(element);
        constexpr int W = decltype(width)::value;
        ENQUEUE(queue, (sum_slices<E, W>), dim3(slices, blocks_for(C, COLUMNS * W)), COLUMNS, 0, dwte, memory.partial,
                as<E>(dx), s);
        ENQUEUE(queue, join_slices, dim3(slices, blocks_for(C, COLUMNS)), COLUMNS, 0, dwte, memory.partial, s);
        if (!dwpe) return;
        ENQUEUE(queue, (sum_positions<E, W>), blocks_for(T * C, ELEMENT_THREADS * W), ELEMENT_THREADS, 0, dwpe,
                as<E>(dx), B, T, C);
    });
}
