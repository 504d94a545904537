/* Opens NCCL; see nccl.cuh. */
#include "nccl.cuh"

#include <cstring>
#include <dlfcn.h>

static Nccl functions;
static bool is_open = false;

const Nccl *nccl() {
    return is_open ? &functions : nullptr;
}

int fail_nccl(NcclResult result, const char *what) {
    return fail(PYGPT_ERROR_DEVICE, "NCCL failed in %s: %s (PYGPT_NCCL=0 exchanges through the host's memory)", what,
                functions.GetErrorString(result));
}

template <class Function> static bool find(void *library, Function **function, const char *name) {
    *function = reinterpret_cast<Function *>(dlsym(library, name));
    return *function != nullptr;
}

int pygpt_nccl_open(const char *path, int *version) {
    void *const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return fail(PYGPT_ERROR_FILE, "%s", dlerror());
    Nccl found;
    if (!find(library, &found.GetVersion, "ncclGetVersion") || !find(library, &found.GetUniqueId, "ncclGetUniqueId") ||
        !find(library, &found.CommInitRank, "ncclCommInitRank") ||
        !find(library, &found.CommDestroy, "ncclCommDestroy") || !find(library, &found.CommAbort, "ncclCommAbort") ||
        !find(library, &found.GroupStart, "ncclGroupStart") || !find(library, &found.GroupEnd, "ncclGroupEnd") ||
        !find(library, &found.Send, "ncclSend") || !find(library, &found.Recv, "ncclRecv") ||
        !find(library, &found.GetErrorString, "ncclGetErrorString"))
        return fail(PYGPT_ERROR_FILE, "%s, expected NCCL 2.7 or later", dlerror());
    functions = found;
    is_open = true;
    if (const NcclResult result = functions.GetVersion(version)) return fail_nccl(result, "asking for its version");
    return PYGPT_OK;
}

int pygpt_nccl_id(char id[128]) {
    if (!is_open) return fail(PYGPT_ERROR_ARGUMENT, "NCCL is not open");
    NcclId made;
    if (const NcclResult result = functions.GetUniqueId(&made)) return fail_nccl(result, "preparing to connect ranks");
    memcpy(id, made.bytes, sizeof made.bytes);
    return PYGPT_OK;
}
