/* The layers that treat each element alone: y_i from the i-th elements of the inputs. */
#pragma once

#include "elements.cuh"
#include "layers.cuh"

/* function(y, x, first) makes elements first, first + 1, ... of y from those of the inputs, x[input][element]. */
template <class T, class Function, int inputs> struct Elementwise {
    T *y;
    const T *x[inputs];
    Function function;
};

template <class T, class Function, int inputs>
__global__ void __launch_bounds__(ELEMENT_THREADS) elementwise(Elementwise<T, Function, inputs> e, int64_t n) {
    constexpr int W = widest<T>;
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x) * W;
    if (first + W <= n) {
        float x[inputs][W], y[W];
        for (int input = 0; input < inputs; input++) load<W>(x[input], e.x[input] + first);
        e.function(y, x, first);
        store<W>(e.y + first, y);
        return;
    }
    for (int64_t i = first; i < n; i++) {
        float x[inputs][1], y[1];
        for (int input = 0; input < inputs; input++) load<1>(x[input], e.x[input] + i);
        e.function(y, x, i);
        store<1>(e.y + i, y);
    }
}

/* In this type. */
template <class T, class Function, class... Inputs>
void for_each_element_of(Queue &queue, const char *layer, int64_t n, Function function, void *y, Inputs... x) {
    if (queue.error != cudaSuccess || n == 0) return;
    using E = Elementwise<T, Function, sizeof...(x)>;
    const E e{as<T>(y), {as<T>(static_cast<const void *>(x))...}, function};
    const unsigned blocks = blocks_for(n, ELEMENT_THREADS * widest<T>);
    note(queue, LAUNCH((elementwise<T, Function, sizeof...(x)>), blocks, ELEMENT_THREADS, 0, queue.stream, e, n),
         layer);
}

/* In the type of the tensors. */
template <class Function, class... Inputs>
void for_each_element(Queue &queue, const char *layer, int64_t n, Function function, void *y, Inputs... x) {
    for_type(queue.type,
             [&](auto element) { for_each_element_of<decltype(element)>(queue, layer, n, function, y, x...); });
}
