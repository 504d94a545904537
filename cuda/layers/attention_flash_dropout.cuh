/* Dropout's bits in the lanes of a product on tensor cores.
 *
 * If T is a multiple of 4, four elements that share a draw are four keys of one query. They lie in several lanes, each
 * of which makes one draw in four and passes on what others need. Otherwise each element is drawn by itself, which
 * costs four times as much.
 */
#pragma once

#include "attention_dropout.cuh"
#include "attention_flash_tile.cuh"

namespace {

/* Which elements of a product (16 M, 8 N) are dropped: a bit for each element that this lane holds. */
template <int M, int N> struct Dropped {
    static constexpr int draws = M * N < 8 ? M * N : 8;   // in a word, of four bits each
    unsigned words[M * N / draws];

    __device__ bool operator()(int m, int n, int i) const {
        const int draw = m * N + n;
        return words[draw / draws] >> (draw % draws * 4 + i) & 1;
    }

    /* four_of(m, n): the bits of c[m][n]. Few draws at a time, because each one takes many registers. */
    template <class FourOf> __device__ void draw(FourOf four_of) {
        UNROLL
        for (int i = 0; i < M * N / draws; i++) {
            words[i] = 0;
            UNROLL_BY(2)
            for (int j = 0; j < draws; j++) words[i] |= four_of((i * draws + j) / N, (i * draws + j) % N) << 4 * j;
        }
    }
};

struct DropoutBits : DropoutDraws {
    using DropoutDraws::DropoutDraws;

    /* For queries as rows and keys as columns, from (query,key) on. */
    template <int M, int N> __device__ void by_queries(Dropped<M, N> &dropped, int query, int key) const {
        const int g = threadIdx.x % 32 / 4;
        dropped.draw([&](int m, int n) { return of_queries(query + 16 * m + g, key + 8 * n); });
    }

    /* For keys as rows and queries as columns. */
    template <int M, int N> __device__ void by_keys(Dropped<M, N> &dropped, int query, int key) const {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        dropped.draw([&](int m, int n) { return of_keys(query + 8 * n + 2 * t, key + 16 * m + g); });
    }

  private:
    /* Elements (query, key + 2t), (query, key + 2t + 1), and the same of query + 8: bits 0 to 3. */
    __device__ unsigned of_queries(int query, int key) const {
        const unsigned t = threadIdx.x % 4;
        if (T % 4 != 0) return one_by_one([&](int i) { return number(query + i / 2 * 8, key + 2 * t + i % 2); });
        // even lanes draw for the upper row, odd ones for the lower: four keys, of which each of two lanes has two
        const unsigned odd = t % 2;
        const unsigned drawn = four<1>(number(query + 8 * odd, key + t / 2 * 4));
        const unsigned other = __shfl_xor_sync(0xffffffffu, drawn, 1) >> 2 * odd & 3, own = drawn >> 2 * odd & 3;
        return odd ? other | own << 2 : own | other << 2;
    }

    /* Elements (query, key), (query + 1, key), and the same of key + 8. */
    __device__ unsigned of_keys(int query, int key) const {
        if (T % 4 != 0) return one_by_one([&](int i) { return number(query + i % 2, key + i / 2 * 8); });
        // four lanes have one of four keys each, and each draws for another element
        const unsigned r = threadIdx.x / 4 % 4;
        unsigned drawn = four<4>(number(query + r % 2, key - r + r / 2 * 8)) << r;
        drawn |= __shfl_xor_sync(0xffffffffu, drawn, 4);
        drawn |= __shfl_xor_sync(0xffffffffu, drawn, 8);
        return drawn >> 4 * r & 15;
    }

    template <class Element> __device__ unsigned one_by_one(Element element) const {
        unsigned bits = 0;
        UNROLL_BY(2)
        for (int i = 0; i < 4; i++) bits |= (four<1>(element(i)) >> element(i) % 4 & 1) << i;
        return bits;
    }
};

} // namespace
