/* Products of a few rows with packed weights, at the speed of the memory. The LayerNorm before and what follows are part of
 * them.
 *
 *   y = residual + activation(LayerNorm(x) w + b)      with bfloat16, what enters the product is rounded too
 *   int8, int4      y_n = Σ_groups s_n sx Σ_k q_kn qx_k       sx = max |x| / 127      qx = x / sx, rounded
 *
 * A block has R rows and some panels, one after the other. Its threads divide a panel into pieces of 16 bytes, which they read
 * side by side and each once; the first are on their way while the inputs are normalised, rounded and staged in shared memory.
 *
 * A thread adds up the inputs of its pieces in ascending order, then lanes are added pairwise, then warps in ascending order.
 * Which piece is whose depends on the type alone: so a sum has the same bits for any R and any number of rows.
 */
#include "exact_gelu.cuh"
#include "gelu.cuh"
#include "generation.cuh"
#include "row_statistics.cuh"

namespace {

constexpr int WARPS = DIVIDES_WORK(8, 2), THREADS = 32 * WARPS;
constexpr int MOST_ROWS = 8;   // of a block
constexpr int TILE = DIVIDES_WORK(8192, 2048);   // inputs that are staged at a time, of all rows together
constexpr int MOST_BLOCKS =
    DIVIDES_WORK(1024, 4);   // about what a device runs at once; beyond, a block has several panels

/* The inputs of R rows that are staged. */
template <int R, bool integers> struct Tile {
    static constexpr int inputs = TILE / R;
    float x[R][inputs];
};
template <int R> struct Tile<R, true> {
    static constexpr int inputs = TILE / R;
    int q[R][inputs / 4];   // a byte each
    float scale[R][inputs / GROUP];
};

/* A warp has a row. */
template <int R> __device__ void find_statistics(RowStatistics *statistics, const PackedProduct &p, int64_t first_row) {
    for (int r = threadIdx.x / 32; r < R; r += WARPS) {
        const float *const x = p.x + min(first_row + r, p.rows - 1) * p.w.K;
        const RowStatistics found =
            row_statistics<1>(p.w.K, p.norm.eps, [x](float (&to)[1], int64_t k) { to[0] = x[k]; });
        if (threadIdx.x % 32 == 0) statistics[r] = found;
    }
}

/* What enters the product; 0 beyond the last one. */
__device__ float input_of(const PackedProduct &p, const RowStatistics &s, int64_t row, int64_t k) {
    if (k >= p.w.K) return 0.0f;
    const float x = p.x[row * p.w.K + k];
    if (!p.norm.w) return x;
    return (x - s.mean) * s.rstd * p.norm.w[k] + (p.norm.b ? p.norm.b[k] : 0.0f);
}

/* The larger one; a NaN stays. */
__device__ float larger(float a, float b) {
    return a != a || a >= b ? a : b;
}

/* quantise_inputs() of csrc/packed.c for one group. Eight lanes have it; gives this lane's four numbers, a byte each. */
__device__ int quantise(const float (&x)[4], float *scale) {
    const int lane = threadIdx.x % 32;
    const unsigned mask = 0xffu << (lane & 24);
    float largest = 0;
    for (float each : x) largest = larger(largest, fabsf(each));
    for (int delta = 4; delta > 0; delta /= 2) largest = larger(largest, __shfl_xor_sync(mask, largest, delta));
    const float s = largest / 127.0f;
    if (lane % 8 == 0) *scale = s;
    uint32_t word = 0;
    for (int i = 0; i < 4; i++) {
        const float q = s != 0.0f ? rintf(x[i] / s) : 0.0f;
        const int clamped = q >= -127.0f ? q <= 127.0f ? static_cast<int>(q) : 127 : -127;   // -127 for a NaN
        word |= static_cast<uint32_t>(clamped & 255) << 8 * i;
    }
    return static_cast<int>(word);
}

/* `count` inputs from number `first` on. */
template <int type, int R>
__device__ void stage(Tile<R, Piece<type>::integers> &tile, const PackedProduct &p, const RowStatistics *statistics,
                      int64_t first_row, int64_t first, int count) {
    UNROLL
    for (int r = 0; r < R; r++) {
        const int64_t row = min(first_row + r, p.rows - 1);
        const RowStatistics s = statistics[r];
        if constexpr (Piece<type>::integers) {
            for (int i = threadIdx.x; i < count / 4; i += THREADS) {
                float x[4];
                for (int j = 0; j < 4; j++) x[j] = input_of(p, s, row, first + 4 * i + j);
                tile.q[r][i] = quantise(x, &tile.scale[r][i / 8]);
            }
        } else {
            for (int i = threadIdx.x; i < count; i += THREADS) {
                const float x = input_of(p, s, row, first + i);
                tile.x[r][i] = type == PYGPT_BFLOAT16 ? stored<bf16>(x) : x;
            }
        }
    }
}

/* What enters the product, as it is before rounding: by the first blocks. */
template <int R>
__device__ void write_normalised(const PackedProduct &p, const RowStatistics *statistics, int64_t first_row) {
    for (int64_t row = first_row; row < min(first_row + R, p.rows); row++)
        for (int64_t k = threadIdx.x; k < p.w.K; k += THREADS)
            p.normalised[row * p.w.K + k] = input_of(p, statistics[row - first_row], row, k);
}

/* sum += x w over the inputs of a piece, the first of which is number k of the tile. */
template <int type, int R>
__device__ void add_products(float (&sum)[R * Piece<type>::outputs], const Piece<type> &piece,
                             const Tile<R, Piece<type>::integers> &tile, int k) {
    constexpr int inputs = Piece<type>::inputs, outputs = Piece<type>::outputs;
    if constexpr (Piece<type>::integers) {
        constexpr int words = Piece<type>::words, surplus = Piece<type>::surplus * 0x01010101;
        int w[words][outputs];
        piece.bytes(w);
        UNROLL
        for (int r = 0; r < R; r++) {
            const Vector<int, words> q = *reinterpret_cast<const Vector<int, words> *>(&tile.q[r][k / 4]);
            int too_much = 0;
            for (int i = 0; i < words && surplus; i++) too_much = __dp4a(surplus, q.element[i], too_much);
            for (int j = 0; j < outputs; j++) {
                int dot = -too_much;
                for (int i = 0; i < words; i++) dot = __dp4a(w[i][j], q.element[i], dot);
                const float scale = static_cast<float>(piece.scales.element[j]) * tile.scale[r][k / GROUP];
                sum[r * outputs + j] += static_cast<float>(dot) * scale;
            }
        }
    } else {
        float w[inputs][outputs];
        piece.weights(w);
        UNROLL
        for (int r = 0; r < R; r++) {
            float x[inputs];
            load<inputs>(x, &tile.x[r][k]);
            for (int i = 0; i < inputs; i++)
                for (int j = 0; j < outputs; j++) sum[r * outputs + j] += x[i] * w[i][j];
        }
    }
}

/* Adds up the numbers of lanes that are alike modulo `across`, pairwise: first those `delta` apart. In each step a lane keeps
 * half of its `count` sums, from number `first` on, and passes the other half on; once it has but one, one of two lanes keeps it.
 * store(number, sum) is called for each sum by one lane. */
template <int across, int delta, int count, int V, class Store>
__device__ void add_lanes(float (&sum)[V], int first, bool keeps, Store store) {
    if constexpr (delta < across) {
        for (int v = 0; v < count && keeps; v++) store(first + v, sum[v]);
    } else {
        constexpr int half = count / 2;
        const bool upper = threadIdx.x & delta;
        for (int v = 0; v < half; v++) {
            const float kept = upper ? sum[v + half] : sum[v], passed = upper ? sum[v] : sum[v + half];
            sum[v] = kept + __shfl_xor_sync(0xffffffffu, passed, delta);
        }
        if constexpr (half == 0) sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], delta);
        add_lanes<across, delta / 2, half ? half : 1>(sum, upper ? first + half : first, keeps && (half || !upper),
                                                      store);
    }
}

__device__ float activation_of(int activation_function, float x) {
    switch (activation_function) {
    case PYGPT_GELU: return exact_gelu_of(x);
    case PYGPT_RELU: return x > 0.0f ? x : 0.0f;
    default: return gelu_of(x);
    }
}

/* Thread t has output t % PACKED_WIDTH of row t / PACKED_WIDTH. */
template <int R>
__device__ void finish(const PackedProduct &p, const float (*partial)[R * PACKED_WIDTH], int64_t first_row,
                       int64_t panel) {
    const int t = threadIdx.x;
    const int64_t row = first_row + t / PACKED_WIDTH, n = panel * PACKED_WIDTH + t % PACKED_WIDTH;
    if (t >= R * PACKED_WIDTH || row >= p.rows || n >= p.w.N) return;
    float y = p.b ? p.b[n] : 0.0f;
    for (int warp = 0; warp < WARPS; warp++) y += partial[warp][t];
    if (p.activated) y = activation_of(p.activation_function, y);
    if (p.residual) y += p.residual[row * p.w.N + n];
    p.y[row * p.w.N + n] = y;
}

template <int type, int R> __global__ void __launch_bounds__(THREADS) packed_product_rows(PackedProduct p) {
    using Piece = ::Piece<type>;
    using Tile = ::Tile<R, Piece::integers>;
    constexpr int outputs = Piece::outputs, across = Piece::across;
    constexpr int step = THREADS / across * Piece::inputs;   // inputs that the threads read at once
    constexpr int ahead = R <= 2 && !Piece::integers ? 8 : 4;   // pieces of a thread that are on their way together
    static_assert(Tile::inputs % step == 0, "or what a thread adds up would depend on R");
    SHARED(Tile, tile, );
    SHARED(RowStatistics, statistics, [R]);
    SHARED(float, partial, [WARPS][R * PACKED_WIDTH]);
    const int warp = threadIdx.x / 32, part = threadIdx.x % across, mine = threadIdx.x / across * Piece::inputs;
    const int64_t first_row = static_cast<int64_t>(blockIdx.y) * R, K = ceil_div<int64_t>(p.w.K, GROUP) * GROUP;
    const int64_t panels = ceil_div<int64_t>(p.w.N, PACKED_WIDTH);
    const bool one_tile = K <= Tile::inputs;

    for (int64_t panel = blockIdx.x; panel < panels; panel += gridDim.x) {
        float sum[R * outputs] = {};
        for (int64_t first = 0; first < K; first += Tile::inputs) {
            const int count = static_cast<int>(min(int64_t{Tile::inputs}, K - first));
            for (int begin = 0; begin < count; begin += ahead * step) {
                Piece pieces[ahead];
                UNROLL
                for (int i = 0; i < ahead; i++) {
                    const int k = begin + i * step + mine;
                    if (k < count) pieces[i].read(p.w, panel, first + k, part * outputs);
                }
                const bool first_panel = panel == blockIdx.x;
                if (begin == 0 && (first_panel || !one_tile)) {
                    if (first_panel && first == 0 && p.norm.w) find_statistics<R>(statistics, p, first_row);
                    __syncthreads();   // the statistics are there, and nobody reads the tile before
                    stage<type>(tile, p, statistics, first_row, first, count);
                    __syncthreads();
                }
                UNROLL
                for (int i = 0; i < ahead; i++) {
                    const int k = begin + i * step + mine;
                    if (k < count) add_products(sum, pieces[i], tile, k);
                }
            }
        }
        add_lanes<across, 16, R * outputs>(sum, 0, true, [&](int v, float total) {
            partial[warp][v / outputs * PACKED_WIDTH + part * outputs + v % outputs] = total;
        });
        __syncthreads();
        finish<R>(p, partial, first_row, panel);
        __syncthreads();   // the next panel writes to partial
    }
    if (p.normalised && blockIdx.x == 0) write_normalised<R>(p, statistics, first_row);
}

template <int type, int R = 1> void enqueue_product(Queue &queue, const PackedProduct &p) {
    if constexpr (R < MOST_ROWS)
        if (p.rows > R) return enqueue_product<type, 2 * R>(queue, p);
    const int64_t tiles = ceil_div<int64_t>(p.rows, R);
    const int64_t blocks = min64(packed_panels(&p.w), max64(MOST_BLOCKS / tiles, 1));
    ENQUEUE(queue, (packed_product_rows<type, R>), dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(tiles)),
            THREADS, 0, p);
}

}   // namespace

void packed_product(Queue &queue, const PackedProduct &p) {
    if (p.w.type == PYGPT_INT4) enqueue_product<PYGPT_INT4>(queue, p);
    for_weights(p.w.type, [&](auto type) { enqueue_product<decltype(type)::value>(queue, p); });
}
