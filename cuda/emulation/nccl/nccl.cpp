/* A stand-in for libnccl.so.2: the functions that pygpt uses, between processes or threads of one host, by sockets. What a
 * device has in its memory is the host's, and streams run at once, so a group is done when it ends. Stricter than NCCL: what
 * is received must be as large as what was sent. */
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <poll.h>
#include <random>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <utility>
#include <vector>

/* As in nccl.h. */
enum ncclResult_t {
    ncclSuccess = 0,
    ncclSystemError = 2,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
};

struct ncclUniqueId {
    char internal[128];   // a text: the name of the ranks' sockets, without the rank
};

struct ncclComm {
    std::vector<int> sockets;   // to each rank; −1 to this one

    ~ncclComm() {
        for (const int socket : sockets)
            if (socket >= 0) close(socket);
    }
};

namespace {

constexpr int version = 22703;
constexpr auto patience = std::chrono::seconds(60);   // for all ranks to come
constexpr int int8 = 0;

using Clock = std::chrono::steady_clock;

/* A message: the number of its bytes, and these. */
struct Operation {
    int socket;
    bool sends;
    char *data;
    uint64_t bytes, announced;   // announced: what goes before
    size_t done = 0;   // of both

    bool finished() const {
        return done == sizeof announced + bytes;
    }
};

thread_local int depth = 0;   // of groups in groups
thread_local std::vector<Operation> group;

/* In Linux's abstract namespace: nothing stays behind. */
socklen_t name_socket(sockaddr_un &address, const ncclUniqueId &id, int rank) {
    address = {};
    address.sun_family = AF_UNIX;
    const int length = snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "%.60s-%d", id.internal, rank);
    return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + static_cast<size_t>(length));
}

bool transfer_all(int socket, int *value, bool sends) {
    const ssize_t moved =
        sends ? send(socket, value, sizeof *value, MSG_NOSIGNAL) : recv(socket, value, sizeof *value, MSG_WAITALL);
    return moved == static_cast<ssize_t>(sizeof *value);
}

int connect_to(const ncclUniqueId &id, int rank, Clock::time_point deadline) {
    sockaddr_un address;
    const socklen_t length = name_socket(address, id, rank);
    while (Clock::now() < deadline) {
        const int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connection < 0) return -1;
        if (connect(connection, reinterpret_cast<const sockaddr *>(&address), length) == 0) return connection;
        close(connection);
        usleep(1000);   // it has not come yet
    }
    return -1;
}

int accept_one(int listener, Clock::time_point deadline) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd waiting{listener, POLLIN, 0};
    return left > 0 && poll(&waiting, 1, static_cast<int>(left)) > 0 ? accept4(listener, nullptr, nullptr, SOCK_CLOEXEC)
                                                                     : -1;
}

/* Each rank calls those before it, and waits for those after it. */
bool connect_all(ncclComm &comm, int listener, const ncclUniqueId &id, int rank) {
    const auto deadline = Clock::now() + patience;
    const int ranks = static_cast<int>(comm.sockets.size());
    for (int other = 0; other < rank; other++) {
        const int connection = comm.sockets[static_cast<size_t>(other)] = connect_to(id, other, deadline);
        if (connection < 0 || !transfer_all(connection, &rank, true)) return false;
    }
    for (int i = rank + 1; i < ranks; i++) {
        int other = 0;
        const int connection = accept_one(listener, deadline);
        if (connection < 0 || !transfer_all(connection, &other, false) || other <= rank || other >= ranks) return false;
        comm.sockets[static_cast<size_t>(other)] = connection;
    }
    return true;
}

ncclResult_t advance(Operation &o) {
    constexpr size_t head = sizeof o.announced;
    char *const at = o.done < head ? reinterpret_cast<char *>(&o.announced) + o.done : o.data + (o.done - head);
    const size_t left = (o.done < head ? head : head + o.bytes) - o.done;
    const ssize_t moved =
        o.sends ? send(o.socket, at, left, MSG_DONTWAIT | MSG_NOSIGNAL) : recv(o.socket, at, left, MSG_DONTWAIT);
    if (moved < 0 && (errno == EAGAIN || errno == EINTR)) return ncclSuccess;
    if (moved <= 0) return ncclRemoteError;
    o.done += static_cast<size_t>(moved);
    return o.done == head && o.announced != o.bytes ? ncclInvalidUsage : ncclSuccess;
}

/* Messages to one rank, and from one, follow each other. */
ncclResult_t run(std::vector<Operation> operations) {
    for (;;) {
        std::vector<pollfd> waiting;
        std::vector<Operation *> first;
        for (Operation &o : operations) {
            bool behind = o.finished();
            for (const Operation *other : first) behind |= other->socket == o.socket && other->sends == o.sends;
            if (behind) continue;
            first.push_back(&o);
            waiting.push_back({o.socket, static_cast<short>(o.sends ? POLLOUT : POLLIN), 0});
        }
        if (first.empty()) return ncclSuccess;
        if (poll(waiting.data(), waiting.size(), -1) < 0 && errno != EINTR) return ncclSystemError;
        for (size_t i = 0; i < first.size(); i++) {
            if (!waiting[i].revents) continue;
            if (const ncclResult_t result = advance(*first[i])) return result;
        }
    }
}

ncclResult_t add_to_group(bool sends, const void *data, size_t count, int type, int peer, const ncclComm *comm) {
    if (type != int8 || peer < 0 || static_cast<size_t>(peer) >= comm->sockets.size()) return ncclInvalidArgument;
    const int socket = comm->sockets[static_cast<size_t>(peer)];
    if (socket < 0) return ncclInvalidUsage;   // to itself
    group.push_back({socket, sends, static_cast<char *>(const_cast<void *>(data)), count, sends ? count : 0});
    return depth > 0 ? ncclSuccess : run(std::exchange(group, {}));
}

}   // namespace

extern "C" {
#pragma GCC visibility push(default)

ncclResult_t ncclGetVersion(int *number) {
    *number = version;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    std::random_device random;
    snprintf(id->internal, sizeof id->internal, "pygpt-nccl-%d-%08x%08x", getpid(), random(), random());
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm **comm, int ranks, ncclUniqueId id, int rank) {
    *comm = nullptr;
    if (ranks < 1 || rank < 0 || rank >= ranks) return ncclInvalidArgument;
    sockaddr_un address;
    const socklen_t length = name_socket(address, id, rank);
    const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0) return ncclSystemError;
    auto *const made = new ncclComm{std::vector<int>(static_cast<size_t>(ranks), -1)};
    const bool connected = bind(listener, reinterpret_cast<const sockaddr *>(&address), length) == 0 &&
                           listen(listener, ranks) == 0 && connect_all(*made, listener, id, rank);
    close(listener);
    if (!connected) {
        delete made;
        return ncclSystemError;
    }
    *comm = made;
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm *comm) {
    delete comm;
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm *comm) {
    return ncclCommDestroy(comm);
}

ncclResult_t ncclGroupStart() {
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
    if (depth == 0) return ncclInvalidUsage;
    return --depth > 0 ? ncclSuccess : run(std::exchange(group, {}));
}

ncclResult_t ncclSend(const void *data, size_t count, int type, int peer, ncclComm *comm, void *) {
    return add_to_group(true, data, count, type, peer, comm);
}

ncclResult_t ncclRecv(void *data, size_t count, int type, int peer, ncclComm *comm, void *) {
    return add_to_group(false, data, count, type, peer, comm);
}

const char *ncclGetErrorString(ncclResult_t result) {
    switch (result) {
    case ncclSuccess: return "no error";
    case ncclSystemError: return "unhandled system error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
    case ncclRemoteError: return "remote process exited or there was a network error";
    }
    return "unknown result code";
}

#pragma GCC visibility pop
}
