/* How kernels read and write tensors: up to 16 bytes at a time, converted to float; and how host functions choose
 * among a kernel's instances. */
#pragma once

#include "../common.cuh"
#include "../matmul.cuh"

#include <type_traits>

using bf16 = __nv_bfloat16;

/* W neighbouring elements, one access of the memory. */
template <class T, int W> struct alignas(sizeof(T) * W) Vector {
    T element[W];
};

/* Elements of 16 bytes. */
template <class T> constexpr int widest = 16 / static_cast<int>(sizeof(T));

template <int W, class T> __device__ inline void load(float (&x)[W], const T *p) {
    const Vector<T, W> v = *reinterpret_cast<const Vector<T, W> *>(p);
    for (int i = 0; i < W; i++) x[i] = static_cast<float>(v.element[i]);
}

template <int W, class T> __device__ inline void store(T *p, const float (&x)[W]) {
    Vector<T, W> v;
    for (int i = 0; i < W; i++) v.element[i] = static_cast<T>(x[i]);
    *reinterpret_cast<Vector<T, W> *>(p) = v;
}

/* What storing x and loading it again gives. */
template <class T> __device__ inline float stored(float x) {
    return static_cast<float>(static_cast<T>(x));
}

/* f(element, width): with an element of the type, for rows of so many elements. Rows that are no multiple of 16 bytes
 * are read element by element. */
template <class F> void for_rows(DataType type, int64_t row, F f) {
    auto with = [&](auto element) {
        constexpr int W = widest<decltype(element)>;
        row % W == 0 ? f(element, std::integral_constant<int, W>{}) : f(element, std::integral_constant<int, 1>{});
    };
    type == DataType::float32 ? with(float{}) : with(bf16{});
}

template <class F> void for_type(DataType type, F f) {
    type == DataType::float32 ? f(float{}) : f(bf16{});
}

template <class T> __host__ __device__ T *as(void *p) {
    return static_cast<T *>(p);
}
template <class T> __host__ __device__ const T *as(const void *p) {
    return static_cast<const T *>(p);
}

inline unsigned blocks_for(int64_t threads, int64_t of_block) {
    return static_cast<unsigned>(ceil_div(threads, of_block));
}
