/* Launching a kernel: its arguments are copied, as the device does, and its body is called once for each thread. */
#pragma once

#include "grid.h"
#include "runtime_api.h"

#include <tuple>
#include <utility>

namespace emulation {

cudaError_t run(const void *kernel, Launch launch);

template <class... Parameters> struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;

    template <size_t... I> void operator()(std::index_sequence<I...>) const {
        kernel(std::get<I>(arguments)...);
    }
    static void run_thread(const void *call) {
        (*static_cast<const Call *>(call))(std::index_sequence_for<Parameters...>());
    }
};

template <class... Parameters, class... Arguments>
[[nodiscard]] cudaError_t launch(const char *name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                 size_t shared_bytes, cudaStream_t stream, Arguments... arguments) {
    static_assert(sizeof...(Parameters) == sizeof...(Arguments), "the kernel takes another number of arguments");
    const Call<Parameters...> call{kernel, {static_cast<Parameters>(arguments)...}};
    const cudaError_t error = enqueue(stream, [=] {
        Launch l;
        l.kernel = name;
        l.grid = grid;
        l.block = block;
        l.shared_bytes = shared_bytes;
        l.call = call.run_thread;
        l.arguments = &call;
        return run(reinterpret_cast<const void *>(kernel), l);
    });
    cudaGetLastError();   // reported here, so not again later
    return error;
}

} // namespace emulation
