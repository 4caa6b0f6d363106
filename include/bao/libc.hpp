// bao/libc.hpp - libc's own calls, behind whatever has been put before them
//
// A program may have its blocking calls replaced by ones that let other tasks
// run (patch.hpp). Then read() is no longer libc's, neither for the libraries
// it uses nor for bao. But the replacements and the scheduler itself need the
// real ones. Here they all are, as they can be called in any program:
//
//     hook::original::read(fd, p, n)
//
// Each is a pointer, to what the linker calls by that name until there is a
// patch, and to what comes next in line from then on. It costs a load.
//
// The pointers here and the replacements in patch.hpp are made of two lists:
// what waits for the world, and what threads wait in for each other.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>

#include "bao/config.hpp"

#if defined(__linux__)
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#endif

// What can be replaced: its result, its name, how its arguments are declared,
// and what they are called.
#define BAO_LIBC_EVERYWHERE(CALL)                                              \
  CALL(ssize_t, read, (int fd, void* p, size_t n), (fd, p, n))                 \
  CALL(ssize_t, write, (int fd, const void* p, size_t n), (fd, p, n))          \
  CALL(ssize_t, recv, (int fd, void* p, size_t n, int flags),                  \
       (fd, p, n, flags))                                                      \
  CALL(ssize_t, send, (int fd, const void* p, size_t n, int flags),            \
       (fd, p, n, flags))                                                      \
  CALL(ssize_t, recvmsg, (int fd, msghdr* message, int flags),                 \
       (fd, message, flags))                                                   \
  CALL(ssize_t, sendmsg, (int fd, const msghdr* message, int flags),           \
       (fd, message, flags))                                                   \
  CALL(int, accept, (int fd, sockaddr* from, socklen_t* size),                 \
       (fd, from, size))                                                       \
  CALL(int, connect, (int fd, const sockaddr* to, socklen_t size),             \
       (fd, to, size))                                                         \
  CALL(int, poll, (pollfd * fds, nfds_t n, int ms), (fds, n, ms))              \
  CALL(int, pselect,                                                           \
       (int n, fd_set* in, fd_set* out, fd_set* urgent, const timespec* limit, \
        const sigset_t* mask),                                                 \
       (n, in, out, urgent, limit, mask))                                      \
  CALL(pid_t, waitpid, (pid_t pid, int* status, int options),                  \
       (pid, status, options))                                                 \
  CALL(int, getaddrinfo,                                                       \
       (const char* host, const char* service, const addrinfo* hints,          \
        addrinfo** found),                                                     \
       (host, service, hints, found))

#define BAO_LIBC_ON_LINUX(CALL)                                               \
  CALL(int, accept4, (int fd, sockaddr* from, socklen_t* size, int flags),    \
       (fd, from, size, flags))                                               \
  CALL(int, ppoll,                                                            \
       (pollfd * fds, nfds_t n, const timespec* limit, const sigset_t* mask), \
       (fds, n, limit, mask))                                                 \
  CALL(int, epoll_wait, (int fd, epoll_event* events, int n, int ms),         \
       (fd, events, n, ms))

#define BAO_LIBC_OF_GNU(CALL)                                                  \
  CALL(ssize_t, readv, (int fd, const iovec* parts, int n), (fd, parts, n))    \
  CALL(ssize_t, writev, (int fd, const iovec* parts, int n), (fd, parts, n))   \
  CALL(ssize_t, pread, (int fd, void* p, size_t n, off_t at), (fd, p, n, at))  \
  CALL(ssize_t, pwrite, (int fd, const void* p, size_t n, off_t at),           \
       (fd, p, n, at))                                                         \
  CALL(ssize_t, preadv, (int fd, const iovec* parts, int n, off_t at),         \
       (fd, parts, n, at))                                                     \
  CALL(ssize_t, pwritev, (int fd, const iovec* parts, int n, off_t at),        \
       (fd, parts, n, at))                                                     \
  CALL(ssize_t, preadv2,                                                       \
       (int fd, const iovec* parts, int n, off_t at, int flags),               \
       (fd, parts, n, at, flags))                                              \
  CALL(ssize_t, pwritev2,                                                      \
       (int fd, const iovec* parts, int n, off_t at, int flags),               \
       (fd, parts, n, at, flags))                                              \
  CALL(                                                                        \
      ssize_t, recvfrom,                                                       \
      (int fd, void* p, size_t n, int flags, sockaddr* from, socklen_t* size), \
      (fd, p, n, flags, from, size))                                           \
  CALL(ssize_t, sendto,                                                        \
       (int fd, const void* p, size_t n, int flags, const sockaddr* to,        \
        socklen_t size),                                                       \
       (fd, p, n, flags, to, size))                                            \
  CALL(int, recvmmsg,                                                          \
       (int fd, mmsghdr* messages, unsigned n, int flags, timespec* limit),    \
       (fd, messages, n, flags, limit))                                        \
  CALL(int, sendmmsg, (int fd, mmsghdr* messages, unsigned n, int flags),      \
       (fd, messages, n, flags))                                               \
  CALL(ssize_t, sendfile, (int to, int from, off_t* at, size_t n),             \
       (to, from, at, n))                                                      \
  CALL(ssize_t, splice,                                                        \
       (int from, loff_t* from_at, int to, loff_t* to_at, size_t n,            \
        unsigned flags),                                                       \
       (from, from_at, to, to_at, n, flags))                                   \
  CALL(int, select,                                                            \
       (int n, fd_set* in, fd_set* out, fd_set* urgent, timeval* limit),       \
       (n, in, out, urgent, limit))                                            \
  CALL(int, epoll_pwait,                                                       \
       (int fd, epoll_event* events, int n, int ms, const sigset_t* mask),     \
       (fd, events, n, ms, mask))                                              \
  CALL(unsigned, sleep, (unsigned seconds), (seconds))                         \
  CALL(int, usleep, (useconds_t microseconds), (microseconds))                 \
  CALL(int, nanosleep, (const timespec* time, timespec* left), (time, left))   \
  CALL(int, clock_nanosleep,                                                   \
       (clockid_t clock, int flags, const timespec* time, timespec* left),     \
       (clock, flags, time, left))                                             \
  CALL(int, close, (int fd), (fd))                                             \
  CALL(int, dup2, (int fd, int number), (fd, number))                          \
  CALL(int, dup3, (int fd, int number, int flags), (fd, number, flags))        \
  CALL(pid_t, wait, (int* status), (status))                                   \
  CALL(pid_t, wait3, (int* status, int options, rusage* used),                 \
       (status, options, used))                                                \
  CALL(pid_t, wait4, (pid_t pid, int* status, int options, rusage* used),      \
       (pid, status, options, used))                                           \
  CALL(int, system, (const char* command), (command))                          \
  CALL(int, flock, (int fd, int operation), (fd, operation))                   \
  CALL(int, fcntl, (int fd, int command, void* argument),                      \
       (fd, command, argument))                                                \
  CALL(                                                                        \
      int, getnameinfo,                                                        \
      (const sockaddr* address, socklen_t size, char* host,                    \
       socklen_t host_size, char* service, socklen_t service_size, int flags), \
      (address, size, host, host_size, service, service_size, flags))          \
  CALL(hostent*, gethostbyname, (const char* name), (name))                    \
  CALL(hostent*, gethostbyname2, (const char* name, int family),               \
       (name, family))                                                         \
  CALL(hostent*, gethostbyaddr,                                                \
       (const void* address, socklen_t size, int family),                      \
       (address, size, family))                                                \
  CALL(int, gethostbyname_r,                                                   \
       (const char* name, hostent* host, char* p, size_t n, hostent** found,   \
        int* error),                                                           \
       (name, host, p, n, found, error))                                       \
  CALL(int, gethostbyname2_r,                                                  \
       (const char* name, int family, hostent* host, char* p, size_t n,        \
        hostent** found, int* error),                                          \
       (name, family, host, p, n, found, error))                               \
  CALL(int, gethostbyaddr_r,                                                   \
       (const void* address, socklen_t size, int family, hostent* host,        \
        char* p, size_t n, hostent** found, int* error),                       \
       (address, size, family, host, p, n, found, error))

#define BAO_LIBC_OF_GNU_2_34(CALL)                                   \
  CALL(int, close_range, (unsigned first, unsigned last, int flags), \
       (first, last, flags))

// What threads wait in for each other.
#define BAO_LIBC_LOCKS_EVERYWHERE(CALL)                                     \
  CALL(int, pthread_mutex_lock, (pthread_mutex_t * mutex), (mutex))         \
  CALL(int, pthread_mutex_trylock, (pthread_mutex_t * mutex), (mutex))      \
  CALL(int, pthread_mutex_unlock, (pthread_mutex_t * mutex), (mutex))       \
  CALL(int, pthread_cond_wait,                                              \
       (pthread_cond_t * condition, pthread_mutex_t * mutex),               \
       (condition, mutex))                                                  \
  CALL(int, pthread_cond_timedwait,                                         \
       (pthread_cond_t * condition, pthread_mutex_t * mutex,                \
        const timespec* until),                                             \
       (condition, mutex, until))                                           \
  CALL(int, pthread_cond_signal, (pthread_cond_t * condition), (condition)) \
  CALL(int, pthread_cond_broadcast, (pthread_cond_t * condition), (condition))

#define BAO_LIBC_LOCKS_OF_GNU_2_30(CALL)                                      \
  CALL(int, pthread_mutex_timedlock,                                          \
       (pthread_mutex_t * mutex, const timespec* until), (mutex, until))      \
  CALL(int, pthread_mutex_clocklock,                                          \
       (pthread_mutex_t * mutex, clockid_t clock, const timespec* until),     \
       (mutex, clock, until))                                                 \
  CALL(int, pthread_cond_clockwait,                                           \
       (pthread_cond_t * condition, pthread_mutex_t * mutex, clockid_t clock, \
        const timespec* until),                                               \
       (condition, mutex, clock, until))

#if !defined(__linux__)
#define BAO_LIBC(CALL) BAO_LIBC_EVERYWHERE(CALL)
#elif !defined(__GLIBC__)
#define BAO_LIBC(CALL) BAO_LIBC_EVERYWHERE(CALL) BAO_LIBC_ON_LINUX(CALL)
#elif !__GLIBC_PREREQ(2, 34)
#define BAO_LIBC(CALL) \
  BAO_LIBC_EVERYWHERE(CALL) BAO_LIBC_ON_LINUX(CALL) BAO_LIBC_OF_GNU(CALL)
#else
#define BAO_LIBC(CALL)      \
  BAO_LIBC_EVERYWHERE(CALL) \
  BAO_LIBC_ON_LINUX(CALL) BAO_LIBC_OF_GNU(CALL) BAO_LIBC_OF_GNU_2_34(CALL)
#endif

#define BAO_LIBC_LOCKS(CALL) BAO_LIBC_LOCKS_EVERYWHERE(CALL)
#if defined(__GLIBC__)
#if __GLIBC_PREREQ(2, 30)
#undef BAO_LIBC_LOCKS
#define BAO_LIBC_LOCKS(CALL) \
  BAO_LIBC_LOCKS_EVERYWHERE(CALL) BAO_LIBC_LOCKS_OF_GNU_2_30(CALL)
#endif
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {
namespace hook {

// A function of libc. None suspends: what waits blocks the thread.
template <class Function>
struct libc_call;
template <class Result, class... Arguments>
struct libc_call<Result(Arguments...)> {
  Result operator()(Arguments... arguments) const { return now(arguments...); }
  Result (*now)(Arguments...);
};

namespace original {

#define BAO_ORIGINAL(result, name, parameters, arguments) \
  inline libc_call<result parameters> name{               \
      [] parameters -> result { return ::name arguments; }};
BAO_LIBC(BAO_ORIGINAL)
BAO_LIBC_LOCKS(BAO_ORIGINAL)
#undef BAO_ORIGINAL

}  // namespace original
}  // namespace hook
}  // namespace BAO_ABI
}  // namespace bao
