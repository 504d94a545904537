/* NCCL, opened at run time: the functions that an exchange between two ranks takes, declared as in nccl.h. */
#pragma once

#include "device.cuh"

struct NcclCommunicator;

struct NcclId {
    char bytes[128];
};

using NcclResult = int;   // 0: success
constexpr int NCCL_BYTES = 0;   // ncclInt8: what is sent is not computed with

struct Nccl {
    NcclResult (*GetVersion)(int *version);
    NcclResult (*GetUniqueId)(NcclId *id);
    NcclResult (*CommInitRank)(NcclCommunicator **communicator, int ranks, NcclId id, int rank);
    NcclResult (*CommDestroy)(NcclCommunicator *communicator);
    NcclResult (*CommAbort)(NcclCommunicator *communicator);
    NcclResult (*GroupStart)();
    NcclResult (*GroupEnd)();
    NcclResult (*Send)(const void *from, size_t count, int type, int peer, NcclCommunicator *, cudaStream_t);
    NcclResult (*Recv)(void *to, size_t count, int type, int peer, NcclCommunicator *, cudaStream_t);
    const char *(*GetErrorString)(NcclResult result);
};

/* As pygpt_nccl_open() has found it, NULL before. */
const Nccl *nccl();

/* Keeps the sentence for a result that is not success, and returns the code of pygpt.h. */
int fail_nccl(NcclResult result, const char *what);
