#include "block.h"
#include "grid.h"
#include "launch.h"
#include "runtime_api.h"
#include "sanitizers.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unistd.h>
#include <utility>
#include <vector>

namespace emulation {

struct Graph {
    std::vector<std::function<cudaError_t()>> operations;
    bool invalidated = false;
};

struct GraphExec {
    Graph graph;
};

struct Stream {
    Graph *capture = nullptr;   // where operations go instead of being done
    bool origin = false;        // the stream that the capture began on
};

struct Event {
    Graph *capture = nullptr;
    std::chrono::steady_clock::time_point time{};
};

static thread_local cudaError_t last_error = cudaSuccess;
static thread_local std::string failure;           // the sentence on the latest failed launch
static thread_local Graph *capturing = nullptr;    // at most one capture a host thread
static thread_local std::vector<Stream *> captured;
static std::atomic<unsigned long long> launches;   // of kernels, so far

static std::mutex table_mutex;

/* Device memory, with a margin on both sides in which no kernel may write. */
struct Allocation {
    size_t bytes;
    uint32_t margin;   // what fills its margins: another word in each, so that a copy from margin to margin shows
};
static std::map<const void *, Allocation> allocations;
static size_t allocated;
static std::map<const void *, size_t> shared_limits;

cudaError_t remember(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

/* How the device fails, after PYGPT_EMULATION_ERROR=CODE or CODE@LAUNCHES; it does not recover. */
static cudaError_t failed() {
    const char *text = getenv("PYGPT_EMULATION_ERROR");
    if (!text) return cudaSuccess;
    int code = cudaErrorInvalidValue;
    unsigned long long after = 0;
    sscanf(text, "%d@%llu", &code, &after);
    return launches >= after ? remember(static_cast<cudaError_t>(code)) : cudaSuccess;
}

/* For what may not happen while a graph is captured, because it would have to wait for work that is only being
 * recorded; the first error of any call that waits. */
static cudaError_t forbidden_in_capture() {
    if (const cudaError_t error = failed()) return error;
    if (!capturing) return cudaSuccess;
    capturing->invalidated = true;
    return remember(cudaErrorStreamCaptureUnsupported);
}

cudaError_t enqueue(Stream *stream, std::function<cudaError_t()> operation) {
    if (const cudaError_t error = failed()) return error;
    if (stream && stream->capture) {
        stream->capture->operations.push_back(std::move(operation));
        return cudaSuccess;
    }
    if (!stream && capturing) {   // the default stream waits for all others
        capturing->invalidated = true;
        return remember(cudaErrorStreamCaptureImplicit);
    }
    return remember(operation());
}

/* ---- device ---- */

struct Device {
    int major, minor;
    size_t shared_optin;
    size_t memory, used;   // used: by other processes
    int driver;            // version of CUDA, as 1000 major + 10 minor; 0 where there is none
};

constexpr int runtime_version = 13000;

static size_t number_in(const char *variable, size_t otherwise) {
    const char *text = getenv(variable);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

static Device device() {
    /* all that the kernels can use, and the least shared memory among such devices */
    Device d{8, 6, 0, 0, 0, runtime_version};
    if (const char *text = getenv("PYGPT_EMULATION_COMPUTE_CAPABILITY")) sscanf(text, "%d.%d", &d.major, &d.minor);
    const int capability = 10 * d.major + d.minor;
    size_t kilobytes = 99;
    if (capability == 75)
        kilobytes = 64;
    else if (capability == 80 || capability == 87)
        kilobytes = 163;
    else if (capability >= 90 && capability < 120)
        kilobytes = 227;
    d.shared_optin = kilobytes << 10;
    d.memory = number_in("PYGPT_EMULATION_MEMORY",
                         static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE)));
    d.used = std::min(number_in("PYGPT_EMULATION_MEMORY_USED", 0), d.memory);
    if (const char *text = getenv("PYGPT_EMULATION_DRIVER")) {
        int major = 0, minor = 0;
        sscanf(text, "%d.%d", &major, &minor);
        d.driver = 1000 * major + 10 * minor;
    }
    return d;
}

static thread_local int current_device = 0;   // they are all alike, and each process has its own

static int device_count() {
    return static_cast<int>(std::min(number_in("PYGPT_EMULATION_DEVICES", 1024), size_t{1024}));
}

/* With the table locked. */
static size_t free_memory() {
    const Device d = device();
    const size_t left = d.memory - d.used;
    return left > allocated ? left - allocated : 0;
}

constexpr size_t shared_default = size_t{48} << 10;

/* ---- margins ---- */

constexpr size_t margin_bytes = 256;   // as the alignment

static bool is_filled(const unsigned char *margin, uint32_t word) {
    for (size_t i = 0; i < margin_bytes; i += sizeof word)
        if (memcmp(margin + i, &word, sizeof word) != 0) return false;
    return true;
}

static void fill(unsigned char *margin, uint32_t word) {
    for (size_t i = 0; i < margin_bytes; i += sizeof word) memcpy(margin + i, &word, sizeof word);
}

/* Whether a kernel has written into a margin: "", or a sentence. AddressSanitizer stops at the write itself. */
static std::string overrun(const char *kernel) {
    if (watches_memory) return "";
    const std::lock_guard<std::mutex> lock(table_mutex);
    for (const auto &[start, allocation] : allocations) {
        auto *const first = static_cast<unsigned char *>(const_cast<void *>(start));
        unsigned char *const margins[] = {first - margin_bytes, first + allocation.bytes};
        for (int after = 0; after < 2; after++) {
            if (is_filled(margins[after], allocation.margin)) continue;
            fill(margins[after], allocation.margin);   // reported once
            return std::string("kernel ") + kernel + ": something is written " +
                   (after ? "after the last" : "before the first") + " of the " + std::to_string(allocation.bytes) +
                   " bytes (" + std::to_string(allocation.bytes / sizeof(float)) +
                   " floats) of a buffer: is a loop too long?";
        }
    }
    return "";
}

/* ---- launches ---- */

cudaError_t run(const void *kernel, Launch launch) {
    if (const cudaError_t error = failed()) return error;
    launches++;
    size_t dynamic_limit = shared_default;
    launch.shared_limit = shared_default;
    {
        const std::lock_guard<std::mutex> lock(table_mutex);
        if (const auto limit = shared_limits.find(kernel); limit != shared_limits.end()) {
            dynamic_limit = std::max(dynamic_limit, limit->second);
            launch.shared_limit = device().shared_optin;
        }
    }
    const dim3 &g = launch.grid, &b = launch.block;
    if (!g.x || !g.y || !g.z || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535 || !b.x || !b.y || !b.z ||
        uint64_t{b.x} * b.y * b.z > 1024 || b.z > 64)
        return cudaErrorInvalidConfiguration;
    if (launch.shared_bytes > dynamic_limit) return cudaErrorInvalidValue;
    if (!read_order(launch.order)) {
        failure = "PYGPT_EMULATION_ORDER is not forward, reverse or random:SEED";
        return cudaErrorLaunchFailure;
    }
    std::string sentence = run_grid(launch);
    if (sentence.empty()) sentence = overrun(launch.kernel);
    if (sentence.empty()) return cudaSuccess;
    failure = std::move(sentence);
    return cudaErrorLaunchFailure;
}

cudaError_t set_attribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || static_cast<size_t>(value) > device().shared_optin) return remember(cudaErrorInvalidValue);
    const std::lock_guard<std::mutex> lock(table_mutex);
    shared_limits[kernel] = static_cast<size_t>(value);
    return cudaSuccess;
}

/* ---- memory ---- */

cudaError_t host_malloc(void **p, size_t bytes) {
    *p = nullptr;
    if (cudaError_t error = forbidden_in_capture()) return error;
    if (bytes && posix_memalign(p, 256, bytes) != 0)   // what cudaMalloc promises at least
        return remember(cudaErrorMemoryAllocation);
    return cudaSuccess;
}

cudaError_t device_malloc(void **p, size_t bytes) {
    *p = nullptr;
    const std::lock_guard<std::mutex> lock(table_mutex);
    if (cudaError_t error = forbidden_in_capture()) return error;
    if (bytes > free_memory()) return remember(cudaErrorMemoryAllocation);
    if (!bytes) return cudaSuccess;
    void *whole = nullptr;
    if (cudaError_t error = host_malloc(&whole, bytes + 2 * margin_bytes)) return error;
    auto *const first = static_cast<unsigned char *>(whole) + margin_bytes;
    Order order;
    read_order(order);
    fill_undefined(first, bytes, order.fill);
    static uint32_t count;
    const uint32_t word = 0x15001500u | (++count * 0x9e3779b1u & 0x00ff00ffu);   // small: any sum with it is another
    for (unsigned char *margin : {first - margin_bytes, first + bytes}) {
        fill(margin, word);
        forbid(margin, margin_bytes);
    }
    *p = first;
    allocations[*p] = {bytes, word};
    allocated += bytes;
    return cudaSuccess;
}

}   // namespace emulation

using namespace emulation;

cudaError_t cudaFree(void *p) {
    if (cudaError_t error = forbidden_in_capture()) return error;
    if (!p) return cudaSuccess;
    const std::lock_guard<std::mutex> lock(table_mutex);
    const auto found = allocations.find(p);
    if (found == allocations.end()) return remember(cudaErrorInvalidValue);
    const size_t bytes = found->second.bytes;
    allocated -= bytes;
    allocations.erase(found);
    unsigned char *const whole = static_cast<unsigned char *>(p) - margin_bytes;
    allow(whole, bytes + 2 * margin_bytes);
    free(whole);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p) {
    free(p);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    if (const cudaError_t error = failed()) return error;
    const std::lock_guard<std::mutex> lock(table_mutex);
    *total_bytes = device().memory;
    *free_bytes = free_memory();
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
    if (cudaError_t error = forbidden_in_capture()) return error;
    memmove(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    return enqueue(stream, [=] {
        memmove(to, from, bytes);
        return cudaSuccess;
    });
}

cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    if (cudaError_t error = forbidden_in_capture()) return error;
    memset(p, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) {
    return enqueue(stream, [=] {
        memset(p, value, bytes);
        return cudaSuccess;
    });
}

/* ---- errors ---- */

cudaError_t cudaGetLastError() {
    return std::exchange(last_error, cudaSuccess);
}

cudaError_t cudaPeekAtLastError() {
    return last_error;
}

struct ErrorText {
    cudaError_t error;
    const char *name, *sentence;
};

static const ErrorText error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid grid or block size"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver", "the driver is older than the runtime"},
    {cudaErrorDevicesUnavailable, "cudaErrorDevicesUnavailable", "the device is busy or unavailable"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no device"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "no such device"},
    {cudaErrorIllegalState, "cudaErrorIllegalState", "not possible in this state"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "a kernel failed"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "not permitted while a stream is captured"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "the capture failed because of an earlier error"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit", "would wait for a stream that is captured"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

static const ErrorText *find_text(cudaError_t error) {
    for (const ErrorText &text : error_texts)
        if (text.error == error) return &text;
    return nullptr;
}

const char *cudaGetErrorName(cudaError_t error) {
    const ErrorText *text = find_text(error);
    return text ? text->name : "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error) {
    if (error == cudaErrorLaunchFailure && !failure.empty()) return failure.c_str();
    const ErrorText *text = find_text(error);
    return text ? text->sentence : "unrecognized error code";
}

/* ---- device ---- */

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    if (device().driver < runtime_version) return remember(cudaErrorInsufficientDriver);
    if (failed() == cudaErrorNoDevice) return cudaErrorNoDevice;   // other errors show when the device is used
    *count = device_count();
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *number) {
    *number = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int number) {
    if (number < 0 || number >= device_count()) return remember(cudaErrorInvalidDevice);
    current_device = number;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int number) {
    if (number < 0 || number >= device_count()) return remember(cudaErrorInvalidDevice);
    const Device d = device();
    *properties = {};
    snprintf(properties->name, sizeof properties->name, "CUDA emulated on the CPU");
    const int identity[] = {number, static_cast<int>(gethostid())};
    memcpy(properties->uuid.bytes, identity, sizeof identity);
    properties->totalGlobalMem = d.memory;
    properties->sharedMemPerBlock = shared_default;
    properties->sharedMemPerBlockOptin = d.shared_optin;
    properties->sharedMemPerMultiprocessor = d.shared_optin + 1024;
    properties->regsPerBlock = 65536;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 1024;
    properties->multiProcessorCount = 4;
    properties->l2CacheSize = 4 << 20;
    properties->major = d.major;
    properties->minor = d.minor;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int number) {
    cudaDeviceProp p;
    if (cudaError_t error = cudaGetDeviceProperties(&p, number)) return error;
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = static_cast<int>(p.sharedMemPerMultiprocessor); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(p.sharedMemPerBlockOptin); break;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
    return forbidden_in_capture();
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = device().driver;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = runtime_version;
    return cudaSuccess;
}

/* ---- streams and events ---- */

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    if (const cudaError_t error = failed()) return error;
    *stream = new Stream;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    return cudaStreamCreate(stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return forbidden_in_capture();
}

cudaError_t cudaStreamQuery(cudaStream_t) {
    return forbidden_in_capture();
}

static void join_capture(Stream *stream, Graph *graph) {
    if (stream->capture) return;
    stream->capture = graph;
    captured.push_back(stream);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (stream && event->capture && event->capture == capturing) join_capture(stream, event->capture);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = new Event;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    return cudaEventCreate(event);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    event->capture = stream ? stream->capture : nullptr;
    event->time = std::chrono::steady_clock::now();
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return forbidden_in_capture();
}

cudaError_t cudaEventQuery(cudaEvent_t) {
    return forbidden_in_capture();
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return cudaSuccess;
}

/* ---- graphs: the recorded operations in the order of their capture, which respects every dependency ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (!stream || capturing) return remember(cudaErrorIllegalState);
    capturing = new Graph;
    join_capture(stream, capturing);
    stream->origin = true;
    capturing->invalidated = getenv("PYGPT_EMULATION_NO_CAPTURE") != nullptr;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = nullptr;
    if (!stream || !stream->origin) return remember(cudaErrorIllegalState);
    for (Stream *s : captured) s->capture = nullptr;
    captured.clear();
    stream->origin = false;
    Graph *done = std::exchange(capturing, nullptr);
    if (done->invalidated) {
        delete done;
        return remember(cudaErrorStreamCaptureInvalidated);
    }
    *graph = done;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    if (!stream || !stream->capture)
        *status = cudaStreamCaptureStatusNone;
    else
        *status = stream->capture->invalidated ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new GraphExec{*graph};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    return enqueue(stream, [exec] {
        for (const auto &operation : exec->graph.operations)
            if (cudaError_t error = operation()) return error;
        return cudaSuccess;
    });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
