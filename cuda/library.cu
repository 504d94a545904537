/* What this library was built for, and what the device is. */
#include "device.cuh"

#include <cstdio>
#include <cstring>
#include <unistd.h>

static const int LEAST_CAPABILITY = 75, LEAST_CAPABILITY_BFLOAT16 = 80;

/* What is found of the current device. */
struct Device {
    int status = PYGPT_OK;
    int capability = 0, others = 0;   // others: devices besides it
    pid_t process = getpid();
    char sentence[400] = "", name[300] = "";
    uint8_t id[16] = {};

    Device() {
        int count = 0, driver = 0, built_for = 0, number = 0;
        cudaRuntimeGetVersion(&built_for);
        cudaError_t error = cudaGetDeviceCount(&count);
        if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice ||
            (error == cudaSuccess && count == 0)) {
            cudaGetLastError();
            if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
                refuse("no NVIDIA driver is installed");
            } else if (error == cudaErrorInsufficientDriver) {
                snprintf(sentence, sizeof sentence,
                         "the NVIDIA driver is made for CUDA %d.%d, and this library needs one for CUDA %d.%d or later",
                         driver / 1000, driver % 1000 / 10, built_for / 1000, built_for % 1000 / 10);
                status = PYGPT_ERROR_DEVICE;
            } else {
                refuse("there is no CUDA device, or CUDA_VISIBLE_DEVICES hides it");
            }
            return;
        }
        cudaDeviceProp properties;
        if (error == cudaSuccess) error = cudaGetDevice(&number);
        if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, number);
        if (error != cudaSuccess) {
            cudaGetLastError();
            refuse(cudaGetErrorString(error));
            return;
        }
        others = count - 1;
        memcpy(id, properties.uuid.bytes, sizeof id);
        capability = 10 * properties.major + properties.minor;
        snprintf(name, sizeof name, "%s, compute capability %d.%d", properties.name, properties.major,
                 properties.minor);
        if (capability < LEAST_CAPABILITY) {
            snprintf(sentence, sizeof sentence, "%s, expected compute capability 7.5 or more", name);
            status = PYGPT_ERROR_DEVICE;
        }
    }

    void refuse(const char *reason) {
        snprintf(sentence, sizeof sentence, "%s", reason);
        status = PYGPT_ERROR_DEVICE;
    }
};

/* Looked for once, and again when another is chosen. */
static Device &device() {
    static Device found;
    return found;
}

int check_device(DataType type) {
    if (device().status != PYGPT_OK) return fail(device().status, "%s", device().sentence);
    if (type == DataType::bfloat16 && device().capability < LEAST_CAPABILITY_BFLOAT16) {
        return fail(
            PYGPT_ERROR_ARGUMENT,
            "dtype \"bfloat16\" needs compute capability 8.0 or more, and the device is %s: \"float32\" works on it",
            device().name);
    }
    return PYGPT_OK;
}

const char *device_name() {
    return device().name;
}

int fail_cuda(cudaError_t error, const char *what) {
    cudaGetLastError();
    if (error == cudaErrorMemoryAllocation) {
        size_t free_bytes = 0, total_bytes = 0;
        cudaMemGetInfo(&free_bytes, &total_bytes);
        return fail(PYGPT_ERROR_MEMORY, "no memory on the device for %s: %.2f of %.2f GiB are free", what,
                    static_cast<double>(free_bytes) / GIB, static_cast<double>(total_bytes) / GIB);
    }
    if (error == cudaErrorInitializationError && device().process != getpid()) {
        return fail(PYGPT_ERROR_DEVICE,
                    "the device cannot be used after a fork of the process that used it first: start "
                    "processes by \"spawn\", or fork before");
    }
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
        return fail(PYGPT_ERROR_DEVICE, "this library was built without kernels for the device, %s", device().name);
    }
    if (error == cudaErrorDevicesUnavailable) {
        return fail(PYGPT_ERROR_DEVICE, "the device, %s, is in use by another process that does not share it",
                    device().name);
    }
    return fail(PYGPT_ERROR_DEVICE, "CUDA failed in %s: %s", what, cudaGetErrorString(error));
}

int queue_status(Queue &queue) {
    if (queue.error == cudaSuccess) return PYGPT_OK;
    const cudaError_t error = queue.error;
    queue.error = cudaSuccess;
    const char *const sentence = queue.matmul ? matmul_error(queue.matmul) : "";
    if (*sentence && error != cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return fail(PYGPT_ERROR_DEVICE, "%s", sentence);
    }
    return fail_cuda(error, queue.failed);
}

const char *pygpt_library(void) {
#ifdef PYGPT_EMULATION
    return "cuda-emulated";
#else
    return "cuda";
#endif
}

/* The device's name; "" with a sentence in pygpt_last_error() if there is none that can be used. */
const char *pygpt_processor(void) {
    return check_device(DataType::float32) == PYGPT_OK ? device().name : "";
}

int pygpt_use_device(int number, uint8_t id[16]) {
    if (const int status = check_device(DataType::float32)) return status;
    if (const cudaError_t error = cudaSetDevice(number % (1 + device().others)))
        return fail_cuda(error, "choosing a device");
    device() = Device();
    memcpy(id, device().id, sizeof device().id);
    return check_device(DataType::float32);
}

int pygpt_device_memory(int64_t *free, int64_t *total) {
    if (const int status = check_device(DataType::float32)) return status;
    size_t free_bytes = 0, total_bytes = 0;
    if (const cudaError_t error = cudaMemGetInfo(&free_bytes, &total_bytes))
        return fail_cuda(error, "asking for its free memory");
    *free = static_cast<int64_t>(free_bytes);
    *total = static_cast<int64_t>(total_bytes);
    return PYGPT_OK;
}
