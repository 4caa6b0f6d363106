// bao.hpp - stackful coroutines in one header: the whole library
//
// This file is generated from include/bao.hpp and include/bao/ by
// single_include/amalgamate.cmake. Do not edit it: edit the chapters there.
//
// SPDX-License-Identifier: MIT
#ifndef BAO_HPP
#define BAO_HPP

// bao.hpp - the table of contents
//
// bao gives C++17 what Python programmers get from yield, greenlet and gevent:
// write plain blocking-looking code, and one thread serves a thousand sockets.
// The chapters below are in reading order, and none knows anything of a later
// one.

// I. Switching: flows with stacks of their own, on one thread

// =============================================================================
// bao/config.hpp - what was chosen when compiling
//
// A header-only library is compiled anew by every file that includes it. Two
// files that disagree about a macro would disagree about the layout of a
// struct, and the linker would quietly pick one of the two. So all that a macro
// can change is part of a namespace's name, BAO_ABI. When the program starts,
// each file compares its configuration with that of the first: a program that
// mixes two ends at once, and names both. The price is one comparison a file.
//
// A user may set, for the whole program:
//
//     BAO_USE_EPOLL, BAO_USE_POLL, BAO_USE_SELECT   how to wait for I/O
//     BAO_USE_UCONTEXT     switch by swapcontext() instead of in assembly
//     BAO_NO_MAKECONTEXT   begin flows without makecontext() (musl has none)
//     BAO_STACK_SIZE       bytes of stack a flow gets, 256 KiB unless set

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>

#define BAO_VERSION "0.1.0"

#if __cplusplus < 201703L
#error "bao needs C++17: compile with -std=c++17"
#endif
#ifndef __cpp_exceptions
#error "bao needs C++ exceptions: compile without -fno-exceptions"
#endif

#ifndef BAO_STACK_SIZE
#define BAO_STACK_SIZE (256 * 1024)
#endif

#if defined(__SANITIZE_ADDRESS__)
#define BAO_ASAN 1
#elif defined(__SANITIZE_THREAD__)
#define BAO_TSAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BAO_ASAN 1
#elif __has_feature(thread_sanitizer)
#define BAO_TSAN 1
#endif
#endif

#if defined(BAO_USE_EPOLL) + defined(BAO_USE_POLL) + defined(BAO_USE_SELECT) > 1
#error "bao: choose one of BAO_USE_EPOLL, BAO_USE_POLL and BAO_USE_SELECT"
#elif defined(BAO_USE_EPOLL) && !defined(__linux__)
#error "bao: BAO_USE_EPOLL needs Linux"
#elif defined(BAO_USE_SELECT)
#define BAO_ABI_POLLER select
#elif defined(BAO_USE_POLL) || !defined(__linux__)
#define BAO_ABI_POLLER poll
#else
#define BAO_ABI_POLLER epoll
#endif

// musl has no makecontext. The assembly is for x86-64, AArch64 and 64-bit
// RISC-V, with pointers of 64 bits.
#if defined(__linux__) && !defined(__GLIBC__) && !defined(BAO_NO_MAKECONTEXT)
#define BAO_NO_MAKECONTEXT 1
#endif
#if !defined(BAO_USE_UCONTEXT) && \
    !(defined(__LP64__) &&        \
      (defined(__x86_64__) || defined(__aarch64__) || defined(__riscv)))
#define BAO_USE_UCONTEXT 1
#endif

#if defined(BAO_USE_UCONTEXT)
#if defined(BAO_NO_MAKECONTEXT)
#error \
    "bao: BAO_USE_UCONTEXT needs makecontext(), which musl has in libucontext"
#endif
#define BAO_ABI_SWITCH ucontext
#elif defined(BAO_NO_MAKECONTEXT)
#define BAO_ABI_SWITCH bare
#else
#define BAO_ABI_SWITCH assembly
#endif

#if defined(BAO_ASAN)
#define BAO_ABI_TOOL asan
#elif defined(BAO_TSAN)
#define BAO_ABI_TOOL tsan
#else
#define BAO_ABI_TOOL plain
#endif

#define BAO_PASTE(a, b, c, d) a##_##b##_##c##_##d
#define BAO_NAME(a, b, c, d) BAO_PASTE(a, b, c, d)
#define BAO_ABI BAO_NAME(v0_1, BAO_ABI_POLLER, BAO_ABI_SWITCH, BAO_ABI_TOOL)
#define BAO_QUOTE(x) #x
#define BAO_STRING(x) BAO_QUOTE(x)

namespace bao {

// Which configuration this program runs. It lies outside of BAO_ABI: all share
// it, in whatever way they were compiled.
struct configuration {
  const char* name;
  std::size_t stack_size;
};
[[gnu::visibility("default")]] inline std::atomic<const configuration*>
    chosen_configuration{nullptr};

// Ends the program, naming both, unless `mine` is what it runs already.
inline void agree_on(const configuration& mine) {
  const configuration* first = nullptr;
  if (chosen_configuration.compare_exchange_strong(first, &mine)) return;
  if (std::strcmp(first->name, mine.name) == 0 &&
      first->stack_size == mine.stack_size)
    return;
  std::fprintf(
      stderr,
      "bao: this program was compiled with two configurations: %s with "
      "stacks of %zu bytes, and %s with stacks of %zu bytes\n",
      first->name, first->stack_size, mine.name, mine.stack_size);
  std::terminate();
}

// Visible, also out of a shared object that is compiled to hide all it has: so
// those of a program share one runtime, and catch each other's errors.
inline namespace [[gnu::visibility("default")]] BAO_ABI {

inline constexpr std::size_t default_stack_size = BAO_STACK_SIZE;

// A template, so that two files that differ in the size make two of it.
template <std::size_t StackSize>
inline constexpr configuration this_configuration{
    BAO_VERSION " " BAO_STRING(BAO_ABI), StackSize};

// In every file, when the program starts.
[[maybe_unused]] static const bool agreed =
    (agree_on(this_configuration<BAO_STACK_SIZE>), true);

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/error.hpp - what can go wrong
//
// What is to be expected, a closed channel or a passed deadline, comes back as
// a value. The rest is thrown, and there are three families:
//
//   interruptions   killed and timed_out: somebody wants this flow to end.
//                   They do not derive from std::exception, so that an honest
//                   `catch (const std::exception&)` does not swallow them.
//   misuse          from std::logic_error: the program asked for nonsense.
//   the world       from std::runtime_error; what the operating system refuses
//                   is a std::system_error whose text begins with the call.
//
// To throw and catch one takes a microsecond and more. Nothing in this chapter
// suspends.

#include <cxxabi.h>  // the name of an exception's type

#include <cerrno>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <typeinfo>
#include <utility>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Thrown in a flow that is to end: at the place where it waits, or at the next
// one. Let it pass, or rethrow it; a flow that swallows it meets it again.
class killed {
 public:
  // `target` is whom the kill is meant for: it ends there, not on the way.
  explicit killed(const void* target) : target_(target) {}
  bool is_for(const void* flow) const { return target_ == flow; }

 private:
  const void* target_;
};

class scope;

// Thrown at the place where a flow waits when one of its `timeout`s has passed.
class timed_out {
 public:
  explicit timed_out(const scope* limit) : limit_(limit) {}
  // Whose it is: ours, or one that our caller has opened around us.
  bool is_for(const scope& limit) const { return limit_ == &limit; }

 private:
  const scope* limit_;
};

// Misuse. Each says in its text which call, on what, and why not.
// clang-format off
struct dead_coroutine  : std::logic_error { using logic_error::logic_error; };
struct already_running : std::logic_error { using logic_error::logic_error; };
struct close_ignored   : std::logic_error { using logic_error::logic_error; };
struct not_started     : std::logic_error { using logic_error::logic_error; };
struct wrong_thread    : std::logic_error { using logic_error::logic_error; };
struct wrong_task      : std::logic_error { using logic_error::logic_error; };
struct wrong_flow      : std::logic_error { using logic_error::logic_error; };
struct wrong_type      : std::logic_error { using logic_error::logic_error; };
struct parent_cycle    : std::logic_error { using logic_error::logic_error; };

// The world.
using world_error = std::runtime_error;
struct deadlock        : world_error { using world_error::world_error; };
struct channel_closed  : world_error { using world_error::world_error; };
struct task_killed     : world_error { using world_error::world_error; };
struct stack_exhausted : world_error { using world_error::world_error; };
struct line_too_long   : world_error { using world_error::world_error; };
struct end_of_stream   : world_error { using world_error::world_error; };
// clang-format on

// Throws what the operating system says of a failed call.
[[noreturn, gnu::cold]] inline void throw_errno(const std::string& call,
                                                int error = errno) {
  throw std::system_error(error, std::generic_category(), call);
}

// The same where it is we who end a wait: the system says of that, whatever it
// was for, "Connection timed out".
[[noreturn, gnu::cold]] inline void throw_late(const std::string& call) {
  throw_errno(call + ": the deadline has passed", ETIMEDOUT);
}

template <class Integer>
Integer check(Integer result, const char* call) {
  if (result == -1) throw_errno(call);
  return result;
}

// Ends the program, saying why: it has broken a rule where no exception can be
// thrown. Takes no memory.
[[noreturn, gnu::cold]] inline void die(const char* why, const char* more = "",
                                        const char* still_more = "") {
  std::fprintf(stderr, "bao: %s%s%s\n", why, more, still_more);
  std::terminate();
}

// How a type or a function is written in C++, from the compiler's name for it.
inline std::string demangle(const char* symbol) {
  const struct freed {
    char* text;
    ~freed() { std::free(text); }
  } name{abi::__cxa_demangle(symbol, nullptr, nullptr, nullptr)};
  std::string text = name.text != nullptr ? name.text : symbol;
  constexpr char inside[] = BAO_STRING(BAO_ABI) "::";  // which nobody writes
  for (auto at = text.find(inside); at != std::string::npos;)
    at = text.erase(at, sizeof inside - 1).find(inside, at);
  return text;
}

// The type and the text of an exception.
inline std::string describe(const std::exception_ptr& error) {
  const auto type = [] {
    const std::type_info* t = abi::__cxa_current_exception_type();
    return t != nullptr ? demangle(t->name()) : "an exception of unknown type";
  };
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return type() + ": " + e.what();
  } catch (...) {
    return type();
  }
}

// Told of an error that nobody is left to catch, and of whose it is.
using unhandled_handler = void (*)(const char* whose,
                                   const std::exception_ptr& error);

// Prints a line to stderr. One that comes over and over, but for the number of
// the task, is printed when it has come 1, 2, 4, 8 ... times.
inline void print_unhandled(const char* whose,
                            const std::exception_ptr& error) {
  static thread_local std::size_t last;  // a hash: a string ends at exit()
  static thread_local unsigned long times;
  std::string text = "an error";
  std::size_t hash = 0;
  try {
    text = describe(error);
    // Without the number of the task, as no two have the same.
    const char* const kind = whose + std::strspn(whose, "task 0123456789");
    hash = std::hash<std::string>()(kind + text);
  } catch (const std::bad_alloc&) {
  }
  times = hash == std::exchange(last, hash) ? times + 1 : 1;
  if ((times & (times - 1)) != 0) return;
  std::fprintf(stderr, "bao: nobody caught the error of %s: %s", whose,
               text.c_str());
  if (times > 1) std::fprintf(stderr, " (%lu times)", times);
  std::fputc('\n', stderr);
}

inline unhandled_handler tell_unhandled = print_unhandled;

// Who hears of errors that nobody can catch: those that leave a flow while its
// handle is destroyed, and those of tasks whose last handle goes without anyone
// having asked. One for the process: set it before other threads run. It must
// neither throw nor suspend. Null stands for print_unhandled, as in the
// beginning. Returns who it was until now.
inline unhandled_handler on_unhandled(unhandled_handler handler) {
  unhandled_handler before = tell_unhandled;
  tell_unhandled = handler != nullptr ? handler : print_unhandled;
  return before;
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
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

// =============================================================================
// bao/context.hpp - save one flow, continue another
//
// A thread is a program counter and a stack pointer. Save that pair somewhere,
// load another one, and the thread carries on in the middle of a different
// function. That is the whole trick; every later chapter is built on it.
//
//     main                  worker
//      |  switch_context()   .
//      +-------------------> |    worker runs until it switches back, and main
//      .                     |    sees its own call to switch_context() return
//      | <-------------------+    as if nothing had happened.
//
// swapcontext() does exactly this, and also saves the signal mask, which costs
// a system call: read it first, it is six lines. The same trick in assembly
// takes 1 to 3 ns, more than 50 times less.

#include <cstdint>

#ifndef BAO_NO_MAKECONTEXT
#include <ucontext.h>
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

struct context;

// What a flow finds when it is continued: its own context, and what was sent.
struct arrival {
  context& self;
  void* message;
};

#if defined(BAO_USE_UCONTEXT)

// Where a flow stands while it does not run: its ucontext_t, which lies on its
// own stack.
struct context {
  virtual ~context() = default;

  ucontext_t* saved = nullptr;

  bool empty() const { return saved == nullptr; }
  // Where its stack is in use; null if it has none.
  const void* top() const { return saved; }
  // What lies below on its stack is not used; null where that is not known.
  const char* lowest_used() const {
#if defined(__linux__) && defined(__x86_64__)
    return reinterpret_cast<char*>(saved->uc_mcontext.gregs[REG_RSP]) - 128;
#else
    return nullptr;
#endif
  }
};

// Leaves this flow, to be found in `from`, and continues the one in `to`, where
// `message` arrives. Returns when somebody continues `from`: with what they
// send.
[[gnu::always_inline]] inline arrival switch_context(context& from, context& to,
                                                     void* message) {
  static thread_local void* sent;
  ucontext_t here;
  from.saved = &here;
  sent = message;
  ::swapcontext(&here, to.saved);
  return {from, sent};
}

// A flow that begins with entry() on the stack [low, high). entry() must not
// return: there is nothing below it to return to.
inline context make_context(char* low, char* high, void (*entry)()) {
  high -= sizeof(ucontext_t);
  high -= reinterpret_cast<std::uintptr_t>(high) % alignof(ucontext_t);
  context made;
  made.saved = reinterpret_cast<ucontext_t*>(high);
  ::getcontext(made.saved);
  made.saved->uc_stack.ss_sp = low;
  made.saved->uc_stack.ss_size = static_cast<std::size_t>(high - low);
  made.saved->uc_link = nullptr;
  ::makecontext(made.saved, entry, 0);
  return made;
}

#else

// Where a flow stands while it does not run: its stack pointer, its frame
// pointer, where to continue, and its base pointer if it has one. All else it
// left on its stack.
//
// It is polymorphic for the sake of fibers, which are: so they begin with their
// context, and whoever has the address of one has that of the other in the same
// register.
struct context {
  virtual ~context() = default;

  void* sp = nullptr;
  void* fp = nullptr;
  void* ip = nullptr;
  void* bp = nullptr;

  bool empty() const { return ip == nullptr; }
  // Where its stack is in use; null if it has none.
  const void* top() const { return sp; }
  // What lies below on its stack is not used. The 128 bytes are x86-64's red
  // zone, where a function may keep variables.
  const char* lowest_used() const { return static_cast<char*>(sp) - 128; }
};

// The assembly below says that it changes "memory", but GCC's -fipa-reference
// does not believe it: across a function that makes no call to the outside, GCC
// keeps a file's own static variables in registers. This cures it: a call to
// the outside, which is never made. Clang needs no cure, and would pay 0.6 ns a
// value for this one.
[[gnu::always_inline]] inline void others_may_run() {
#if !defined(__clang__)
  __asm__ goto("" : : : : never);
  return;
never:
  ::pause();
#endif
}

// Leaves this flow, to be found in `from`, and continues the one in `to`, where
// `message` arrives. Returns when somebody continues `from`: with what they
// send. Both `from` and the message come along in registers: to look for them
// in memory would cost loads, and loads are what a switch is made of.
//
// The assembly saves three registers, and tells the compiler that all others
// have changed: so the compiler saves those, and only those, that the
// surrounding code still needs. It is always inlined, since a call of its own
// would leave the processor's stack of return addresses one off, and every
// return that follows would be predicted wrongly: 27 ns instead of 5 for a
// switch three calls deep. Nothing is pushed, so the red zone below the stack
// pointer of the surrounding function stays intact.
//
// The frame pointer cannot be named as changed, hence it is saved by hand. So
// is what serves clang as base pointer: it reaches the local variables by it
// where some are over-aligned and others are arrays of unknown size, and does
// not believe there that it changes. The modes of floating-point arithmetic
// belong to the thread and are not switched.
#if defined(__clang__)
#define BAO_IN_CLANG(...) __VA_ARGS__
#define BAO_IN_GCC(...)
#else
#define BAO_IN_CLANG(...)
#define BAO_IN_GCC(...) __VA_ARGS__
#endif
[[gnu::always_inline]] inline arrival switch_context(context& from, context& to,
                                                     void* message) {
#if defined(__x86_64__)
  context* out = &from;
  context* in = &to;
  __asm__ volatile(
      "leaq 1f(%%rip), %%rax\n\t"
      "movq %%rsp, 8(%0)\n\t"
      "movq %%rbp, 16(%0)\n\t"
      "movq %%rax, 24(%0)\n\t"
      BAO_IN_CLANG("movq %%rbx, 32(%0)\n\t")
      "movq 8(%1), %%rsp\n\t"
      "movq 16(%1), %%rbp\n\t"
      "jmpq *24(%1)\n\t"
      ".p2align 4\n"
      "1:\n\t"
#if defined(__CET__) && (__CET__ & 1)
      "endbr64\n\t"  // a place that an indirect jump may reach
#endif
      BAO_IN_CLANG("movq 32(%1), %%rbx\n\t")
      : "+D"(out), "+S"(in), "+d"(message)
      :
      : BAO_IN_GCC("rbx",)
        "rax", "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
        "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
        "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "st",
        "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)",
#if defined(__AVX512F__)
        "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",
        "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31",
        "k1", "k2", "k3", "k4", "k5", "k6", "k7",
#endif
#if defined(__APX_F__)
        "r16", "r17", "r18", "r19", "r20", "r21", "r22", "r23", "r24", "r25",
        "r26", "r27", "r28", "r29", "r30", "r31",
#endif
        "memory", "cc");
#elif defined(__aarch64__)
  register context* out __asm__("x0") = &from;
  register context* in __asm__("x1") = &to;
  register void* sent __asm__("x2") = message;
  __asm__ volatile(
      "adr x16, 1f\n\t"
      "mov x17, sp\n\t"
      "stp x17, x29, [x0, #8]\n\t"
      "str x16, [x0, #24]\n\t"
      BAO_IN_CLANG("str x19, [x0, #32]\n\t")
      "ldp x17, x29, [x1, #8]\n\t"
      "ldr x16, [x1, #24]\n\t"
      "mov sp, x17\n\t"
      "mov x30, xzr\n\t"  // a new flow has nowhere to return to
      "br x16\n"
      "1:\n\t"
#if defined(__ARM_FEATURE_BTI_DEFAULT)
      "hint #36\n\t"  // bti j: a place that an indirect jump may reach
#endif
      BAO_IN_CLANG("ldr x19, [x1, #32]\n\t")
      : "+r"(out), "+r"(in), "+r"(sent)
      :
      : BAO_IN_GCC("x19",)
        "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13",
        "x14", "x15", "x16", "x17", "x18", "x20", "x21", "x22", "x23", "x24",
        "x25", "x26", "x27", "x28", "x30", "v0", "v1", "v2", "v3", "v4", "v5",
        "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16",
        "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26",
        "v27", "v28", "v29", "v30", "v31",
#if defined(__ARM_FEATURE_SVE)
        "p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "p10",
        "p11", "p12", "p13", "p14", "p15",
#endif
        "memory", "cc");
  message = sent;
#elif defined(__riscv)
  register context* out __asm__("a0") = &from;
  register context* in __asm__("a1") = &to;
  register void* sent __asm__("a2") = message;
  __asm__ volatile(
      "lla t2, 1f\n\t"
      "sd sp, 8(a0)\n\t"
      "sd s0, 16(a0)\n\t"
      "sd t2, 24(a0)\n\t"
      BAO_IN_CLANG("sd s1, 32(a0)\n\t")
      "ld sp, 8(a1)\n\t"
      "ld s0, 16(a1)\n\t"
      "ld t2, 24(a1)\n\t"
      "li ra, 0\n\t"  // a new flow has nowhere to return to
      "jr t2\n"  // by ra or t0 it would look like a return to the processor
      "1:\n\t"
      BAO_IN_CLANG("ld s1, 32(a1)\n\t")
      : "+r"(out), "+r"(in), "+r"(sent)
      :
      : BAO_IN_GCC("s1",)
        "ra", "t0", "t1", "t2", "t3", "t4", "t5", "t6", "a3", "a4", "a5", "a6",
        "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11",
        "ft0", "ft1", "ft2", "ft3", "ft4", "ft5", "ft6", "ft7", "ft8", "ft9",
        "ft10", "ft11", "fa0", "fa1", "fa2", "fa3", "fa4", "fa5", "fa6", "fa7",
        "fs0", "fs1", "fs2", "fs3", "fs4", "fs5", "fs6", "fs7", "fs8", "fs9",
        "fs10", "fs11",
#if defined(__riscv_vector)
        "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10",
        "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20",
        "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30",
        "v31", "vl", "vtype",
#endif
        "memory");
  message = sent;
#endif
  others_may_run();
  return {*in, message};
}
#undef BAO_IN_CLANG
#undef BAO_IN_GCC

// Some processors can keep return addresses on a second stack too, where the
// program cannot write, and check every return by it. The assembly does not
// switch that one; swapcontext() does.
inline bool shadow_stack_in_use() {
#if defined(__CET__) && (__CET__ & 2)
  std::uint64_t top = 0;  // and so it stays where there is none
  __asm__ volatile("rdsspq %0" : "+r"(top));
  return top != 0;
#elif defined(__aarch64__)
  register std::uint64_t missing __asm__("x16") = 1;
  __asm__ volatile("hint #40" : "+r"(missing));  // chkfeat
  return missing == 0;
#else
  return false;
#endif
}
inline bool (*has_shadow_stack)() = shadow_stack_in_use;  // for tests to change

// A flow that begins with entry() on the stack [low, high). entry() must not
// return: there is nothing below it to return to, and a zero says so to those
// who unwind.
inline context make_context(char* low, char* high, void (*entry)()) {
  if (has_shadow_stack())
    die("this program runs with a shadow stack: compile it with "
        "BAO_USE_UCONTEXT");
  context made;
  made.ip = reinterpret_cast<void*>(entry);
#if defined(BAO_NO_MAKECONTEXT)
  static_cast<void>(low);
  auto top = reinterpret_cast<std::uintptr_t>(high) & ~std::uintptr_t{15};
#if defined(__x86_64__)
  top -= 8;  // as if a call had pushed its return address
  *reinterpret_cast<void**>(top) = nullptr;
#endif
  made.sp = reinterpret_cast<void*>(top);
#else
  ucontext_t start;
  ::getcontext(&start);
  start.uc_stack.ss_sp = low;
  start.uc_stack.ss_size = static_cast<std::size_t>(high - low);
  start.uc_link = nullptr;
  ::makecontext(&start, entry, 0);
  // Only this is needed: the assembly can enter there by itself.
#if defined(__x86_64__)
  made.sp = reinterpret_cast<void*>(start.uc_mcontext.gregs[REG_RSP]);
#elif defined(__aarch64__)
  made.sp = reinterpret_cast<void*>(start.uc_mcontext.sp);
#elif defined(__riscv)
  made.sp = reinterpret_cast<void*>(start.uc_mcontext.__gregs[REG_SP]);
#endif
#endif
  return made;
}

#endif

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/stack.hpp - memory to run on, with a guard at its end
//
// A stack is only memory that nobody else uses. The interesting parts are what
// lies below it, and what it costs:
//
//      low                                                   high
//      | guard, 64 KiB | ...... untouched ...... | in use <- | record |
//
// The guard makes an overflow a fault instead of a neighbour's corrupted
// variable. A page costs memory only once it is touched, so 256 KiB of stack
// are one page of memory for a flow that does little. Stacks are cut from large
// slabs and used again, last in first out, while they are still in the cache.
//
// A stack is set up once: between two flows a small loop stays parked on it,
// which waits for the next one to run (fiber.hpp). What a flow has touched
// stays in memory, for one that goes as deep next time. When the thread has
// nothing to do, it gives back what lies below the place where a flow stands,
// some stacks at a time.

#include <sys/mman.h>

#if defined(BAO_ASAN)
#include <sanitizer/lsan_interface.h>
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Below every stack. Wider than a page, since a function with large local
// arrays may step over a narrow one; AArch64 compilers probe every 64 KiB.
inline constexpr std::size_t guard_size = 64 * 1024;

// The record at the top of a stack.
struct stack {
  char* low;         // the end that the stack grows to, right above the guard
  std::size_t size;  // bytes from there on, this record among the last
  context idle;      // where its loop is parked while no flow uses it
  context* stands;   // who is on it: idle, or a fiber
  stack* next;       // in the pool
  stack* older;      // in the list of all
  struct slab* from;
  unsigned long valgrind_id;
  void* fake_stack;  // AddressSanitizer's, of the parked loop
  void* tsan_fiber;

  char* high() { return low + used_size(); }
  // Without the record.
  std::size_t used_size() const {
    return static_cast<std::size_t>(reinterpret_cast<const char*>(this) - low);
  }
  bool guards(const void* address) const {
    auto a = static_cast<const char*>(address);
    return a >= low - guard_size && a < low;
  }
};

struct slab {
  char* memory;
  std::size_t bytes;
  std::size_t in_use;  // stacks that are not in the pool
  slab* next;
};

// What can be asked of valgrind, in the numbers of its valgrind.h.
inline constexpr unsigned long running_on_valgrind = 0x1001;
inline constexpr unsigned long stack_register = 0x1501;
inline constexpr unsigned long stack_deregister = 0x1502;

// Asks valgrind, if that is who runs us; else the answer is 0. The request is a
// sequence of rotations that does nothing anywhere else.
inline unsigned long valgrind_request(unsigned long request,
                                      const void* low = nullptr,
                                      const void* high = nullptr) {
#if defined(__x86_64__)
  std::uintptr_t arguments[6] = {request, reinterpret_cast<std::uintptr_t>(low),
                                 reinterpret_cast<std::uintptr_t>(high)};
  std::uintptr_t result = 0;
  __asm__ volatile(
      "rolq $3, %%rdi\n\trolq $13, %%rdi\n\trolq $61, %%rdi\n\trolq $51, %%rdi"
      "\n\txchgq %%rbx, %%rbx"
      : "=d"(result)
      : "a"(arguments), "0"(result)
      : "cc", "memory");
  return result;
#else
  static_cast<void>(request), static_cast<void>(low), static_cast<void>(high);
  return 0;
#endif
}

// Guards [p, p + guard_size). Linux 6.13 can do so without splitting the
// mapping, of which a process may have only 65,530; some emulators accept that
// call and do nothing, so a system call that must fail has the last word.
inline bool install_guard(char* p) {
#if defined(__linux__)
  constexpr int guard_install = 102;  // MADV_GUARD_INSTALL
  static const bool light = [p] {
    if (::madvise(p, guard_size, guard_install) != 0) return false;
    int zero = ::open("/dev/zero", O_RDONLY | O_CLOEXEC);
    if (zero == -1) return false;
    bool guarded = ::read(zero, p, 1) == -1 && errno == EFAULT;
    ::close(zero);
    return guarded;
  }();
  if (light) return ::madvise(p, guard_size, guard_install) == 0;
#endif
  return ::mprotect(p, guard_size, PROT_NONE) == 0;
}

// The stacks of one thread.
class stack_pool {
 public:
  stack_pool() = default;
  stack_pool(const stack_pool&) = delete;
  ~stack_pool() { release(); }

  // A stack of `size` bytes, rounded up to a power of two, from the pool if it
  // has one; our record takes 1.2 KiB of them at most. Throws stack_exhausted,
  // which says what ran out.
  stack* take(std::size_t size);

  // Takes back what take() gave. Its loop is parked in s->idle.
  void give(stack* s) noexcept;

  // Gives memory back that flows have used and left, of the next few stacks in
  // turn: 256 calls reach all. A stack with nothing to give costs 0.3 us.
  void sweep() noexcept;

  // Gives the slabs that no flow uses back to the system.
  void release() noexcept;

  // Which stacks serve a size: 16 KiB, where a signal handler fits, 32 KiB ...
  static std::size_t size_class(std::size_t size) {
    if (size <= smallest) return 0;
    const unsigned long long more = (size - 1) / smallest;
    return static_cast<std::size_t>(64 - __builtin_clzll(more));
  }

 private:
  static constexpr std::size_t smallest = 16 * 1024;
  static constexpr std::size_t classes = 17;  // the largest: 1 GiB

  stack* carve(std::size_t n);
  void add_slab(std::size_t n);

  stack* idle_[classes] = {};
  slab* newest_[classes] = {};
  char* uncut_[classes] = {};  // what is left of that
  slab* slabs_ = nullptr;
  stack* all_ = nullptr;
  stack* to_sweep_ = nullptr;  // from here on
  std::size_t carved_ = 0;
};

inline stack* stack_pool::take(std::size_t size) {
  if (size > (smallest << (classes - 1)))
    throw stack_exhausted("a stack of " + std::to_string(size) +
                          " bytes is more than the largest, 1 GiB");
  std::size_t n = size_class(size);
  stack* s = idle_[n];
  if (s == nullptr) return carve(n);
  idle_[n] = s->next;
  ++s->from->in_use;
  return s;
}

inline void stack_pool::give(stack* s) noexcept {
  std::size_t n = size_class(s->size);
  s->stands = &s->idle;
  s->next = idle_[n];
  idle_[n] = s;
  --s->from->in_use;
}

inline stack* stack_pool::carve(std::size_t n) {
  if (newest_[n] == nullptr ||
      uncut_[n] == newest_[n]->memory + newest_[n]->bytes)
    add_slab(n);
  const std::size_t size = smallest << n;
  char* const low = uncut_[n] + guard_size;
  if (!install_guard(uncut_[n])) {
    std::string why = std::strerror(errno);
    throw stack_exhausted("no guard for another stack of " +
                          std::to_string(size) + " bytes: " + why +
                          " (each takes two of vm.max_map_count mappings)");
  }
  uncut_[n] += size + guard_size;
  // Were all records at the same distance from a page, a thousand stacks would
  // fight for the same few cache lines: so they are spread over 16 places.
  char* at = low + size - sizeof(stack) - (carved_++ % 16) * 64;
  at -= reinterpret_cast<std::uintptr_t>(at) % 64;
  auto s = new (at) stack{};
  s->low = low;
  s->size = size;
  s->from = newest_[n];
  s->stands = &s->idle;
  s->older = std::exchange(all_, s);
  s->valgrind_id = valgrind_request(stack_register, low, at);
#if defined(BAO_ASAN)
  __lsan_register_root_region(low, s->size);  // what it points to is no leak
#endif
  ++s->from->in_use;
  return s;
}

// Small programs get small slabs; a million flows few system calls.
inline void stack_pool::add_slab(std::size_t n) {
  const std::size_t size = smallest << n;
  std::size_t count = carved_ < 16 ? 16 : carved_ < 1024 ? 64 : 256;
  if (size > default_stack_size) count = 4;
  if (size >= 64 * 1024 * 1024) count = 1;
  auto made = new slab{nullptr, count * (size + guard_size), 0, slabs_};
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#if defined(MAP_NORESERVE)
  flags |= MAP_NORESERVE;
#endif
#if defined(MAP_STACK)
  flags |= MAP_STACK;
#endif
  void* p = ::mmap(nullptr, made->bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (p == MAP_FAILED) {
    const int why = errno;
    delete made;
    throw stack_exhausted("no address space for another stack of " +
                          std::to_string(size) +
                          " bytes: mmap: " + std::strerror(why) +
                          " (see ulimit -v and vm.overcommit_memory)");
  }
#if defined(MADV_NOHUGEPAGE)
  ::madvise(p, made->bytes, MADV_NOHUGEPAGE);  // 2 MiB for every small flow
#endif
  made->memory = static_cast<char*>(p);
  slabs_ = newest_[n] = made;
  uncut_[n] = made->memory;
}

inline void stack_pool::sweep() noexcept {
  static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto here = static_cast<const char*>(__builtin_frame_address(0));
  for (std::size_t i = 0; i < 32 + carved_ / 256; ++i) {
    stack* const s = to_sweep_ != nullptr ? to_sweep_ : all_;
    if (s == nullptr) return;
    to_sweep_ = s->older;
    if (here >= s->low && here < s->high()) continue;  // our own
    if (s->stands->empty()) continue;                  // nobody's yet
    const char* const used = s->stands->lowest_used();
    if (used == nullptr) continue;
    const auto end = reinterpret_cast<std::uintptr_t>(used) / page * page;
    const auto low = reinterpret_cast<std::uintptr_t>(s->low);
    if (end > low) ::madvise(s->low, end - low, MADV_DONTNEED);
    if (to_sweep_ == nullptr) return;  // all have been seen
  }
}

inline void stack_pool::release() noexcept {
  all_ = to_sweep_ = nullptr;
  for (std::size_t n = 0; n < classes; ++n) {
    for (stack** link = &idle_[n]; *link != nullptr;) {
      stack* s = *link;
      if (s->from->in_use != 0) {
        link = &s->next;
        continue;
      }
      *link = s->next;
      if (s->valgrind_id != 0)
        valgrind_request(stack_deregister,
                         reinterpret_cast<void*>(s->valgrind_id));
#if defined(BAO_ASAN)
      __lsan_unregister_root_region(s->low, s->size);
#endif
    }
    if (newest_[n] != nullptr && newest_[n]->in_use == 0) newest_[n] = nullptr;
  }
  for (slab** link = &slabs_; *link != nullptr;) {
    slab* s = *link;
    if (s->in_use != 0) {
      link = &s->next;
      continue;
    }
    *link = s->next;
    ::munmap(s->memory, s->bytes);
    delete s;
  }
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/fiber.hpp - a flow with a stack of its own
//
// A context is a place to continue. A fiber is what has to go with it: a stack,
// the C++ exceptions that it is handling, and the notes that sanitizers want.
//
//     exceptions   Each thread keeps a list of the exceptions being handled. A
//                  flow that switches inside a catch block must take its part
//                  of the list along, or `throw;` would rethrow a stranger's.
//                  In nearly every switch there is nothing to take, which one
//                  test on the fast path finds out.
//     pending      An exception that somebody else wants thrown here: it is the
//                  first thing that a continued flow looks for. That is how a
//                  flow is killed, and how its stack is unwound.
//
// Not errno, and not the floating-point modes, which belong to the thread.
//
// Fibers never change threads: this keeps thread_local variables, and every
// address that a compiler has cached, right.
//
// A switch takes 1 to 3 ns; a fiber a block of 512 bytes, and its stack.

#include <functional>
#include <memory>
#include <tuple>
#include <type_traits>

#if defined(BAO_ASAN)
#include <pthread.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(BAO_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

#if defined(_LIBCPP_VERSION)
namespace __cxxabiv1 {  // has this, and most often does not declare it
struct __cxa_eh_globals;
extern "C" __cxa_eh_globals* __cxa_get_globals();
}  // namespace __cxxabiv1
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A thread's exceptions in flight, as both C++ runtimes lay them out: Itanium
// C++ ABI, Exception Handling, 2.2.2.
struct exceptions_in_flight {
  void* caught = nullptr;
  unsigned uncaught = 0;

  bool any() const {
    return __builtin_expect(
        (reinterpret_cast<std::uintptr_t>(caught) | uncaught) != 0, 0);
  }
};

struct thread_state;

// Control blocks of fibers that are gone, for the next ones. To recycle them
// takes a few loads; malloc() and free() took a third of a spawn, and more than
// half where a thousand tasks end together.
class spare_blocks {
 public:
  static constexpr std::size_t size = 512;  // holds nearly every fiber

  spare_blocks() = default;
  spare_blocks(const spare_blocks&) = delete;
  ~spare_blocks() {
    while (first_ != nullptr) ::operator delete(take());
  }

  // Null when there is none.
  void* take() noexcept {
    spare* const s = first_;
    if (s == nullptr) return nullptr;
    first_ = s->next;
    ++room_;
    return s;
  }
  // False when there are enough.
  bool keep(void* block) noexcept {
    if (room_ == 0) return false;
    --room_;
    first_ = new (block) spare{first_};
    return true;
  }

 private:
  struct spare {
    spare* next;
  };
  spare* first_ = nullptr;
#if defined(BAO_ASAN) || defined(BAO_TSAN)
  int room_ = 0;  // none is used again: they find out who uses it too long
#else
  int room_ = 1024;
#endif
};

// Where a flow is in its life.
enum class flow_state { created, suspended, running, finished };

class fiber : public context {  // which is where it stands while suspended
 public:
  fiber() = default;
  fiber(const fiber&) = delete;

  // A small one lies in a spare block of the thread that makes it.
  static void* operator new(std::size_t size);
  static void operator delete(void* block, std::size_t size) noexcept;
  static void* operator new(std::size_t size, std::align_val_t at) {
    return ::operator new(size, at);
  }
  static void operator delete(void* block, std::size_t,
                              std::align_val_t at) noexcept {
    ::operator delete(block, at);
  }

  // For messages: what it is, and what it is called, if anything.
  virtual const char* kind() const noexcept { return "main flow"; }
  virtual const char* title() const noexcept { return ""; }
  virtual unsigned long number() const noexcept { return 0; }

  thread_state* home = nullptr;   // its thread, for good once it has started
  stack* memory = nullptr;        // the thread's own flow has none
  fiber* killer = nullptr;        // who waits for its end, instead of `link`
  fiber* link = nullptr;          // who goes on when it ends, or yields
  fiber* leaf = nullptr;          // suspended: whom to continue; else null
  std::exception_ptr pending;     // to be thrown when it is continued
  exceptions_in_flight handling;  // kept here while it does not run
  class scope* scopes = nullptr;  // time limits and shields opened in it
  fiber* root = nullptr;          // the first flow of its tree
  void* owner = nullptr;          // the task whose first flow it is
  const void* expects = nullptr;  // the type it waits for in a switch, ...
  void* inbox = nullptr;          // ... and the std::optional to put it in
  void* fake_stack = nullptr;     // AddressSanitizer's
  flow_state life = flow_state::created;  // never `suspended`: see state()
  bool cleaning = false;  // has ended; what the body held is being destroyed
  bool lends = false;     // a generator: its link is whoever resumed it last
  std::atomic<bool> orphan{false};  // its owner has let go of it
  unsigned references = 0;
  std::atomic<unsigned> released_elsewhere{0};  // references, not yet counted
  fiber* next_released = nullptr;

  flow_state state() const {
    return leaf != nullptr ? flow_state::suspended : life;
  }

  // Throws what somebody left here to be thrown.
  [[gnu::always_inline]] void meet_pending() {
    if (pending != nullptr) throw_pending();
  }

  // Takes a stack of `size` bytes; the next switch here calls run(). Throws
  // stack_exhausted, in which case nothing has changed.
  void start(thread_state& t, std::size_t size = default_stack_size);

  void retain();
  // One reference less; the last one disposes of the fiber. On another thread
  // than its own it is left for that one to do, if it still runs.
  void release() noexcept;
  void release_later() noexcept;          // left in any case
  void give_up(unsigned count) noexcept;  // so many less, here and now

  // Ends it, on its own thread, if it has begun and not ended.
  virtual void unwind() noexcept {}

 protected:
  ~fiber() override;
  virtual void dispose() noexcept { delete this; }

 private:
  // The body, called on the new stack. Returns who goes on: one that has begun.
  // This fiber may be gone by then.
  virtual fiber* run() noexcept { return nullptr; }

  [[gnu::cold, noreturn, gnu::noinline]] void throw_pending() {
    std::exception_ptr error = std::move(pending);
    pending = nullptr;
    std::rethrow_exception(std::move(error));
  }

  static void runner();
};

// The flow that a thread begins with. Whoever refers to it keeps the
// thread_state alive.
class main_flow final : public fiber {
  void dispose() noexcept override;
};

// What a thread that runs fibers keeps. It stays until the thread has ended and
// the last fiber that has started there is gone.
struct thread_state {
  main_flow main;
  stack_pool stacks;
  spare_blocks blocks;
  std::unique_ptr<char[]> scratch;        // room for bytes on their way
  std::atomic<fiber*> released{nullptr};  // by other threads; see take_back()
  class scheduler* tasks = nullptr;       // once there are any
  unsigned number;                        // of the thread, for messages
  std::atomic<bool> ended{false};
  char* signal_stack = nullptr;   // where an overflow is reported
  const char* own_low = nullptr;  // the thread's own stack
  std::size_t own_size = 0;

  thread_state();
  ~thread_state() { main.home = nullptr; }
  void end();

  // Counts the fibers that have started here and still exist. Most are
  // destroyed on their own thread, where a plain counter does; only the others
  // pay for an atomic one, which starts high so that it cannot reach zero
  // before the thread ends.
  void add() {
    if (ended)  // in the destructor of an object at namespace scope
      others_.fetch_add(1);
    else
      ++fibers_;
  }
  void drop() noexcept;

  // Does what other threads have left for this one to do: see fiber::release.
  void take_back() noexcept;
  void leave_for_home(fiber& f) noexcept;

 private:
  static constexpr long alive = 1L << 30;
  long fibers_ = 0;
  std::atomic<long> others_{alive};
  std::atomic<bool> taking_{false};  // back, by one thread at a time
};

// What every switch touches, where it can be reached by one instruction: these
// need neither constructor nor guard. All null before the thread's first fiber.
// No struct: GCC would keep its address on the stack across a switch, and wait
// for it there before it can begin the next one: 1 ns for a generator's value.
#if defined(__ELF__) && defined(__PIC__) && !defined(__PIE__)
#define BAO_HOT [[gnu::tls_model("initial-exec")]]  // as a program has it
#else
#define BAO_HOT
#endif
BAO_HOT inline thread_local fiber* current_flow = nullptr;  // who runs
BAO_HOT inline thread_local fiber* current_root = nullptr;  // of its tree
BAO_HOT inline thread_local exceptions_in_flight* current_exceptions = nullptr;
BAO_HOT inline thread_local thread_state* current_thread = nullptr;
#undef BAO_HOT

// The destructor of a thread_local object would run once in a thread, and too
// soon: objects that are destroyed later may run fibers again, for which a new
// state is made. So the function that serves such destructors is called
// directly. Its last argument is for dlclose(): it lies in the shared object
// that has to wait for the thread.
[[gnu::noinline]] inline thread_state& make_thread_state() {
  void (*const end)(void*) = [](void*) { current_thread->end(); };
  auto* const made = new thread_state;
  if (abi::__cxa_thread_atexit(end, nullptr, reinterpret_cast<void*>(end)) !=
      0) {
    delete made;
    throw std::bad_alloc();
  }
  return *(current_thread = made);
}

// This thread's, made when there is none. Never suspends.
inline thread_state& this_thread_state() {
  return current_thread != nullptr ? *current_thread : make_thread_state();
}
inline fiber* this_flow() { return this_thread_state(), current_flow; }

// What sanitizers are told: that a flow is about to be left, and that another
// one has been reached. Nothing at all without them.
#if defined(BAO_ASAN)
inline void leave_flow(void** fake_stack, const stack* to) {
  const thread_state& t = *current_thread;
  __sanitizer_start_switch_fiber(fake_stack,
                                 to != nullptr ? to->low : t.own_low,
                                 to != nullptr ? to->used_size() : t.own_size);
}
inline void reach_flow(void* fake_stack) {
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
#elif defined(BAO_TSAN)
inline thread_local void* tsan_main = nullptr;
inline void leave_flow(void**, stack* to) {
  if (tsan_main == nullptr) tsan_main = __tsan_get_current_fiber();
  if (to != nullptr && to->tsan_fiber == nullptr)
    to->tsan_fiber = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(to != nullptr ? to->tsan_fiber : tsan_main, 0);
}
inline void reach_flow(void*) {}
#else
inline void leave_flow(void**, const stack*) {}
inline void reach_flow(void*) {}
#endif

// Continues `to` where no exception is in flight.
[[gnu::always_inline]] inline arrival switch_plainly(fiber& from, fiber& to,
                                                     void* message = nullptr) {
  current_flow = &to;
  leave_flow(&from.fake_stack, to.memory);
  const arrival a = switch_context(from, to, message);
  reach_flow(static_cast<fiber&>(a.self).fake_stack);
  return a;
}

// The slow path of switch_fiber: inside a catch block, or while unwinding.
[[gnu::cold, gnu::noinline]] inline arrival switch_while_handling(
    fiber& from, fiber& to, void* message = nullptr) {
  from.handling = *current_exceptions;
  *current_exceptions = {};
  const arrival a = switch_plainly(from, to, message);
  *current_exceptions = from.handling;
  from.handling = {};
  return a;
}

// Continues `to`, a started fiber of this thread, where `message` arrives.
// Returns when somebody continues `from`, the one that runs. Whoever arrives
// finds no exception in flight: whoever left has taken theirs along.
[[gnu::always_inline]] inline arrival switch_fiber(fiber& from, fiber& to,
                                                   void* message = nullptr) {
  if (current_exceptions->any())
    return switch_while_handling(from, to, message);
  return switch_plainly(from, to, message);
}

// The first function on every stack: runs a fiber, hands the stack back to the
// pool, and waits there for the next one.
inline void fiber::runner() {
  // Nobody has called it, so there is nothing below for a backtrace to show.
#if defined(__GCC_HAVE_DWARF2_CFI_ASM)
#if defined(__x86_64__)
  __asm__ volatile(".cfi_undefined rip");
#elif defined(__aarch64__)
  __asm__ volatile(".cfi_undefined x30");
#elif defined(__riscv)
  __asm__ volatile(".cfi_undefined ra");
#endif
#endif
  stack* const mine = current_flow->memory;
  reach_flow(nullptr);
  for (;;) {
    fiber* next = current_flow->run();
    current_flow = next;
    current_thread->stacks.give(mine);
    leave_flow(&mine->fake_stack, next->memory);
    switch_context(mine->idle, *next, nullptr);
    reach_flow(mine->fake_stack);
  }
}

inline void fiber::start(thread_state& t, std::size_t size) {
  memory = t.stacks.take(size);
  if (memory->idle.empty())
    memory->idle = make_context(memory->low, memory->high(), runner);
  static_cast<context&>(*this) = memory->idle;
  memory->stands = this;
  life = flow_state::running;
  if (home != nullptr) return;
  home = &t;
  t.add();
}

inline void* fiber::operator new(std::size_t size) {
  if (size > spare_blocks::size) return ::operator new(size);
  void* const spare =
      current_thread != nullptr ? current_thread->blocks.take() : nullptr;
  return spare != nullptr ? spare : ::operator new(spare_blocks::size);
}

inline void fiber::operator delete(void* block, std::size_t size) noexcept {
  // GCC 12 warns of a mismatch where it has inlined this and not the above.
  __asm__("" : "+r"(block));
  if (size > spare_blocks::size || current_thread == nullptr ||
      !current_thread->blocks.keep(block))
    ::operator delete(block);
}

inline fiber::~fiber() {
  if (home != nullptr) home->drop();
}

inline void fiber::retain() {
  if (references++ == 0 && this == &home->main) home->add();
}
inline void main_flow::dispose() noexcept { home->drop(); }

inline void fiber::release() noexcept {
  if (home == nullptr || home == current_thread)
    give_up(1);
  else
    release_later();
}

inline void fiber::release_later() noexcept {
  if (released_elsewhere.fetch_add(1) == 0) home->leave_for_home(*this);
}

inline void fiber::give_up(unsigned count) noexcept {
  if (orphan) {
    // Suspended, and its thread has ended: there is nothing to run it on.
    if (leaf != nullptr && home != current_thread) return;
    unwind();
    if (life == flow_state::running) return;  // exit() was called within it
  }
  references -= count;
  if (references == 0) dispose();
}

// Nearly always on another thread. Counted like a fiber meanwhile, so that we
// stay.
inline void thread_state::leave_for_home(fiber& f) noexcept {
  others_.fetch_add(1);
  fiber* first = released.load();
  do f.next_released = first;
  while (!released.compare_exchange_weak(first, &f));
  if (ended) take_back();  // nobody else will
  drop();
}

// Done by one thread at a time, which looks again when it is through. So
// whoever finds it busy may go, be it a destructor that is called from here.
inline void thread_state::take_back() noexcept {
  while (released.load() != nullptr && !taking_.exchange(true)) {
    for (fiber* f = released.exchange(nullptr); f != nullptr;) {
      fiber* const next = f->next_released;
      f->give_up(f->released_elsewhere.exchange(0));
      f = next;
    }
    taking_ = false;
  }
}

inline void forget_thread() {
  current_thread = nullptr;
  current_flow = current_root = nullptr;
  current_exceptions = nullptr;
}

inline void thread_state::drop() noexcept {
  if (current_thread == this && !ended) {
    --fibers_;
  } else if (others_.fetch_sub(1) == 1) {
    if (current_thread == this) forget_thread();
    delete this;
  }
}

// --- a stack that runs over -------------------------------------------------
//
// The fault comes when there is no stack left to handle it on, so the handler
// runs on one of its own, once in the life of the process: it prints a line
// that names the flow, puts the former handler back, and lets the fault happen
// again.

inline struct sigaction segv_before {};

inline void report_overflow(int signal, siginfo_t* info, void*) {
  if (current_flow != nullptr && current_flow->memory != nullptr &&
      current_flow->memory->guards(info->si_addr)) {
    const fiber& root = *current_root;
    const bool inner = current_flow != &root;
    char whose[80] = "";
    if (root.number() != 0)
      std::snprintf(whose, sizeof whose, " (number %lu%s%s)", root.number(),
                    *root.title() != '\0' ? ", " : "", root.title());
    char line[320];
    int n = std::snprintf(
        line, sizeof line,
        "bao: stack overflow in a %s%s%s%s: its %zu KiB are used up. Give it "
        "more (task_options().stack_size(), BAO_STACK_SIZE), or keep less in "
        "local variables\n",
        current_flow->kind(), inner ? " of a " : "", inner ? root.kind() : "",
        whose, current_flow->memory->size / 1024);
    // Whether or not anybody reads it, the fault has to come again.
    [[maybe_unused]] const ssize_t told =
        hook::original::write(2, line, static_cast<std::size_t>(n));
  }
  ::sigaction(signal, &segv_before, nullptr);
}

inline void watch_for_overflow(thread_state& t) {
  static const bool installed = [] {
    struct sigaction ours {};
    ours.sa_sigaction = report_overflow;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    return ::sigaction(SIGSEGV, &ours, &segv_before) == 0;
  }();
  stack_t before;
  if (!installed || ::sigaltstack(nullptr, &before) != 0 ||
      (before.ss_flags & SS_DISABLE) == 0)
    return;  // the program has made its own arrangements
  constexpr std::size_t size = 32 * 1024;
  t.signal_stack = new char[size];
  stack_t ours{};
  ours.ss_sp = t.signal_stack;
  ours.ss_size = size;
  ::sigaltstack(&ours, nullptr);
}

inline thread_state::thread_state() {
  static std::atomic<unsigned> threads{0};
  watch_for_overflow(*this);  // the rest cannot fail
  number = ++threads;
  main.home = this;
  main.root = &main;
  current_flow = current_root = &main;
  current_exceptions =
      reinterpret_cast<exceptions_in_flight*>(abi::__cxa_get_globals());
  main.life = flow_state::running;
#if defined(BAO_ASAN) && defined(__linux__)
  pthread_attr_t attributes;
  void* low = nullptr;
  if (::pthread_getattr_np(::pthread_self(), &attributes) == 0) {
    ::pthread_attr_getstack(&attributes, &low, &own_size);
    ::pthread_attr_destroy(&attributes);
  }
  own_low = static_cast<const char*>(low);
#endif
}

// When the thread ends. Objects at namespace scope may hold suspended fibers
// still, which are unwound after this: so whatever they need is left in place.
inline void thread_state::end() {
  ended = true;
  take_back();
  stacks.release();
  if (signal_stack != nullptr) {
    stack_t off{};
    off.ss_flags = SS_DISABLE;
    ::sigaltstack(&off, nullptr);
    delete[] signal_stack;
    signal_stack = nullptr;
  }
  const long ours = fibers_;  // another thread may delete us any time now
  if (others_.fetch_add(ours - alive) + ours == alive) {
    forget_thread();
    delete this;
  }
}

// --- who is asking -----------------------------------------------------------

[[noreturn, gnu::cold]] inline void throw_wrong_thread(const char* call,
                                                       const fiber& f) {
  std::string text = call;
  text += ": this ";
  text += f.kind();
  text += " belongs to thread " + std::to_string(f.home->number);
  text += f.home->ended ? ", which has ended" : "";
  text += "; we are thread " + std::to_string(this_thread_state().number);
  throw wrong_thread(text);
}

// What has ended a body, in the handler that has caught it. The unwinding that
// pthread_exit() and pthread_cancel() begin is no exception that could be kept,
// and to go on with it would leave the thread's own stack as it is.
[[gnu::cold]] inline std::exception_ptr what_ended(const char* flow) {
  std::exception_ptr error = std::current_exception();
  if (error == nullptr)
    die("pthread_exit() or pthread_cancel() in a ", flow,
        ": only the main flow of a thread can end it");
  return error;
}

// --- what a fiber runs -------------------------------------------------------

// Its type is what f(args...) returns, with copies that are moved from.
template <class F, class... Args>
struct call_result : std::invoke_result<F, Args...> {
  static_assert(std::is_invocable_v<F, Args...>,
                "f cannot be called with copies of these arguments: are there "
                "too many or too few? Where it takes a reference, pass "
                "std::ref(x)");
};

// A callable and what it is called with: once, as all of it is moved from.
template <class F, class... Args>
struct bound_call {
  template <class... First>
  typename call_result<F, First&..., Args...>::type operator()(
      First&... first) {
    return std::apply(
        [&first...](F& f, Args&... args) -> decltype(auto) {
          return std::invoke(std::move(f), first..., std::move(args)...);
        },
        kept);
  }
  std::tuple<F, Args...> kept;
};
template <class F>  // most have no arguments, which saves compilers much work
struct bound_call<F> {
  template <class... First>
  decltype(auto) operator()(First&... first) {
    return std::invoke(std::move(kept), first...);
  }
  F kept;
};

// A Frame, which is a fiber, with its body. drop_body() destroys that, once and
// early: when the fiber has ended, or knows that it will not begin.
template <class Frame, class F, class... Args>
class frame_with_body : public Frame {
 public:
  template <class... A>
  explicit frame_with_body(A&&... a) : body{{std::forward<A>(a)...}} {}

 protected:
  ~frame_with_body() override {
    if (this->life == flow_state::created) drop_body();
  }
  void drop_body() noexcept override { std::destroy_at(&body); }

  union {
    bound_call<F, Args...> body;
  };
};

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/coroutine.hpp - symmetric switching, values both ways
//
// A coroutine runs until it switches to somebody else, to whomever it likes.
// The value that it sends along is what the other one's own switch_to()
// returns:
//
//     bao::coroutine<std::string> play;
//     bao::coroutine<std::string> eat([&](std::string who) {
//       std::string answer = play.switch_to(who + ", eat!");
//       ...                                         |
//     });                                           v
//     play = bao::coroutine<std::string>([&](std::string what) { ...
//
// Coroutines form a tree: each has a parent, who created it unless set
// otherwise. The tree says where things go when a body ends: the value it
// returns, or the exception it throws, comes out of the pending switch_to() of
// its parent. The thread's own flow is the root. All of this is greenlet's
// model (https://greenlet.readthedocs.io).
//
// A switch with a value takes 3 ns; a body that has begun takes a page of
// memory at least.

#include <optional>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

struct nothing {};  // what a coroutine<void> sends

// Its address stands for the type T, in this program.
template <class T>
inline char type_tag = 0;

// The flow that runs inside f: a generator lends itself to whoever resumed it.
inline fiber* flow_of(fiber* f) {
  while (f->lends) f = f->link;
  return f;
}

using switch_trace = void (*)(const char* event, const void* from,
                              const void* to);
inline switch_trace trace_switch = nullptr;

// Never suspends. From now on trace("switch" or "throw", from, to) is called
// before each switch between coroutines, with the values of their id(). It must
// neither throw nor switch. Null turns it off. Returns who it was until now.
inline switch_trace set_switch_trace(switch_trace trace) {
  return std::exchange(trace_switch, trace);
}

// Throws bao::killed where a flow is suspended, and returns when it has ended
// or has switched back. What is to be thrown here after that is left in
// `pending`.
inline void strike(fiber& victim) {
  fiber* const mine = current_flow;
  fiber* const me = flow_of(mine);
  fiber* const next = std::exchange(victim.leaf, nullptr);
  fiber* const before = std::exchange(victim.killer, me);
  next->pending = std::make_exception_ptr(killed(&victim));
  me->expects = nullptr;  // no value: only that it has ended
  me->leaf = mine;
  if (trace_switch != nullptr) trace_switch("throw", me, &victim);
  switch_fiber(*mine, *next);
  victim.killer = before;
}

template <class T>
class coroutine;

// A coroutine that belongs to somebody else, or the main flow of a task. It may
// be kept longer than the coroutine lives, and is dead then. Only switch_to(),
// throw_in() and kill() suspend. They and set_parent() throw dead_coroutine for
// an empty handle, wrong_thread, and wrong_task for another task's coroutine.
// To copy one on another thread is wrong_thread as well.
template <class T = void>
class coroutine_ref {
 public:
  using value = std::conditional_t<std::is_void_v<T>, nothing, T>;

  coroutine_ref() = default;
  coroutine_ref(const coroutine_ref& other) : coroutine_ref(other.flow_) {}
  coroutine_ref& operator=(coroutine_ref other) noexcept {
    std::swap(flow_, other.flow_);
    return *this;
  }
  ~coroutine_ref() {
    if (flow_ != nullptr) flow_->release();
  }

  // Suspends this flow and continues the other one, where `v` arrives. Returns
  // what the next one to switch to us sends, who need not be the one that we
  // have switched to; throws what comes our way instead: the error of a child
  // that has ended, or what was thrown in. A switch to oneself returns `v`.
  //
  // Throws dead_coroutine when the other one has ended, wrong_type when it
  // waits for another type, stack_exhausted: then nothing has happened.
  [[gnu::always_inline]] T switch_to(value v = value{}) {
    fiber* to = flow_;
    if (to == nullptr || to->leaf == nullptr || to->root != current_root ||
        to->expects != &type_tag<value>)
      to = look_closer(v);  // at its first switch, or at a mistake
    if (to != nullptr)
      v = suspend(std::exchange(to->leaf, nullptr), "switch", &v);
    if constexpr (!std::is_void_v<T>) return v;
  }

  // Suspends like switch_to(), and throws `error` out of the other one's
  // switch_to(). One that has not started ends without running; its error, and
  // that for one that has ended, goes to the nearest living ancestor.
  T throw_in(std::exception_ptr error) {
    expect_usable("throw_in");
    if (error == nullptr) throw std::invalid_argument("throw_in: no exception");
    fiber* to = flow_;
    if (to->leaf == nullptr && to != flow_of(current_flow)) {
      if (is_own_kill(error)) return kill(), no_value();
      if (to->life == flow_state::created) to->unwind();
      to = heir_of(to);
    }
    if (to == flow_of(current_flow)) std::rethrow_exception(error);
    to->leaf->pending = std::move(error);
    value v = suspend(std::exchange(to->leaf, nullptr), "throw", nullptr);
    if constexpr (!std::is_void_v<T>) return v;
  }
  template <class E,
            class = std::enable_if_t<!std::is_same_v<E, std::exception_ptr>>>
  T throw_in(E error) {
    return throw_in(std::make_exception_ptr(std::move(error)));
  }

  // Suspends until the other flow, in which it throws bao::killed, has ended or
  // has switched back to us; whoever kills is its parent for that time. One
  // that has not started never runs; on one that has ended nothing happens; on
  // ourselves it throws here and now. Throws what the body throws instead, and
  // std::logic_error for a main flow.
  void kill() {
    expect_usable("kill");
    if (flow_ == flow_->root)
      throw std::logic_error("kill: the main flow cannot be killed");
    if (flow_ == flow_of(current_flow)) throw killed(flow_);
    if (flow_->leaf == nullptr) return flow_->unwind();
    const coroutine_ref victim(*this);  // our handle may go meanwhile
    strike(*victim.flow_);
    current_flow->meet_pending();
  }

  // Whom its value and its errors go to; empty for a main flow. That it waits
  // for a T is a guess, which a switch checks.
  coroutine_ref parent() const {
    if (flow_ == nullptr || flow_ == flow_->root) return {};
    return coroutine_ref(flow_->link);
  }

  // Gives it another parent. Throws parent_cycle when it would become its own
  // ancestor, std::logic_error for a main flow.
  template <class U>
  void set_parent(const coroutine_ref<U>& other) {
    expect_usable("set_parent");
    other.expect_usable("set_parent");
    if (flow_ == flow_->root)
      throw std::logic_error("set_parent: a main flow has no parent");
    for (fiber* f = other.flow_; f != nullptr; f = f->link)
      if (f == flow_)
        throw parent_cycle("set_parent: a coroutine would be its own ancestor");
    other.flow_->retain();
    std::exchange(flow_->link, other.flow_)->release();
  }

  // The main flow of a thread ends with the thread.
  flow_state state() const {
    if (flow_ == nullptr) return flow_state::finished;
    const bool gone = flow_ == &flow_->home->main && flow_->home->ended;
    return gone ? flow_state::finished : flow_->state();
  }
  bool dead() const { return state() == flow_state::finished; }
  explicit operator bool() const {  // started, and not ended
    return !dead() && state() != flow_state::created;
  }
  const void* id() const { return flow_; }

 protected:
  template <class>
  friend class coroutine_ref;
  template <class U>
  friend coroutine_ref<U> this_coroutine();
  template <class U>
  friend coroutine_ref<U> main_coroutine();

  explicit coroutine_ref(fiber* flow) : flow_(flow) {
    if (flow_ == nullptr) return;
    if (flow_->home != current_thread) throw_wrong_thread("coroutine", *flow_);
    flow_->retain();
  }

  thread_state& expect_usable(const char* call) const {
    thread_state& t = this_thread_state();
    if (flow_ == nullptr)
      throw dead_coroutine(std::string(call) + ": there is no coroutine here");
    if (flow_->home != &t) throw_wrong_thread(call, *flow_);
    if (flow_->root != current_root && flow_->life != flow_state::finished)
      throw wrong_task(std::string(call) +
                       ": the coroutine belongs to another task");
    return t;
  }

  // Whether the error is a kill of this very flow, which ends with it.
  bool is_own_kill(const std::exception_ptr& error) const {
    try {
      std::rethrow_exception(error);
    } catch (const killed& k) {
      return k.is_for(flow_);
    } catch (...) {
      return false;
    }
  }

  // What one that was killed gives.
  static T no_value() {
    if constexpr (std::is_void_v<T> || std::is_default_constructible_v<T>)
      return T();
    else
      throw dead_coroutine(
          "throw_in: the coroutine was killed, and its type has no default");
  }

  // The flow to switch to, ready for it; null when that is the one that asks.
  [[gnu::noinline]] fiber* look_closer(value& v) const {
    thread_state& t = expect_usable("switch_to");
    if (flow_ == flow_of(current_flow)) return nullptr;
    if (flow_->life == flow_state::finished)
      throw dead_coroutine("switch_to: the coroutine has ended");
    if (flow_->expects != &type_tag<value> && flow_->expects != nullptr)
      throw wrong_type(
          "switch_to: the coroutine waits for a value of another type");
    if (flow_->life == flow_state::created) {
      static_cast<std::optional<value>*>(flow_->inbox)->emplace(std::move(v));
      flow_->start(t);
      flow_->leaf = flow_;
    }
    return flow_;
  }

  // The nearest ancestor that can still take an error. One that has not started
  // dies of it.
  static fiber* heir_of(const fiber* flow) {
    fiber* heir = flow->link;
    for (; heir->life != flow_state::running; heir = heir->link)
      if (heir->life == flow_state::created) heir->unwind();
    return heir;
  }

  // Leaves the running flow until somebody switches to it. Returns what they
  // send, which still lies with them unless they have ended.
  [[gnu::always_inline]] static value suspend(fiber* next, const char* event,
                                              value* sent) {
    fiber* const leaf = current_flow;
    fiber* const me = flow_of(leaf);
    std::optional<value> reply;
    me->expects = &type_tag<value>;
    me->inbox = &reply;
    me->leaf = leaf;
    if (trace_switch != nullptr) trace_switch(event, me, flow_of(next));
    const arrival a = switch_fiber(*leaf, *next, sent);
    static_cast<fiber&>(a.self).meet_pending();
    if (a.message == nullptr) return std::move(*reply);
    return std::move(*static_cast<value*>(a.message));
  }

  fiber* flow_ = nullptr;
};

// What all coroutines have. Whoever makes one is its first parent.
class coroutine_core : public fiber {
 public:
  const char* kind() const noexcept override { return "coroutine"; }

  // Kills it where it is suspended; whoever asks is its parent for that time.
  // One that has not started never runs.
  void unwind() noexcept override;

 protected:
  coroutine_core() {
    link = flow_of(this_flow());
    link->retain();
    references = 1;
    root = current_root;
    home = &this_thread_state();  // the parent's, for good
    home->add();
  }
  ~coroutine_core() override { link->release(); }

  // Hands the result or the error to the killer, or else to the nearest
  // ancestor that has not ended. Returns who goes on.
  template <class T>
  fiber* bequeath(std::optional<T>& result, std::exception_ptr error) noexcept;

  virtual void drop_body() noexcept = 0;
};

inline void coroutine_core::unwind() noexcept {
  orphan = false;
  if (life == flow_state::created) {
    life = flow_state::finished;
    drop_body();
  }
  for (int tries = 0; leaf != nullptr; ++tries) {
    if (tries == 16) die("a coroutine that is destroyed does not end");
    strike(*this);
    fiber* const mine = current_flow;
    if (mine->pending != nullptr)
      tell_unhandled("a coroutine", std::exchange(mine->pending, nullptr));
  }
  if (life == flow_state::running && !home->ended)  // else: by exit()
    die("a coroutine was destroyed by itself, or by a flow that it waits for");
}

template <class T>
fiber* coroutine_core::bequeath(std::optional<T>& result,
                                std::exception_ptr error) noexcept {
  life = flow_state::finished;
  for (fiber* heir = killer != nullptr ? killer : link;; heir = heir->link) {
    if (heir->life == flow_state::finished) continue;
    if (error == nullptr && heir->expects != nullptr) {
      try {
        if (heir->expects != &type_tag<T>)
          throw wrong_type(
              "a coroutine ended with a value of another type "
              "than its parent waits for");
        if constexpr (std::is_default_constructible_v<T>)
          if (!result) result.emplace();
        if (!result)
          throw dead_coroutine(
              "a coroutine was killed, and its type has no default to return");
        *static_cast<std::optional<T>*>(heir->inbox) = std::move(result);
        if (heir->life == flow_state::created) {
          heir->start(*home);
          heir->leaf = heir;
        }
      } catch (...) {
        error = std::current_exception();
      }
    }
    if (heir->life == flow_state::created) {
      heir->unwind();  // it dies of the error without having run
      continue;
    }
    fiber* const next = std::exchange(heir->leaf, nullptr);
    if (trace_switch != nullptr)
      trace_switch(error != nullptr ? "throw" : "switch", this, heir);
    if (error != nullptr) next->pending = std::move(error);
    return next;
  }
}

template <class T, class F>
class coroutine_frame final : public frame_with_body<coroutine_core, F> {
  using base = frame_with_body<coroutine_core, F>;

 public:
  using value = typename coroutine_ref<T>::value;

  template <class G>
  explicit coroutine_frame(G&& f) : base(std::forward<G>(f)) {
    this->expects = &type_tag<value>;
    this->inbox = &first_;
  }

 private:
  fiber* run() noexcept override {
    std::optional<value> result;
    std::exception_ptr error;
    try {
      result = call();
    } catch (const killed& k) {
      if (!k.is_for(this)) error = std::current_exception();
    } catch (...) {
      error = what_ended("coroutine");
    }
    this->cleaning = true;
    drop_body();
    return this->template bequeath<value>(result, std::move(error));
  }

  value call() {
    F& f = this->body.kept;
    const auto call_it = [&]() -> decltype(auto) {
      if constexpr (std::is_invocable_v<F&, T>) {
        return f(std::move(*first_));
      } else {
        static_assert(std::is_invocable_v<F&>,
                      "the body is T(T), void(T), T() or void()");
        return f();
      }
    };
    if constexpr (std::is_convertible_v<decltype(call_it()), value>) {
      return call_it();
    } else {
      call_it();
      return value{};
    }
  }

  void drop_body() noexcept override {
    base::drop_body();
    first_.reset();
  }

  std::optional<value> first_;
};

// A body, T(T), void(T), T() or void(), with a stack of its own, that runs when
// somebody switches to it. Move-only; an empty one is dead.
//
// Nothing runs, and no stack is taken, before the first switch. Destroying a
// suspended one throws bao::killed in it and suspends until it has ended, so
// that the objects on its stack are destroyed, inner ones first; what else its
// body then throws goes to on_unhandled(). On another thread all that is left
// to the coroutine's own.
template <class T = void>
class coroutine : public coroutine_ref<T> {
 public:
  coroutine() = default;

  // A child of the flow that makes it, or of `parent`: throws what set_parent()
  // does.
  template <class F, class = std::enable_if_t<
                         !std::is_base_of_v<coroutine_ref<T>, std::decay_t<F>>>>
  explicit coroutine(F&& body) {
    this->flow_ =
        new coroutine_frame<T, std::decay_t<F>>(std::forward<F>(body));
  }

  template <class F, class U>
  coroutine(F&& body, const coroutine_ref<U>& parent)
      : coroutine(std::forward<F>(body)) {
    this->set_parent(parent);
  }

  coroutine(coroutine&& other) noexcept { std::swap(this->flow_, other.flow_); }
  coroutine& operator=(coroutine&& other) noexcept {
    coroutine taken(std::move(other));
    std::swap(this->flow_, taken.flow_);
    return *this;
  }
  ~coroutine() {
    fiber* flow = std::exchange(this->flow_, nullptr);
    if (flow == nullptr) return;
    flow->orphan = true;
    flow->release();
  }
};

// Never suspends. The coroutine that we are in, or the main flow.
template <class T = void>
coroutine_ref<T> this_coroutine() {
  return coroutine_ref<T>(flow_of(this_flow()));
}

// Never suspends. The first flow of the task that we are in.
template <class T = void>
coroutine_ref<T> main_coroutine() {
  this_thread_state();
  return coroutine_ref<T>(current_root);
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/generator.hpp - yield, send, throw, close
//
// A generator is a function that hands out its results one at a time. Between
// two of them it stands still in the middle of its body, on a stack of its own:
//
//     bao::generator<int> squares([](auto& yield) {
//       for (int i = 1; i <= 3; ++i) yield(i * i);
//     });
//     for (int n : squares) std::printf("%d ", n);      // 1 4 9
//
//     consumer    begin()         1   ++            4   ++
//                    |            ^    |            ^    |
//     body           '-> yield(1) '    '-> yield(4) '    '-> yield(9) ...
//
// The body may yield from within a function that it calls, from a recursion, or
// from another generator: that is what the stack of its own is for. The price
// is one page of memory at least, and 3 to 7 ns a value.
//
// The rules are Python's, for next, send, throw and close as for `yield from`;
// where Python says GeneratorExit, bao says killed, and the end is an empty
// optional instead of StopIteration.

#include <iterator>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

template <class Yield, class Send = void, class Return = void>
class generator;
template <class Yield, class Send>
class generator_core;

// T, for a parameter: it is not deduced, and the argument is converted to it.
template <class T>
using exactly_t = std::enable_if_t<true, T>;

// The type by which to return what another function has returned: an lvalue
// reference stays one, all else becomes a value.
template <class T>
using handed_on =
    std::conditional_t<std::is_lvalue_reference_v<T>, T, std::decay_t<T>>;

template <class T>
struct is_generator : std::false_type {};
template <class Y, class S, class R>
struct is_generator<generator<Y, S, R>> : std::true_type {};

// What a body calls to hand out a value: its parameter, by reference.
template <class Yield, class Send>
class yielder {
 public:
  yielder(const yielder&) = delete;

  // Suspends the body until the consumer, who gets `value`, asks for the next
  // one. Returns what it sends, Send{} when it just asks. Throws bao::killed
  // when the generator is closed, what is thrown in, and wrong_flow when called
  // from elsewhere than the generator's own body. In a destructor that runs
  // because of an exception it returns at once, and the generator ends with
  // close_ignored.
  //
  // An rvalue is handed over itself, an lvalue is copied; a generator<T&>
  // lends.
  template <class Y = Yield, class = std::enable_if_t<!std::is_void_v<Y>>>
  [[gnu::always_inline]] Send operator()(exactly_t<Y>&& value) {
    core().suspend(std::addressof(value));
    return received();
  }
  template <class Y = Yield, class = std::enable_if_t<!std::is_void_v<Y> &&
                                                      !std::is_reference_v<Y>>>
  [[gnu::always_inline]] Send operator()(const exactly_t<Y>& value) {
    Y copy(value);
    core().suspend(std::addressof(copy));
    return received();
  }
  template <class Y = Yield, class = std::enable_if_t<std::is_void_v<Y>>>
  [[gnu::always_inline]] Send operator()() {
    nothing none;
    core().suspend(&none);
    return received();
  }

  // Suspends until `other` has ended: yields all that it yields, and returns
  // what it returns. Meanwhile our consumer deals with it directly: sends,
  // throws and closes reach it. Throws what ends it, already_running,
  // wrong_thread, wrong_flow.
  template <class R>
  R from(generator<Yield, Send, R>& other);
  template <class R>
  R from(generator<Yield, Send, R>&& other) {
    generator<Yield, Send, R> mine(std::move(other));
    return from(mine);
  }
  // Suspends likewise: yields the elements of any other range.
  template <class Range,
            class = std::enable_if_t<!is_generator<std::decay_t<Range>>::value>>
  void from(Range&& range) {
    for (auto&& x : range) (*this)(std::forward<decltype(x)>(x));
  }

 protected:
  yielder() = default;
  ~yielder() = default;

 private:
  [[gnu::always_inline]] Send received() {
    if constexpr (!std::is_void_v<Send>) {
      Send* sent = std::exchange(core().consumed->sent, nullptr);
      if (sent != nullptr) return std::move(*sent);
      if constexpr (std::is_default_constructible_v<Send>)
        return Send{};
      else
        throw std::logic_error("yield: nothing was sent: use send()");
    }
  }

  // What this is a part of.
  generator_core<Yield, Send>& core() {
    return static_cast<generator_core<Yield, Send>&>(*this);
  }
};

// Returns `read`, which nearly always is `usual`, and that is not null.
// Processors guess where a branch goes, and wait for what a load brings: after
// the comparison they go on at once with the pointer that they have, which
// saves up to 2 ns a value. The empty assembly keeps the compiler from undoing
// it.
template <class T>
[[gnu::always_inline]] inline T* usually(T* usual, T* read) {
  if (__builtin_expect(read != usual, 0)) return read;
  __asm__ volatile("" : "+r"(usual));
  if (usual == nullptr) __builtin_unreachable();  // which made it forget that
  return usual;
}

// What a generator and its body have in common.
template <class Yield, class Send>
class generator_core : public fiber, public yielder<Yield, Send> {
 public:
  // What yield() leaves a pointer to: the object itself in the body's frame.
  using slot = std::conditional_t<std::is_void_v<Yield>, nothing,
                                  std::remove_reference_t<Yield>>;
  using sent_value = std::conditional_t<std::is_void_v<Send>, nothing, Send>;

  const char* kind() const noexcept override { return "generator"; }

  sent_value* sent = nullptr;       // null: by next()
  generator_core* consumed = this;  // whom the consumer holds: see yield_from()
  std::exception_ptr error;         // that ended it
  bool closing = false;             // from the outside
  bool yielded_late = false;        // in a destructor, where it cannot wait

  generator_core() {
    lends = true;
    references = 1;
  }

  // The consumer's side: runs the body to its next yield. Returns where the
  // value lies; null when there is no further one. Throws the error that ended
  // it.
  [[gnu::always_inline]] slot* advance(const char* call) {
    fiber* to = usually<fiber>(this, leaf);
    if (to == nullptr || home != current_thread) {
      if (!begin(call)) return nullptr;
      to = this;
    }
    link = current_flow;
    leaf = nullptr;
    auto* value = static_cast<slot*>(switch_fiber(*link, *to).message);
    if (value == nullptr) rethrow_error();
    return value;
  }

  // The body's side: offers a value and waits until the consumer wants more.
  [[gnu::always_inline]] void suspend(slot* value) {
    if (current_flow != this) refuse_yield();
    if (current_exceptions->any()) return suspend_while_handling(value);
    generator_core* const to = usually(this, consumed);
    to->leaf = this;
    const arrival a = switch_plainly(*this, *usually(current_root, to->link),
                                     as_message(value));
    static_cast<fiber&>(a.self).meet_pending();
  }

  // Runs `inner` to its end as if its body were part of ours: its values go to
  // our consumer, and what that one sends or throws goes to it, at the same
  // price whatever the depth. Throws what ended it.
  void yield_from(generator_core& inner);

  // Throws wrong_thread or already_running unless it stands at a yield.
  void expect_suspended(const char* call) const {
    if (home != nullptr && home != &this_thread_state())
      throw_wrong_thread(call, *this);
    if (leaf == nullptr) refuse_running(call);
  }

  slot* throw_in(std::exception_ptr e);
  void close();
  void unwind() noexcept override;

  bool finished() const { return life == flow_state::finished; }

 protected:
  virtual void call_body() = 0;
  virtual void drop_body() noexcept = 0;

 private:
  // Before the first value, and where there is none any more.
  [[gnu::cold, gnu::noinline]] bool begin(const char* call);

  // The body has ended: throws the error it ended with, once. Not cold, or the
  // compiler would think so of every loop that ends here.
  [[gnu::noinline]] void rethrow_error() {
    if (error != nullptr) std::rethrow_exception(std::exchange(error, nullptr));
  }

  static void* as_message(slot* value) {
    return const_cast<void*>(static_cast<const void*>(value));
  }

  // suspend() inside a catch block; while unwinding it is too late for that.
  [[gnu::cold, gnu::noinline]] void suspend_while_handling(slot* value) {
    if (current_exceptions->uncaught != 0) {
      yielded_late = true;
      return;
    }
    consumed->leaf = this;
    switch_while_handling(*this, *consumed->link, as_message(value));
    meet_pending();
  }

  [[noreturn, gnu::cold, gnu::noinline]] void refuse_yield() {
    throw wrong_flow("yield: called by another flow than the generator's body");
  }
  [[noreturn, gnu::cold, gnu::noinline]] static void refuse_running(
      const char* call) {
    throw already_running(std::string(call) + ": the generator is running");
  }

  fiber* run() noexcept override;
};

template <class Y, class S>
bool generator_core<Y, S>::begin(const char* call) {
  thread_state& t = this_thread_state();
  if (finished()) return false;
  if (home != nullptr && home != &t) throw_wrong_thread(call, *this);
  if (life == flow_state::running) refuse_running(call);
  start(t);
  return true;
}

template <class Y, class S>
fiber* generator_core<Y, S>::run() noexcept {
  try {
    call_body();
  } catch (const killed& k) {
    if (!k.is_for(this)) error = std::current_exception();
  } catch (...) {
    error = what_ended("generator");
  }
  cleaning = true;
  drop_body();
  if (yielded_late && error == nullptr)
    error = std::make_exception_ptr(close_ignored(
        "yield: called in a destructor while the generator was unwound"));
  life = flow_state::finished;
  return link;
}

template <class Y, class S>
void generator_core<Y, S>::yield_from(generator_core& inner) {
  if (current_flow != this) refuse_yield();
  if (inner.finished()) return;
  if (inner.home != nullptr && inner.home != home)
    throw_wrong_thread("yield.from", inner);
  fiber* to = inner.leaf;
  if (to == nullptr) {
    if (inner.life == flow_state::running) refuse_running("yield.from");
    inner.start(*home);
    to = &inner;
  }
  // Inner generators that it is in the middle of serve our consumer as well.
  for (fiber* f = to;; f = f->link) {
    static_cast<generator_core*>(f)->consumed = consumed;
    if (f == &inner) break;
  }
  inner.leaf = nullptr;
  inner.link = this;
  switch_fiber(*this, *to);
  inner.consumed = &inner;
  inner.rethrow_error();
  if (consumed->closing) throw killed(consumed);  // it was meant for us as well
}

template <class Y, class S>
auto generator_core<Y, S>::throw_in(std::exception_ptr e) -> slot* {
  if (leaf != nullptr) {
    expect_suspended("throw_in");
    leaf->pending = std::move(e);
    return advance("throw_in");
  }
  if (life == flow_state::running) refuse_running("throw_in");
  if (!finished()) {
    life = flow_state::finished;
    drop_body();
  }
  std::rethrow_exception(e);
}

template <class Y, class S>
void generator_core<Y, S>::close() {
  if (finished()) return;
  if (state() == flow_state::running) refuse_running("close");
  if (leaf == nullptr) {
    life = flow_state::finished;
    return drop_body();
  }
  expect_suspended("close");
  struct closes {
    bool& now;
    ~closes() { now = false; }
  } until_it_stops{closing};
  closing = true;
  leaf->pending = std::make_exception_ptr(killed(this));
  if (advance("close") != nullptr)
    throw close_ignored("close: the body yields instead of ending");
}

template <class Y, class S>
void generator_core<Y, S>::unwind() noexcept {
  orphan = false;
  if (state() == flow_state::running && !home->ended)  // else: exit() within it
    die("a generator was destroyed while its body was running");
  for (int tries = 0; state() != flow_state::running && !finished(); ++tries) {
    if (tries == 16) die("a generator that is destroyed does not end");
    try {
      close();
    } catch (...) {
      tell_unhandled("a generator", std::current_exception());
    }
  }
}

template <class Y, class S, class R>
class generator_frame : public generator_core<Y, S> {
 public:
  std::optional<std::conditional_t<std::is_void_v<R>, nothing, R>> result;
};

template <class Y, class S, class R, class F, class... Args>
class generator_call final
    : public frame_with_body<generator_frame<Y, S, R>, F, Args...> {
 public:
  using frame_with_body<generator_frame<Y, S, R>, F, Args...>::frame_with_body;

 private:
  void call_body() override {
    yielder<Y, S>& yield = *this;
    if constexpr (std::is_void_v<R>)
      this->body(yield);
    else
      this->result.emplace(this->body(yield));
  }
};

// A body with a stack of its own that yields values of type Yield, takes values
// of type Send for them, and may return a Return at its end. Move-only; moving
// one, or destroying the callable it was made from, does not disturb its body.
//
// The body is called as f(yield, args...). Nothing runs, and no stack is taken,
// before the first use. Destroying one closes it; what then escapes goes to
// on_unhandled().
//
// next(), send(), throw_in(), close(), the iterator and the destructor run the
// body, and suspend the task only where the body does; nothing else suspends.
// All but the destructor throw what ends the body, once; already_running when
// it runs or waits right now; wrong_thread; and stack_exhausted before the
// first value.
template <class Yield, class Send, class Return>
class generator {
  using core = generator_core<Yield, Send>;
  using frame = generator_frame<Yield, Send, Return>;
  using slot = typename core::slot;
  static constexpr bool can_ask =
      std::is_void_v<Send> || std::is_default_constructible_v<Send>;

 public:
  // What next() and send() return: a std::optional<Yield>, which is empty at
  // the end; a pointer for a generator<T&>, a bool for a generator<void>.
  using step =
      std::conditional_t<std::is_void_v<Yield>, bool,
                         std::conditional_t<std::is_reference_v<Yield>, slot*,
                                            std::optional<Yield>>>;
  using yield_type = Yield;

  // An empty one has ended.
  generator() = default;

  template <class F, class... Args,
            class = std::enable_if_t<!is_generator<std::decay_t<F>>::value>>
  generator(F&& f, Args&&... args)
      : core_(new generator_call<Yield, Send, Return, std::decay_t<F>,
                                 std::decay_t<Args>...>(
            std::forward<F>(f), std::forward<Args>(args)...)) {}

  generator(generator&& other) noexcept
      : core_(std::exchange(other.core_, nullptr)) {}
  generator& operator=(generator&& other) noexcept {
    generator taken(std::move(other));
    std::swap(core_, taken.core_);
    return *this;
  }
  ~generator() {
    if (core_ == nullptr) return;
    core_->orphan = true;
    core_->release();
  }

  // Runs the body to its next yield and returns that value; empty at the end,
  // then and ever after.
  [[gnu::always_inline]] step next() {
    static_assert(can_ask, "next() sends a default value: use send()");
    return taken(core_ != nullptr ? core_->advance("next") : nullptr);
  }

  // Makes `value` the result of the yield where the body stands, then like
  // next(). Throws not_started when it has not come to a yield yet.
  template <class S = Send>
  step send(exactly_t<S> value) {
    if (state() == flow_state::created)
      throw not_started("send: the generator has not come to a yield yet");
    if (core_ == nullptr || core_->finished()) return taken(nullptr);
    core_->expect_suspended("send");
    core_->sent = &value;
    return taken(core_->advance("send"));
  }

  // Throws `error` out of the yield where the body stands, then like next().
  // One that has not started ends without running; that, and one that has
  // ended, throws `error` here.
  step throw_in(std::exception_ptr error) {
    if (error == nullptr) throw std::invalid_argument("throw_in: no exception");
    if (core_ == nullptr) std::rethrow_exception(error);
    return taken(core_->throw_in(std::move(error)));
  }
  template <class E,
            class = std::enable_if_t<!std::is_same_v<E, std::exception_ptr>>>
  step throw_in(E error) {
    return throw_in(std::make_exception_ptr(std::move(error)));
  }

  // Throws bao::killed out of the yield where the body stands, which destroys
  // the objects on its stack. Throws close_ignored when it yields once more
  // instead: then it is suspended still. Nothing happens to one that has ended.
  void close() {
    if (core_ != nullptr) core_->close();
  }

  // What the body returned. Throws std::logic_error when it has not returned.
  template <class R = Return>
  std::enable_if_t<!std::is_void_v<R>, R&> result() {
    if (core_ == nullptr || !frame_of().result)
      throw std::logic_error("result: the generator has not returned");
    return *frame_of().result;
  }

  flow_state state() const {
    return core_ == nullptr ? flow_state::finished : core_->state();
  }

  // An input iterator: ++ asks for the next value, *it is the value that lies
  // in the body. All share the generator's place; end() is where it has ended.
  class iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = std::remove_cv_t<slot>;
    using difference_type = std::ptrdiff_t;
    using pointer = slot*;
    using reference = slot&;

    iterator() = default;
    reference operator*() const { return *value_; }
    pointer operator->() const { return value_; }
    [[gnu::always_inline]] iterator& operator++() {
      static_assert(can_ask, "++ sends a default value: use send()");
      value_ = core_->advance("next");
      return *this;
    }
    // Keeps the value for `*it++`.
    auto operator++(int) {
      struct kept {
        std::conditional_t<std::is_reference_v<Yield>, slot&, value_type> value;
        slot& operator*() { return value; }
      } before{static_cast<Yield&&>(**this)};
      ++*this;
      return before;
    }
    friend bool operator==(const iterator& a, const iterator& b) {
      return a.value_ == b.value_;
    }
    friend bool operator!=(const iterator& a, const iterator& b) {
      return a.value_ != b.value_;
    }

   private:
    friend generator;
    iterator(core* c, slot* value) : core_(c), value_(value) {}
    core* core_ = nullptr;
    slot* value_ = nullptr;  // null at the end
  };

  // Runs the body to its next yield.
  [[gnu::always_inline]] iterator begin() {
    static_assert(!std::is_void_v<Yield>, "there is nothing to iterate over");
    return iterator(core_,
                    core_ != nullptr ? core_->advance("begin") : nullptr);
  }
  iterator end() { return iterator(); }

 private:
  friend class yielder<Yield, Send>;

  frame& frame_of() { return static_cast<frame&>(*core_); }

  [[gnu::always_inline]] step taken(slot* value) {
    if constexpr (std::is_void_v<Yield>) {
      return value != nullptr;
    } else if constexpr (std::is_reference_v<Yield>) {
      return value;
    } else {
      if (value == nullptr) return std::nullopt;
      return step(std::move(*value));
    }
  }

  core* core_ = nullptr;
};

template <class Yield, class Send>
template <class R>
R yielder<Yield, Send>::from(generator<Yield, Send, R>& other) {
  if (other.core_ != nullptr) core().yield_from(*other.core_);
  if constexpr (!std::is_void_v<R>) return std::move(other.result());
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/pipeline.hpp - generators joined by |
//
//     for (auto& line : bao::from(lines) | bao::filter(is_error)
//                                        | bao::map(shorten) | bao::take(10))
//
// Every stage is a generator of its own that asks the one on its left, so
// values go through one by one: nothing is collected in between, and what
// nobody asks for is never made. Each stage below is therefore a loop that
// anybody would write, and a loop of your own joins in by stage().
//
// A generator on the left that is a temporary is owned by the result; one that
// has a name is borrowed, and goes on from where it was left.
//
// Each stage costs a stack, a page of memory at least, and 3 to 7 ns a value.
// To build a pipeline never suspends and runs nothing; to() and loops over it
// suspend where its bodies do.

#include <vector>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A stage knows how to connect itself to the generator on its left.
template <class Connect>
struct pipeline_stage {
  Connect connect;
};
template <class Connect>
pipeline_stage(Connect) -> pipeline_stage<Connect>;

template <class Source, class Connect,
          class = std::enable_if_t<is_generator<std::decay_t<Source>>::value>>
auto operator|(Source&& source, pipeline_stage<Connect> s) {
  return s.connect(std::forward<Source>(source));
}

// What a generator yields: T, or T& when it only lends.
template <class Generator>
using yielded = typename std::decay_t<Generator>::yield_type;

// The loop that you write: run(in, yield), which reads `in`, a generator, and
// yields values of type Out.
template <class Out, class F>
auto stage(F run) {
  return pipeline_stage{[run = std::move(run)](auto&& source) mutable {
    using kept = handed_on<decltype(source)>;  // a reference, or our own
    return generator<Out>(
        [](yielder<Out, void>& yield, std::tuple<kept> in, F f) {
          f(std::get<0>(in), yield);
        },
        std::tuple<kept>(std::forward<decltype(source)>(source)),
        std::move(run));
  }};
}

// f(x) for every x.
template <class F>
auto map(F f) {
  return pipeline_stage{[f = std::move(f)](auto&& source) mutable {
    using in = yielded<decltype(source)>;
    using out = handed_on<std::invoke_result_t<F&, in>>;
    return std::forward<decltype(source)>(source) |
           stage<out>([f = std::move(f)](auto& values, auto& yield) mutable {
             for (auto& x : values) yield(f(static_cast<in&&>(x)));
           });
  }};
}

// A stage() whose values have the type of those that it reads: run(in, hand_on)
// calls hand_on(x) to yield one.
template <class F>
auto passing(F run) {
  return pipeline_stage{[run = std::move(run)](auto&& source) mutable {
    using in = yielded<decltype(source)>;
    return std::forward<decltype(source)>(source) |
           stage<in>([run = std::move(run)](auto& values, auto& yield) mutable {
             run(values, [&](auto& x) { yield(static_cast<in&&>(x)); });
           });
  }};
}

// Those for which p(x) holds.
template <class P>
auto filter(P p) {
  return passing([p = std::move(p)](auto& values, auto hand_on) mutable {
    for (auto& x : values)
      if (p(x)) hand_on(x);
  });
}

// The first n; does not ask for one more.
inline auto take(std::size_t n) {
  return passing([n](auto& values, auto hand_on) mutable {
    if (n == 0) return;
    for (auto& x : values) {
      hand_on(x);
      if (--n == 0) return;
    }
  });
}

// All but the first n.
inline auto drop(std::size_t n) {
  return passing([n](auto& values, auto hand_on) mutable {
    for (auto& x : values)
      if (n > 0)
        --n;
      else
        hand_on(x);
  });
}

// Vectors of n, the last one shorter where they do not come out even. Throws
// std::invalid_argument when n is 0.
inline auto chunk(std::size_t n) {
  if (n == 0) throw std::invalid_argument("chunk: of nothing");
  return pipeline_stage{[n](auto&& source) {
    using in = yielded<decltype(source)>;
    using out = std::vector<std::decay_t<in>>;
    return std::forward<decltype(source)>(source) |
           stage<out>([n](auto& values, auto& yield) {
             out collected;
             for (auto& x : values) {
               collected.push_back(static_cast<in&&>(x));
               if (collected.size() == n) yield(std::exchange(collected, {}));
             }
             if (!collected.empty()) yield(std::move(collected));
           });
  }};
}

// The elements of every element, which is a range.
inline auto flatten() {
  return pipeline_stage{[](auto&& source) {
    using range = std::remove_reference_t<yielded<decltype(source)>>;
    using out = handed_on<decltype(*std::begin(std::declval<range&>()))>;
    return std::forward<decltype(source)>(source) |
           stage<out>([](auto& values, auto& yield) {
             for (auto& inner : values)
               for (auto&& x : inner) yield(static_cast<out&&>(x));
           });
  }};
}

// Pairs of one from each side, until either side ends.
template <class Generator>
auto zip(Generator&& other) {
  return pipeline_stage{
      [right = std::tuple<handed_on<Generator&&>>(
           std::forward<Generator>(other))](auto&& source) mutable {
        using a = yielded<decltype(source)>;
        using b = yielded<Generator>;
        return std::forward<decltype(source)>(source) |
               stage<std::pair<a, b>>([right = std::move(right)](
                                          auto& values, auto& yield) mutable {
                 for (auto& x : values) {
                   auto y = std::get<0>(right).begin();  // its next one
                   if (y == std::get<0>(right).end()) return;
                   yield({static_cast<a&&>(x), static_cast<b&&>(*y)});
                 }
               });
      }};
}

// All of the left side, then all of `other`.
template <class Generator>
auto chain(Generator&& other) {
  return passing([right = std::tuple<handed_on<Generator&&>>(
                      std::forward<Generator>(other))](auto& values,
                                                       auto hand_on) mutable {
    for (auto& x : values) hand_on(x);
    for (auto& x : std::get<0>(right)) hand_on(x);
  });
}

// The right end: everything in a container, as to<std::vector>() or as
// to<std::set<int>>().
template <class Container>
auto to() {
  return pipeline_stage{[](auto&& source) {
    using in = yielded<decltype(source)>;
    Container all;
    for (auto& x : source) all.insert(all.end(), static_cast<in&&>(x));
    return all;
  }};
}
template <template <class...> class Container>
auto to() {
  return pipeline_stage{[](auto&& source) {
    using value = std::decay_t<yielded<decltype(source)>>;
    return to<Container<value>>().connect(source);
  }};
}

// The left end: the elements of any range. One that has a name lends them, one
// after the other; those of a temporary are given away.
template <class Range>
auto from(Range&& range) {
  using kept = handed_on<Range&&>;
  using reference = decltype(*std::begin(std::declval<kept&>()));
  using value = typename std::iterator_traits<decltype(std::begin(
      std::declval<kept&>()))>::value_type;  // of vector<bool>, no proxy
  using out = std::conditional_t<std::is_reference_v<kept>,
                                 handed_on<reference>, value>;
  return generator<out>(
      [](yielder<out, void>& yield, std::tuple<kept> in) {
        for (auto&& x : std::get<0>(in))
          if constexpr (std::is_reference_v<kept>)
            yield(static_cast<out&&>(x));
          else
            yield(std::move(x));
      },
      std::tuple<kept>(std::forward<Range>(range)));
}

}  // namespace BAO_ABI
}  // namespace bao

// II. Waiting: what a scheduler needs to know of the world

// =============================================================================
// bao/list.hpp - intrusive lists whose members leave by themselves
//
// A waiter that lies on the stack of whoever waits cannot outlive its function:
// not when the wait is over, not when an exception comes instead. So the links
// are part of the member, and its destructor takes it out of the list that it
// is in. Entering and leaving allocate nothing and take the same time whatever
// the length. The price is two pointers in each member, which cannot be moved.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

template <class T>
class list;

template <class T>
class list_node {
 public:
  list_node() = default;
  list_node(const list_node&) = delete;
  ~list_node() { leave(); }

  bool in_list() const { return next_ != nullptr; }
  void leave() {
    if (next_ == nullptr) return;
    previous_->next_ = next_;
    next_->previous_ = previous_;
    next_ = previous_ = nullptr;
  }

 private:
  friend class list<T>;
  list_node* next_ = nullptr;  // null in both: in no list
  list_node* previous_ = nullptr;
};

// A list of T, which derives from list_node<T>. Owns nothing: what is in it
// when it goes just leaves.
template <class T>
class list {
 public:
  constexpr list() { end_.next_ = end_.previous_ = &end_; }
  list(const list&) = delete;
  ~list() {
    clear();
    end_.next_ = end_.previous_ = nullptr;
  }

  void clear() {
    while (!empty()) front().leave();
  }
  bool empty() const { return end_.next_ == &end_; }
  T& front() { return static_cast<T&>(*end_.next_); }
  void push_back(T& member) { put_before(&end_, &member); }
  void push_front(T& member) {
    static_cast<list_node<T>&>(member).leave();
    put_before(end_.next_, &member);
  }
  // The one that stands behind `member`, or null.
  T* after(T& member) {
    list_node<T>& node = member;
    return node.next_ == &end_ ? nullptr : static_cast<T*>(node.next_);
  }
  T* first() { return empty() ? nullptr : &front(); }

 private:
  static void put_before(list_node<T>* next, list_node<T>* node) {
    // GCC 12 sees the address of a local variable stored in a longer-lived
    // list, and warns, for it does not see its destructor take it out again.
    __asm__("" : "+r"(node));
    node->leave();
    node->next_ = next;
    node->previous_ = next->previous_;
    next->previous_->next_ = node;
    next->previous_ = node;
  }

  list_node<T> end_;
};

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/system.hpp - the one seam through which the system is asked
//
// The clock, and the calls by which a task moves bytes and makes connections,
// go through an object of this class: so a test can put another one there,
// whose hours pass in no time (virtual_time.hpp), or which fails when it is
// told to. The price is a virtual call, next to nothing beside a system call.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

using nanoseconds = std::int64_t;

class system_calls {
 public:
  // The time on a clock that never goes back.
  virtual nanoseconds now() {
    timespec t;
    ::clock_gettime(CLOCK_MONOTONIC, &t);
    return nanoseconds{t.tv_sec} * 1000000000 + t.tv_nsec;
  }
  // How long a thread that has nothing to do may sleep, none of its timers
  // being due before `until`; negative: until something happens. `jobs` tells
  // that other threads have work of ours in hand.
  virtual nanoseconds may_sleep(nanoseconds until, bool /*jobs*/) {
    const nanoseconds left = until - now();
    return left > 0 ? left : 0;
  }
  // It has slept as long as it might, and nothing has happened.
  virtual void slept_until(nanoseconds /*until*/) {}

  // Whether it is asked at each turn which of n ready tasks is next. If not,
  // they run in the order in which they became ready.
  virtual bool chooses() { return false; }
  virtual std::size_t choose(std::size_t /*n*/) { return 0; }

  virtual ssize_t read(int fd, void* p, std::size_t n) {
    return hook::original::read(fd, p, n);
  }
  virtual ssize_t write(int fd, const void* p, std::size_t n) {
    return hook::original::write(fd, p, n);
  }
  virtual ssize_t recv(int fd, void* p, std::size_t n, int flags) {
    return hook::original::recv(fd, p, n, flags);
  }
  virtual ssize_t send(int fd, const void* p, std::size_t n, int flags) {
    return hook::original::send(fd, p, n, flags);
  }
  virtual ssize_t recvmsg(int fd, msghdr* message, int flags) {
    return hook::original::recvmsg(fd, message, flags);
  }
  virtual ssize_t sendmsg(int fd, const msghdr* message, int flags) {
    return hook::original::sendmsg(fd, message, flags);
  }
  virtual int accept(int fd, sockaddr* from, socklen_t* n, int flags) {
#if defined(__linux__)
    return hook::original::accept4(fd, from, n, flags);
#else
    static_cast<void>(flags);
    return hook::original::accept(fd, from, n);
#endif
  }
  virtual int connect(int fd, const sockaddr* to, socklen_t n) {
    return hook::original::connect(fd, to, n);
  }

 protected:
  ~system_calls() = default;
};

class real_system final : public system_calls {};

inline real_system the_system;

// Whom this thread asks.
inline thread_local system_calls* sys = &the_system;

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/time.hpp - one clock, deadlines
//
// A call that may wait takes, last, a point in time until which it does. A
// duration is good for that as well, and becomes a point when the call is made:
// so three calls in a row that share a deadline take no longer than one.
//
//     bao::deadline until = 5s;
//     peer.write_all(question, until);
//     auto answer = peer.read_line(until);       // 5 s in all
//
// To make a point of a duration is to ask the clock, some tens of ns. Nothing
// in this chapter suspends.

#include <chrono>
#include <limits>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// The clock that all waiting goes by: steady, in nanoseconds.
struct clock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<clock>;
  static constexpr bool is_steady = true;

  static time_point now() { return time_point(duration(sys->now())); }
};

inline clock::time_point now() { return clock::now(); }

// A point in time until which to wait: never early. A duration counts from when
// the deadline is made; one too long to be represented is `never`, and one that
// is not positive has passed.
class deadline {
 public:
  deadline(clock::duration from_now) {
    if (from_now.count() <= 0)
      at_ = passed_already;
    else if (__builtin_add_overflow(sys->now(), from_now.count(), &at_))
      at_ = forever;
  }
  template <class Rep, class Period>
  deadline(std::chrono::duration<Rep, Period> from_now)
      : deadline(rounded_up(from_now)) {}
  constexpr deadline(clock::time_point at)
      : at_(at.time_since_epoch().count()) {}

  constexpr bool is_never() const { return at_ == forever; }
  bool passed() const {
    return at_ != forever && (at_ == passed_already || at_ <= sys->now());
  }
  constexpr nanoseconds at() const { return at_; }
  constexpr bool operator<(deadline other) const { return at_ < other.at_; }

 private:
  static constexpr nanoseconds forever =
      std::numeric_limits<nanoseconds>::max();
  static constexpr nanoseconds passed_already =
      std::numeric_limits<nanoseconds>::min();

  template <class Duration>
  static clock::duration rounded_up(Duration d) {
    using seconds = std::chrono::duration<double>;
    constexpr double longest = 8e9;  // 250 years, which 64 bits hold
    if (d <= d.zero()) return clock::duration::zero();
    if (!(seconds(d).count() < longest)) return clock::duration::max();
    return std::chrono::ceil<clock::duration>(d);
  }

  nanoseconds at_;
};

inline constexpr deadline never{clock::time_point::max()};
inline constexpr deadline at_once{clock::time_point::min()};  // has passed

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/timers.hpp - what is due next
//
// Most timers are limits on something that happens in time: they are set, and
// taken back again. Hierarchical timing wheels (Varghese and Lauck, 1987) do
// either in a few instructions, however many timers there are.
//
// A time is a number of eleven digits in base 64, and each digit has a
// wheel of 64 slots. A timer lies in the wheel of the first digit in which its
// time and the present differ, in the slot for the digit that it has there:
//
//     the present   ... 3 17  5 60
//     timers due    ... 3 17  5 61    wheel 0, slot 61
//                   ... 3 17 22 40    wheel 1, slot 22
//                   ... 3 40  0  7    wheel 2, slot 40
//
// So what is in one wheel is due before all that is in the next. When the time
// of a slot comes, its timers go to lower wheels, and by and by to wheel 0,
// where those in one slot are due in the same nanosecond: a sleep of some
// milliseconds is moved three times. Nothing is sorted, and as timers are part
// of whoever waits, nothing is allocated, and arming one cannot fail.

#include <algorithm>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

class timer : private list_node<timer> {
 public:
  bool armed() const { return in_list(); }
  nanoseconds due() const { return due_; }
  void cancel() { leave(); }

 private:
  friend class list<timer>;
  friend class timer_wheels;

  nanoseconds due_ = 0;
};

class timer_wheels {
 public:
  timer_wheels() = default;
  timer_wheels(const timer_wheels&) = delete;
  ~timer_wheels() { delete[] slots_; }

  void arm(timer& t, nanoseconds due) {
    t.due_ = due;
    put(t, chance_ != 0 && toss());
  }

  bool empty() { return first_slot().timers == nullptr; }

  // When to call take() next: when the first is due, or earlier if it would
  // take long to find that out. There must be one.
  nanoseconds next() {
    const slot first = first_slot();
    nanoseconds soonest = std::numeric_limits<nanoseconds>::max();
    int seen = 0;
    for (timer* t = first.timers->first(); t; t = first.timers->after(*t)) {
      if (++seen > 8) return first.begins;
      soonest = std::min(soonest, t->due_);
    }
    return soonest;
  }

  // Takes the first of those that are due by now; null: there is none.
  timer* take(nanoseconds now) {
    for (;;) {
      const slot first = first_slot();
      if (first.timers == nullptr || first.begins > now) break;
      present_ = first.begins;
      if (first.wheel == 0) {
        timer& t = first.timers->front();
        t.cancel();
        return &t;
      }
      while (!first.timers->empty()) put(first.timers->front());
    }
    present_ = std::max(present_, now);
    return nullptr;
  }

  // For another clock, which may show an earlier time. From now on `chance`,
  // the seed of a generator, decides which of two that are due at once comes
  // out first; 0: the one that was armed first.
  void restart(nanoseconds now, std::uint64_t chance) {
    chance_ = chance;
    if (now >= present_) return;
    list<timer> all;
    for (slot s = first_slot(); s.timers != nullptr; s = first_slot())
      while (!s.timers->empty()) all.push_back(s.timers->front());
    present_ = now;
    while (!all.empty()) put(all.front());
  }

 private:
  static constexpr unsigned wheels = 11;

  struct slot {
    list<timer>* timers;  // at least one; null: there is none at all
    unsigned wheel;
    nanoseconds begins;
  };

  // What is late counts as due now.
  void put(timer& t, bool before_its_equals = false) {
    const auto due = static_cast<std::uint64_t>(std::max(t.due_, present_));
    const std::uint64_t differs = due ^ static_cast<std::uint64_t>(present_);
    const auto highest =
        static_cast<unsigned>(63 - __builtin_clzll(differs | 1));
    const unsigned wheel = highest / 6;
    const std::uint64_t digit = due >> wheel * 6 & 63;
    used_[wheel] |= std::uint64_t{1} << digit;
    if (before_its_equals)
      slots_[wheel][digit].push_front(t);
    else
      slots_[wheel][digit].push_back(t);
  }

  slot first_slot() {
    for (unsigned wheel = 0; wheel < wheels; ++wheel)
      for (auto& used = used_[wheel]; used != 0; used &= used - 1) {
        const auto digit = static_cast<unsigned>(__builtin_ctzll(used));
        list<timer>& here = slots_[wheel][digit];
        if (here.empty()) continue;  // they have been cancelled
        // In two steps, as no shift may be by 66.
        const nanoseconds higher = present_ >> wheel * 6 >> 6 << 6;
        return {&here, wheel, (higher | digit) << wheel * 6};
      }
    return {};
  }

  // Knuth's linear congruential generator for MMIX.
  bool toss() {
    chance_ = chance_ * 6364136223846793005u + 1442695040888963407u;
    return chance_ >> 63 != 0;
  }

  nanoseconds present_ = 0;  // what was due before it has been taken
  std::uint64_t chance_ = 0;
  std::uint64_t used_[wheels] = {};  // a bit for each slot that may hold some
  // On the heap: of thread_local memory, 11 KiB would go to each thread of the
  // program, even one without tasks.
  list<timer> (*const slots_)[64] = new list<timer>[wheels][64];
};

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/poller.hpp - epoll, poll or select: which descriptors are ready
//
// Three ways to ask the kernel the same question, each an ordinary class in a
// file of its own. Only this ladder, and the one in config.hpp that names the
// choice, know that there are three; what they promise is in readiness.hpp.
//
//                a wait costs         to watch one costs            limit
//     epoll      what is ready        a system call; owned: once    memory
//     poll       what is watched      nothing                       memory
//     select     the largest number   nothing                       FD_SETSIZE


// =============================================================================
// bao/poller/readiness.hpp - what a poller is asked, and what it answers
//
// The contract of the three pollers, which one set of tests holds them to:
//
//   watch(fd, want)
//       Once any of `want` holds, the next wait() reports fd. After one report,
//       watch it again to hear more: the other direction may have been
//       forgotten along with it. False: the system cannot watch this one, as
//       it is always ready (a regular file). Throws std::system_error.
//   watch_owned(fd, want)
//       The same of a descriptor that its owner closes only after forget(). It
//       may be reported again without being asked for. The owner must have met
//       EAGAIN since the last report, or drained it: some pollers report only
//       what has changed.
//   watch_again(fd, want, anew)
//       As watch(), for whoever waits for fd again and again: unless `anew`,
//       what the system was told of it last time is taken to hold still. The
//       number may stand for another file by now; so do not wait for long
//       before you ask anew.
//   read_short(fd, tells)
//       A read gave less than was asked for. If tells() says that this empties
//       an fd of this kind, which is asked once a registration, emptied(fd)
//       holds until fd is reported again: a read is not worth trying. Like what
//       watch_again() trusts, it may be wrong.
//   doubt(fd)
//       There was no news for a while: the next watch_again() tells the system
//       anew, and emptied(fd) does not hold until then.
//   unwatch(fd)
//       Nobody waits for fd, for now. If lasts(fd), it may be reported yet:
//       forget(fd) then.
//   forget(fd)
//       Nothing is reported of fd any more. To be called before it is closed.
//   wait(ns, report)
//       Calls report(fd, readiness) for what is ready, at most 32 at a time.
//       Sleeps up to ns when nothing is, for ever when ns is negative; an
//       interrupting signal ends that too. More may be reported than was asked
//       for, never less: an error or a hang-up counts as both directions (but
//       for select's hang-ups, see there).
//   prepare(fds)
//       Adds what is watched to an array for poll(2): when any of it is ready,
//       wait() has something to report, or wake() was called.
//   wake()
//       Ends a wait(), now or the next. From any thread, and from signal
//       handlers.
//
// A poller knows descriptors and readiness; it has never heard of tasks.

#if defined(__linux__)
#include <sys/eventfd.h>
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A set of: readable, writable, uncertain. False when empty.
struct readiness {
  unsigned char bits = 0;

  constexpr explicit operator bool() const { return bits != 0; }
  constexpr readiness operator|(readiness other) const {
    return {static_cast<unsigned char>(bits | other.bits)};
  }
  constexpr readiness operator&(readiness other) const {
    return {static_cast<unsigned char>(bits & other.bits)};
  }
  constexpr readiness without(readiness other) const {
    return {static_cast<unsigned char>(bits & ~other.bits)};
  }
  constexpr bool operator==(readiness other) const {
    return bits == other.bits;
  }
  constexpr bool operator!=(readiness other) const {
    return bits != other.bits;
  }
};

inline constexpr readiness readable{1};
inline constexpr readiness writable{2};
// A short read does not mean that there is no more: the other end has hung up,
// of which there is news only once, or has sent urgent data, where reads stop.
inline constexpr readiness uncertain{4};

// A descriptor's entry in a table, which grows with their numbers.
template <class T>
T& entry_of(std::vector<T>& table, int fd) {
  if (fd < 0) throw_errno("descriptor < 0", EBADF);
  const auto i = static_cast<std::size_t>(fd);
  if (i >= table.size()) table.resize(i + i / 2 + 16);
  return table[i];
}

// A descriptor that becomes readable when somebody calls ring().
class doorbell {
 public:
  doorbell() {
#if defined(__linux__)
    in_ = out_ = check(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
#else
    int ends[2];
    check(::pipe(ends), "pipe");
    in_ = ends[0], out_ = ends[1];
    for (int fd : ends) {
      ::fcntl(fd, F_SETFD, FD_CLOEXEC);
      ::fcntl(fd, F_SETFL, O_NONBLOCK);
    }
#endif
  }
  doorbell(const doorbell&) = delete;
  ~doorbell() {
    ::close(in_);
    if (out_ != in_) ::close(out_);
  }

  int fd() const { return in_; }
  // A full pipe or counter has been rung already. Keeps errno.
  void ring() const noexcept {
    const int before = errno;
    const std::uint64_t one = 1;
    if (hook::original::write(out_, &one, sizeof one) == -1) errno = before;
  }
  void answer() const noexcept {
    char rung[64];
    while (hook::original::read(in_, rung, sizeof rung) == sizeof rung) {
    }
  }

 private:
  int in_, out_;
};

inline timespec to_timespec(nanoseconds ns) {
  timespec t;
  t.tv_sec = static_cast<time_t>(ns / 1000000000);
  t.tv_nsec = static_cast<long>(ns % 1000000000);
  return t;
}

// For calls that count in milliseconds; -1 is for ever. Rounded up: a timer
// must not be looked at before it is due.
inline int to_milliseconds(nanoseconds ns) {
  constexpr nanoseconds longest = 1000000000;  // 11 days, and then once more
  if (ns < 0) return -1;
  const nanoseconds ms = ns / 1000000 + (ns % 1000000 != 0);
  return static_cast<int>(ms < longest ? ms : longest);
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/poller.hpp, continued
#if defined(BAO_USE_SELECT)

// =============================================================================
// bao/poller/select.hpp - the oldest: a bit for every descriptor
//
// Two sets of FD_SETSIZE bits, 1024 nearly everywhere, are copied into the
// kernel and out again at every wait. A descriptor that has no bit is refused:
// setting it would write past the end of the set.
//
// Of a hang-up it tells readers only, and writers of room or an error. So one
// who writes to a full unix socket waits on when its other end shuts both ways
// and stays open; the other two pollers tell him.

#include <fcntl.h>
#include <poll.h>
#include <sys/select.h>
#include <time.h>

#include <cerrno>
#include <string>
#include <vector>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

class select_poller {
 public:
  select_poller() {
    FD_ZERO(&reading_);
    FD_ZERO(&writing_);
    watch(bell_.fd(), readable);
  }
  select_poller(const select_poller&) = delete;

  bool watch(int fd, readiness want) {
    if (fd < 0) throw_errno("select", EBADF);
    if (fd >= FD_SETSIZE)
      throw_errno("select: descriptor " + std::to_string(fd) +
                      " is not below " + std::to_string(FD_SETSIZE) +
                      " (FD_SETSIZE)",
                  EMFILE);
    if (want & readable) FD_SET(fd, &reading_);
    if (want & writable) FD_SET(fd, &writing_);
    if (fd >= end_) end_ = fd + 1;
    return true;
  }
  bool watch_owned(int fd, readiness want) { return watch(fd, want); }
  bool watch_again(int fd, readiness want, bool) { return watch(fd, want); }
  void unwatch(int fd) noexcept { forget(fd); }
  bool lasts(int) const noexcept { return false; }
  template <class Tells>
  void read_short(int, Tells) {}
  bool emptied(int) const noexcept { return false; }
  void doubt(int) {}

  void forget(int fd) noexcept {
    if (fd < 0 || fd >= FD_SETSIZE) return;
    FD_CLR(fd, &reading_);
    FD_CLR(fd, &writing_);
  }

  template <class Report>
  void wait(nanoseconds ns, Report report) {
    fd_set in = reading_, out = writing_;
    const timespec t = to_timespec(ns);
    int left = hook::original::pselect(end_, &in, &out, nullptr,
                                       ns < 0 ? nullptr : &t, nullptr);
    if (left == -1 && errno == EBADF) return report_closed(report);
    if (left == -1 && errno != EINTR) throw_errno("select");
    if (left <= 0) return;
    // From where the former wait stopped, so that a busy low number cannot hold
    // up the higher ones for ever.
    int fd = next_ < end_ ? next_ : 0;
    const int n = end_;
    for (int i = 0, reported = 0; i < n && left > 0 && reported < 32; ++i) {
      readiness ready;
      if (FD_ISSET(fd, &in)) ready = ready | readable, --left;
      if (FD_ISSET(fd, &out)) ready = ready | writable, --left;
      if (ready && fd == bell_.fd()) {
        bell_.answer();
      } else if (ready) {
        if (ready & readable) FD_CLR(fd, &reading_);
        if (ready & writable) FD_CLR(fd, &writing_);
        ++reported;
        report(fd, ready);
      }
      fd = fd + 1 < n ? fd + 1 : 0;
    }
    next_ = fd;
  }

  void prepare(std::vector<pollfd>& fds) const {
    for (int fd = 0; fd < end_; ++fd) {
      const int in = FD_ISSET(fd, &reading_) ? POLLIN : 0;
      const int out = FD_ISSET(fd, &writing_) ? POLLOUT : 0;
      if (in | out) fds.push_back({fd, static_cast<short>(in | out), 0});
    }
  }

  void wake() const noexcept { bell_.ring(); }

 private:
  // One of them was closed behind our back, and select does not say which. Its
  // waiter will learn why when it tries.
  template <class Report>
  void report_closed(Report report) {
    for (int fd = 0; fd < end_; ++fd) {
      if (!FD_ISSET(fd, &reading_) && !FD_ISSET(fd, &writing_)) continue;
      if (::fcntl(fd, F_GETFD) != -1) continue;
      forget(fd);
      report(fd, readable | writable | uncertain);
    }
  }

  doorbell bell_;
  fd_set reading_, writing_;
  int end_ = 0;
  int next_ = 0;
};

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/poller.hpp, continued
#define BAO_POLLER select_poller
#elif defined(BAO_USE_POLL) || !defined(__linux__)

// =============================================================================
// bao/poller/poll.hpp - anywhere: the list goes along with every question
//
// What is watched stands in an array that the kernel walks at every wait, so a
// wait takes longer the more there is. What is reported is taken out again.

#include <poll.h>
#include <time.h>

#include <cerrno>
#include <cstddef>
#include <vector>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

class poll_poller {
 public:
  poll_poller() { entries_.push_back({bell_.fd(), POLLIN, 0}); }
  poll_poller(const poll_poller&) = delete;

  bool watch(int fd, readiness want) {
    std::size_t& place = entry_of(place_, fd);
    if (place == 0) {
      entries_.push_back({fd, 0, 0});
      place = entries_.size() - 1;
    }
    short& events = entries_[place].events;
    if (want & readable) events = static_cast<short>(events | POLLIN);
    if (want & writable) events = static_cast<short>(events | POLLOUT);
    return true;
  }
  bool watch_owned(int fd, readiness want) { return watch(fd, want); }
  bool watch_again(int fd, readiness want, bool) { return watch(fd, want); }
  void unwatch(int fd) noexcept { forget(fd); }
  bool lasts(int) const noexcept { return false; }
  template <class Tells>
  void read_short(int, Tells) {}
  bool emptied(int) const noexcept { return false; }
  void doubt(int) {}

  void forget(int fd) noexcept {
    const auto i = static_cast<std::size_t>(fd);
    if (i < place_.size() && place_[i] != 0) remove(place_[i]);
  }

  template <class Report>
  void wait(nanoseconds ns, Report report) {
    int left = ask(ns);
    if (left <= 0) return;
    if (entries_[0].revents != 0) {
      bell_.answer();
      --left;
    }
    // Backwards, since the last one takes the place of one that is removed;
    // from where the former wait stopped, so that nobody is passed over for
    // ever.
    std::size_t n = entries_.size();
    std::size_t at = next_ < n ? next_ : n - 1;
    for (int reported = 0; left > 0 && reported < 32 && --n > 0; --at) {
      if (at == 0) at = entries_.size() - 1;
      pollfd& e = entries_[at];
      if (e.revents == 0) continue;
      --left;
      ++reported;
      const int fd = e.fd;
      const int bad = POLLHUP | POLLERR | POLLNVAL;
      readiness ready;
      if (e.revents & (POLLIN | bad)) ready = ready | readable;
      if (e.revents & (POLLOUT | bad)) ready = ready | writable;
      if (e.revents & bad) ready = ready | uncertain;
      if (ready & readable) e.events = static_cast<short>(e.events & ~POLLIN);
      if (ready & writable) e.events = static_cast<short>(e.events & ~POLLOUT);
      if (e.events == 0) remove(at);
      report(fd, ready);
    }
    next_ = at;
  }

  void prepare(std::vector<pollfd>& fds) const {
    fds.insert(fds.end(), entries_.begin(), entries_.end());
  }

  void wake() const noexcept { bell_.ring(); }

 private:
  int ask(nanoseconds ns) {
#if defined(__linux__)
    const timespec t = to_timespec(ns);
    const int n = hook::original::ppoll(entries_.data(),
                                        static_cast<nfds_t>(entries_.size()),
                                        ns < 0 ? nullptr : &t, nullptr);
#else
    const int n = hook::original::poll(entries_.data(),
                                       static_cast<nfds_t>(entries_.size()),
                                       to_milliseconds(ns));
#endif
    if (n == -1 && errno != EINTR) throw_errno("poll");
    return n;
  }

  void remove(std::size_t place) noexcept {
    place_[static_cast<std::size_t>(entries_[place].fd)] = 0;
    entries_[place] = entries_.back();
    entries_.pop_back();
    if (place < entries_.size())
      place_[static_cast<std::size_t>(entries_[place].fd)] = place;
  }

  doorbell bell_;
  std::vector<pollfd> entries_;     // the bell first
  std::vector<std::size_t> place_;  // by descriptor; 0: not watched
  std::size_t next_ = 0;
};

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/poller.hpp, continued
#define BAO_POLLER poll_poller
#else

// =============================================================================
// bao/poller/epoll.hpp - Linux: the kernel keeps the list
//
// The kernel is told once who is of interest, and then answers in time that
// depends on how many are ready, not on how many there are.
//
// Owned descriptors are registered once, edge-triggered, in both directions:
// from then on waiting costs no system call but epoll_wait itself. A foreign
// one may be closed behind our back, and its number given to another file,
// without a word from the kernel. So each watch() registers it anew, for one
// report, at a system call each; watch_again() trusts its last registration,
// edge-triggered as well, until it is to ask anew.
//
// An event names its descriptor and the generation that was watching it. A file
// that is closed here but lives on in a child or a duplicate still sends events
// under the old number; the generation shows that they are stale.

#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

class epoll_poller {
 public:
  epoll_poller()
      : epoll_(check(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1")) {
    control(EPOLL_CTL_ADD, bell_.fd(), EPOLLIN, 0);
  }
  epoll_poller(const epoll_poller&) = delete;
  ~epoll_poller() { ::close(epoll_); }

  bool watch(int fd, readiness want) {
    entry_of(entries_, fd).lasting = 0;
    return register_foreign(fd, events_of(want) | EPOLLONESHOT);
  }

  bool watch_again(int fd, readiness want, bool anew) {
    entry& e = entry_of(entries_, fd);
    const unsigned events = e.lasting | events_of(want) | EPOLLET;
    if (events == e.lasting && !anew && e.left != rest::doubted) return true;
    e.lasting = 0;
    if (!register_foreign(fd, events)) return false;
    e.lasting = events;
    return true;
  }

  void unwatch(int fd) noexcept {
    if (!lasts(fd)) forget(fd);
  }
  bool lasts(int fd) const noexcept { return entry_at(fd).lasting != 0; }

  template <class Tells>
  void read_short(int fd, Tells tells) {
    if ((entry_at(fd).lasting & EPOLLIN) == 0) return;
    entry& e = entry_of(entries_, fd);
    if (e.left == rest::unknown) e.left = tells() ? rest::some : rest::unsure;
    if (e.left == rest::some) e.left = rest::none;
  }
  bool emptied(int fd) const noexcept {
    return entry_at(fd).left == rest::none;
  }
  void doubt(int fd) { entry_of(entries_, fd).left = rest::doubted; }

  bool watch_owned(int fd, readiness) {
    entry& e = entry_of(entries_, fd);
    // Never those of a foreign one, which is not asked for urgent data.
    constexpr unsigned events =
        EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET;
    if (e.lasting == events) return true;
    ++e.generation;
    if (!control(EPOLL_CTL_ADD, fd, events, e.generation) &&
        !(errno == EEXIST && control(EPOLL_CTL_MOD, fd, events, e.generation)))
      return cannot_watch(fd);
    e.lasting = events;
    return true;
  }

  void forget(int fd) noexcept {
    if (static_cast<std::size_t>(fd) >= entries_.size()) return;
    entry& e = entry_of(entries_, fd);
    ++e.generation;
    e.left = rest::unknown;
    if (std::exchange(e.lasting, 0) != 0) control(EPOLL_CTL_DEL, fd, 0, 0);
  }

  template <class Report>
  void wait(nanoseconds ns, Report report) {
    constexpr int most = 32;  // more at a time measured slower: cold caches
    epoll_event events[most];
    const int n = wait_for_events(events, most, ns);
    for (int i = 0; i < n; ++i) {
      const int fd = static_cast<int>(events[i].data.u64 & 0xffffffff);
      const auto generation = static_cast<unsigned>(events[i].data.u64 >> 32);
      if (fd == bell_.fd()) {
        bell_.answer();
      } else if (entry& known = entry_of(entries_, fd);
                 known.generation == generation) {
        const unsigned e = events[i].events;
        readiness ready;
        if (e & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
          ready = ready | readable;
        if (e & (EPOLLOUT | EPOLLHUP | EPOLLERR)) ready = ready | writable;
        if (e & (EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
          ready = ready | uncertain;
        if (ready & uncertain)
          known.left = rest::unsure;
        else if (known.left == rest::none)
          known.left = rest::some;
        report(fd, ready);
      }
    }
  }

  void prepare(std::vector<pollfd>& fds) const {
    fds.push_back({epoll_, POLLIN, 0});
  }

  void wake() const noexcept { bell_.ring(); }

 private:
  // What is left to read of one that stays registered: `unknown` before the
  // first short read, `unsure` where that does not tell, or where more may come
  // without a report, `doubted` where all may be that of another file.
  enum class rest : unsigned char { unknown, some, none, unsure, doubted };
  struct entry {
    unsigned generation = 0;
    unsigned lasting = 0;  // the events for which it stays registered
    rest left = rest::unknown;
  };
  entry entry_at(int fd) const noexcept {
    const auto i = static_cast<std::size_t>(fd);
    return i < entries_.size() ? entries_[i] : entry();
  }

  static unsigned events_of(readiness want) {
    unsigned events = 0;
    if (want & readable) events |= EPOLLIN | EPOLLRDHUP;
    if (want & writable) events |= EPOLLOUT;
    return events;
  }

  // Nearly always the number is registered already.
  bool register_foreign(int fd, unsigned events) {
    entry& e = entry_of(entries_, fd);
    ++e.generation;
    e.left = rest::unknown;
    return control(EPOLL_CTL_MOD, fd, events, e.generation) ||
           (errno == ENOENT &&
            control(EPOLL_CTL_ADD, fd, events, e.generation)) ||
           cannot_watch(fd);
  }

  bool control(int operation, int fd, unsigned events, unsigned generation) {
    epoll_event e{};
    e.events = events;
    e.data.u64 = static_cast<unsigned>(fd) | std::uint64_t{generation} << 32;
    return ::epoll_ctl(epoll_, operation, fd, &e) == 0;
  }

  bool cannot_watch(int fd) {
    if (errno == EPERM) return false;
    throw_errno("epoll_ctl: descriptor " + std::to_string(fd));
  }

  int wait_for_events(epoll_event* events, int most, nanoseconds ns) {
#if defined(SYS_epoll_pwait2)
    if (has_pwait2_) {  // Linux 5.11; the older call counts in milliseconds
      const timespec t = to_timespec(ns);
      const long n = ::syscall(SYS_epoll_pwait2, epoll_, events, most,
                               ns < 0 ? nullptr : &t, nullptr, 0);
      if (n != -1 || errno == EINTR) return static_cast<int>(n);
      if (errno != ENOSYS && errno != EPERM) throw_errno("epoll_pwait2");
      has_pwait2_ = false;
    }
#endif
    const int n =
        hook::original::epoll_wait(epoll_, events, most, to_milliseconds(ns));
    if (n == -1 && errno != EINTR) throw_errno("epoll_wait");
    return n;
  }

  doorbell bell_;
  int epoll_;
  // Of a system call that it does not know, valgrind warns each time.
  bool has_pwait2_ = valgrind_request(running_on_valgrind) == 0;
  std::vector<entry> entries_;
};

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/poller.hpp, continued
#define BAO_POLLER epoll_poller
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {
using poller = BAO_POLLER;
}
}  // namespace bao
#undef BAO_POLLER

// III. Scheduling: who runs next

// =============================================================================
// bao/task.hpp - what is known of a task
//
// A task is a flow that the scheduler runs. Here is only what there is to know
// about one; what is done with it is the scheduler's business.
//
//                 spawn        run          park
//        created ------> ready ---> running ----> parked
//                          ^                        |
//                          '------------------------'    running ---> done
//                                    wake
//
// A task may have more than one stack: its coroutines, and the generators that
// it resumes. When it parks, all of that stands still, and `parked_in`
// remembers which of them it was that really waits.
//
// A parked task takes a page of stack at least, and about 0.5 KiB of control
// block.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

enum class task_state { created, ready, parked, running, done };

class task_block;

// Called when a task has ended. Lies with whoever wants to know.
struct completion : list_node<completion> {
  void (*ended)(completion&, task_block&) = nullptr;
};

// A timer that does something when it is due.
struct alarm : timer {
  void (*ring)(alarm&, class scheduler&) = nullptr;
};

// What some task has, and others may wait for: a lock, or its own end.
struct holding {
  const char* what;  // the name of the lock; null: its end
  long task = -1;    // -1: nobody has it
};

// What a parked task waits for, for those who ask.
struct wait_reason {
  const char* what;  // "sleeping", "joining task", "reading descriptor"
  long number = -1;  // of that task, that descriptor; -1: there is none
  const holding* held = nullptr;  // by whom, if that can be told
};

// A value that some task_local has in a task (local.hpp).
struct local_value {
  explicit local_value(unsigned long of) : key(of) {}
  virtual ~local_value() = default;

  const unsigned long key;
  local_value* next = nullptr;
};

// A time limit on a block of code, or a shield against interruptions. It
// belongs to the flow that opened it and holds for whatever that one waits for.
class scope {
 public:
  explicit scope(bool shields);
  scope(const scope&) = delete;

 protected:
  ~scope();

  bool passed_ = false;  // a limit, and nobody was told yet

 private:
  friend class scheduler;

  fiber* flow_;
  scope* outer_;
  unsigned unwinding_;  // exceptions in flight in the flow when it was opened
  bool shields_;
};

// A task stands in the list of all tasks, and it is the alarm that ends its
// wait.
class task_block : public fiber, public list_node<task_block>, public alarm {
 public:
  using list_node<task_block>::leave;  // the list, that is, not the wheels

  enum class cause { none, woken, late, interrupted };

  explicit task_block(fiber& first_flow) : flow(&first_flow) {
    first_flow.owner = this;
  }
  task_block() : task_block(static_cast<fiber&>(*this)) {}

  // Destroys what it has in task_locals, the latest first. That may suspend.
  void drop_locals() noexcept {
    while (locals != nullptr) delete std::exchange(locals, locals->next);
  }

  const char* kind() const noexcept override { return "task"; }
  const char* title() const noexcept override { return name.c_str(); }
  unsigned long number() const noexcept override { return id; }

  // First what it takes to park, to be woken and to run again. Of thousands of
  // tasks no cache holds the blocks, and so two lines of memory have to be
  // fetched for a turn beside that of the context, and not five.
  fiber* const flow;  // its first: this, but for the thread's main task
  fiber* parked_in = nullptr;  // the flow in it that waits, once it has begun
  task_block* next_ready = nullptr;
  task_state stage = task_state::created;
  cause why_woken = cause::none;
  std::exception_ptr thrown_in;  // to be thrown at its next park, once
  bool kill_wanted = false;      // until it has ended
  bool kill_is_new = false;      // not thrown yet
  int kill_refusals = 0;         // how often it was thrown and swallowed
  wait_reason waits_for{""};
  nanoseconds waits_since = 0;

  std::exception_ptr kill_thrown;
  std::exception_ptr error;  // that ended it
  bool ended_by_kill = false;
  bool asked = false;       // somebody wanted to know of the error
  bool background = false;  // join_all() does not wait for it
  int unpatched = 0;        // how many patch_off it is in
  list<completion> watchers;
  local_value* locals = nullptr;

  unsigned long id = 0;
  std::size_t stack_size = default_stack_size;
  std::string name;
  const char* file = "";  // where it was spawned
  int line = 0;
};

inline scope::scope(bool shields)
    : flow_(this_flow()),
      outer_(flow_->scopes),
      unwinding_(current_exceptions->uncaught),
      shields_(shields) {
  flow_->scopes = this;
}

inline scope::~scope() {
  // Nearly always the innermost; but limits on the heap may go in any order.
  scope** link = &flow_->scopes;
  while (*link != this) link = &(*link)->outer_;
  *link = outer_;
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/report.hpp - who is stuck, and on what
//
// When a program hangs, the question is who waits, and for what. Every park
// says what for, so the answer is one line a task:
//
//     task 3 "reader" (server.cpp:4) is parked: reading descriptor 7, for 1.2 s
//     task 4 (server.cpp:9) is parked: locking mutex, held by task 3, for 0.1 s
//
// Behind it stands how far down it is on its stack, and the functions that it
// is in; and where tasks wait for each other in a circle, that is spelled out.
// All this costs a few stores a park, and no look at the clock: the seconds
// count from when the scheduler last took one.

#if defined(__GLIBC__)
#include <execinfo.h>
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Something to be done on the stack of a task that stands still: see visit().
struct visitor {
  void (*look)(visitor&) = nullptr;  // must neither throw nor switch
  fiber* from = nullptr;
};

// Where a task stands: a visitor that looks at the stack it is on.
struct trace : visitor {
  void* places[100];  // innermost first
  int depth = 0;
  std::size_t stack_used = 0;
  std::size_t stack_size = 0;  // 0: the thread's own, of which we know nothing

  trace() {
#if defined(__GLIBC__)
    ::backtrace(places, 1);  // now: the first call takes much stack
#endif
    look = [](visitor& v) {
      auto& me = static_cast<trace&>(v);
      const stack* const s = current_flow->memory;
      const auto here = static_cast<char*>(__builtin_frame_address(0));
      // A signal handler may have another one.
      if (s != nullptr && s->low < here && here < s->low + s->size) {
        me.stack_used = static_cast<std::size_t>(s->low + s->size - here);
        me.stack_size = s->size;
        if (here - s->low < 4096) return;  // it could overflow for our sake
      }
#if defined(__GLIBC__)
      me.depth = ::backtrace(me.places, 100);
#endif
    };
  }

  // How far down it is on its stack, to the end of the line; then a line for
  // each function, but ours that park and look. Shorter for want of memory.
  std::string text() const noexcept {
    char use[64] = "\n";
    if (stack_size != 0)
      std::snprintf(use, sizeof use, ", on %.1f of %zu KiB of stack\n",
                    static_cast<double>(stack_used) / 1024, stack_size / 1024);
    std::string told;
    try {
      told = use;
#if defined(__GLIBC__)
      const struct freed {
        char** lines;
        ~freed() { std::free(lines); }
      } names{::backtrace_symbols(places, depth)};
      bool ours = true, named = depth == 0;
      for (int i = 0; names.lines != nullptr && i < depth; ++i) {
        std::string line = names.lines[i];  // file(symbol+offset) [address]
        const std::size_t begin = line.find('(') + 1;
        const std::size_t to = line.find('+', begin);
        if (begin != 0 && to != std::string::npos && to != begin)
          line.replace(begin, to - begin,
                       demangle(line.substr(begin, to - begin).c_str()));
        const auto is_of = [&](const char* scope) {
          return line.rfind(scope, begin) == begin;
        };
        named = named || is_of("bao::");
        ours = ours && (is_of("bao::scheduler::") || is_of("bao::trace::"));
        if (!ours) told += "    " + line + '\n';
      }
      if (!named && stack_size == 0)  // the main task's: to say it once will do
        told += "    (link with -rdynamic for names)\n";
#endif
    } catch (const std::bad_alloc&) {
    }
    return told;
  }
};

inline std::string title(const task_block& t) {
  std::string text = "task " + std::to_string(t.id);
  if (!t.name.empty()) text += " \"" + t.name + '"';
  return text;
}

// The same, and where it was spawned.
inline std::string title_and_place(const task_block& t) {
  std::string text = title(t);
  if (t.line != 0)
    text += " (" + std::string(t.file) + ':' + std::to_string(t.line) + ')';
  return text;
}

// The same, without memory: also for signal handlers.
inline void title_and_place(const task_block& t, char (&text)[400]) {
  const int n = std::snprintf(
      text, 150, t.name.empty() ? "task %lu" : "task %lu \"%.120s\"", t.id,
      t.name.c_str());
  if (t.line != 0) std::snprintf(text + n, 250, " (%.230s:%d)", t.file, t.line);
}

inline std::string describe(const task_block& t, nanoseconds now) {
  std::string text = title_and_place(t);
  switch (t.stage) {
    case task_state::created:
      return text + " has not started";
    case task_state::ready:
      return text + " is ready";
    case task_state::running:
      return text + " is running";
    case task_state::done:
      return text + " has ended";
    case task_state::parked:
      break;
  }
  text += " is parked: " + std::string(t.waits_for.what);
  if (t.waits_for.number != -1)
    text += ' ' + std::to_string(t.waits_for.number);
  if (const holding* held = t.waits_for.held; held != nullptr && held->what) {
    text += ' ' + std::string(held->what);
    if (held->task != -1)
      text += ", held by task " + std::to_string(held->task);
  }
  char since[32];
  std::snprintf(since, sizeof since, ", for %.1f s",
                static_cast<double>(now - t.waits_since) * 1e-9);
  return text + since;
}

// Every circle of tasks that wait for each other, a line for each: "task 1
// holds m1, waits for m2; task 2 holds m2, waits for m1".
inline std::string describe_circles(task_block& main_task,
                                    list<task_block>& tasks) {
  struct stop {
    const task_block* task;
    stop* next;  // who has what it waits for, if that can be told
    std::size_t walk;
  };
  std::vector<stop> all;  // by number, as the list is
  all.push_back({&main_task, nullptr, 0});
  for (task_block* t = tasks.first(); t != nullptr; t = tasks.after(*t))
    all.push_back({t, nullptr, 0});
  for (stop& s : all) {
    const holding* const held = s.task->waits_for.held;
    if (s.task->stage != task_state::parked || held == nullptr) continue;
    const auto at = std::lower_bound(
        all.begin(), all.end(), held->task, [](const stop& other, long id) {
          return static_cast<long>(other.task->id) < id;
        });
    if (at != all.end() && static_cast<long>(at->task->id) == held->task)
      s.next = &*at;
  }
  std::string text;
  std::size_t walk = 0;
  for (stop& begin : all) {
    ++walk;  // from task to task, until there is no next or we have been there
    stop* here = &begin;
    for (; here != nullptr && here->walk == 0; here = here->next)
      here->walk = walk;
    if (here == nullptr || here->walk != walk) continue;
    // On this very walk: a circle. The lowest number comes first.
    const stop* last = here;
    for (const stop* s = here->next; s != here; s = s->next)
      if (s->next < last->next) last = s;
    const char* has = last->task->waits_for.held->what;
    const stop* s = last;
    do {
      text += s == last ? "  " : "; ";
      s = s->next;
      text += title(*s->task);
      if (has != nullptr) text += " holds " + std::string(has) + ',';
      const char* const wants = s->task->waits_for.held->what;
      text += " waits for ";
      text += wants != nullptr ? wants : title(*s->next->task);
      has = wants;
    } while (s != last);
    text += '\n';
  }
  return text;
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/scheduler.hpp - who runs next; park and wake
//
// All waiting in bao is one call, park(), and all that ends a wait is one
// other:
//
//     park(until)   stands still until somebody calls wake(task), until the
//                   deadline, or until an interruption arrives, and says which.
//     wake(task)    ends the park, and says whether it did: the first cause
//                   wins, and a waker who is too late goes on to the next.
//
// There is no loop to call. Whoever parks looks for the next task that can run
// and switches to it; when there is none, that same task sleeps in the poller.
// A central loop would cost a second switch each time, and be one more kind of
// flow. So the thread's own flow is a task like the others, the main task.
//
// Tasks run in the order in which they became ready; to yield to the next takes
// about 5 ns. One that neither parks nor yields keeps all others waiting.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Who waits for a descriptor, and in which direction.
struct descriptor_waiter : list_node<descriptor_waiter> {
  task_block* task = nullptr;
  readiness want;
};

// What is known of a descriptor (io.hpp). It stays while anybody refers to it.
struct descriptor_watch {
  list<descriptor_waiter> waiters;
  readiness ready = readable | writable;  // as far as we know: try
  bool owned = false;
  bool closed = false;
  unsigned references = 0;
  // Set when its descriptor goes on another thread, and when its own thread
  // ends: whoever finds it set deletes the watch.
  std::atomic<bool> parted{false};
};

// A question that a helper thread looks up (look_up.hpp).
struct in_flight : list_node<in_flight> {};

// Told what a thread does, by its scheduler: see watchdog.hpp.
class onlooker {
 public:
  virtual void sleeps() noexcept = 0;  // or may, from now on
  virtual void awake() noexcept = 0;
  virtual void ends() noexcept = 0;

 protected:
  ~onlooker() = default;
};

// Of its members only park(), yield(), their twins for C, run_ready(), the
// destructor and, after a kill that was swallowed, meet_interruption() suspend.
class scheduler {
 public:
  explicit scheduler(thread_state& t);
  scheduler(const scheduler&) = delete;
  // Kills what is left, and waits until it has ended.
  ~scheduler();

  task_block& running() { return *running_; }

  // Suspends the running task until somebody wakes it (true) or `until` passes
  // (false; at once, without suspending, if it had when the thread last looked
  // at the clock, which takes too long to be done each time). Throws what
  // interrupts it: killed, timed_out, what was thrown in; in the main task
  // deadlock as well. An interruption that is withdrawn meanwhile wakes it for
  // nothing (true): so park in a loop.
  bool park(deadline until, const wait_reason& why);

  // The same for a caller in C, through whom nothing may be thrown. Returns 0
  // when somebody wakes us, ETIME when `until` passes, and when we are
  // interrupted ECANCELED (a kill, an error) or ETIMEDOUT (a limit): what it is
  // will be thrown by the first park() outside. Until then this one yields, and
  // does not park.
  int park_in_c(deadline until, const wait_reason& why);

  // Makes a parked task ready. False when it is not parked (any more).
  bool wake(task_block& t);

  // Suspends until every other ready task has run. Throws what interrupts us.
  [[gnu::always_inline]] void yield();

  // Counts a call that may not have to wait. True when it is time to yield.
  bool time_to_yield() {
    constexpr int most_busy_calls = 32;
    return ++busy_calls_ > most_busy_calls;
  }

  // Throws what interrupts the running task. Before it throws a kill that was
  // swallowed once more, it lets the others run.
  void meet_interruption() {
    if (may_be_interrupted()) throw_interruption(*running_);
  }

  // Whether the running task is interrupted: 0, or what park_in_c() returns.
  int interrupted_in_c() {
    return may_be_interrupted() ? error_number(due(*running_)) : 0;
  }
  // Suspends until every other ready task has run. Throws nothing.
  void yield_in_c() {
    if (is_in_its_process()) let_others_run();
  }
  // False in a child by vfork(), which is a guest in our memory: nobody else
  // must run there.
  bool is_in_its_process() const { return process_ == ::getpid(); }

  // A new task is ready, now or at a time.
  void add(task_block& t, deadline start);

  // Asks a task to end. One that has not started never will.
  void kill(task_block& t);
  void throw_in(task_block& t, std::exception_ptr error);

  // A limit of some flow has passed: tells the task that is held up in it.
  void limit_passed(scope& limit);
  void limit_gone() { --due_limits_; }

  // Has v.look(v) called on the stack of a task, where it waits; at once if it
  // runs, not at all if it has no stack. Never suspends.
  void visit(task_block& t, visitor& v);

  // Never suspends. The circles of tasks that wait for each other; then what
  // each task does, and where it stands. As much as there is memory for.
  std::string report() noexcept;

  timer_wheels& timers() { return timers_; }
  bao::poller& poller() { return poller_; }
  list<task_block>& tasks() { return tasks_; }  // all but the main task
  nanoseconds turn_began() const { return now_; }
  // A random number, quick and not very good: xorshift (Marsaglia, 2003).
  std::uint32_t draw_lot() {
    lots_ ^= lots_ << 13;
    lots_ ^= lots_ >> 17;
    return lots_ ^= lots_ << 5;
  }
  // For virtual_time: there is another clock, and from now on all that is left
  // to chance follows from this number; 0: as usual.
  void shuffle(std::uint64_t how) {
    now_ = sys->now();
    timers_.restart(now_, how);
    lots_ = static_cast<std::uint32_t>(how) | 1;
    busy_calls_ = 0;
    look_at_ = 0;  // at the next turn
  }
  // Which turn this is: no two have the same number, and none goes on after the
  // thread has looked around. Other threads may ask.
  unsigned long turn() const { return turn_.load(std::memory_order_relaxed); }

  // The watch of a descriptor: what the poller reports is kept there.
  descriptor_watch*& watch_of(int fd);
  std::size_t watches() const { return watches_.size(); }  // up to which number
  // Wakes those who wait for it: the first in line for each direction, or all.
  void wake_first(descriptor_watch& w, readiness directions);
  void wake_all(descriptor_watch& w);

  // For a loop of somebody else's, which has the thread and lets us run:
  //
  //     for (;;) {
  //       std::vector<pollfd> fds;               // and those of the loop
  //       bao::deadline until = s.prepare(fds);
  //       poll(fds.data(), fds.size(), milliseconds(until));
  //       s.run_ready();
  //     }
  //
  // Adds what we wait for to `fds`, and says until when we can wait: not at all
  // when it has passed. Never suspends.
  deadline prepare(std::vector<pollfd>& fds);
  // Takes in what has happened, and suspends until every task that is ready
  // then has run once. Throws what interrupts us.
  void run_ready();

  // A way for other threads to reach this one, to be made here: see remote.hpp.
  class remote remote();

  // In a child process: the running task alone is left. See fork.hpp.
  void start_over();

  // While something may wake us from outside, to wait for it is no deadlock.
  // Counted by those who wait, and by those who may be waited for.
  int descriptor_waits = 0;
  int jobs = 0;
  int remotes = 0;
  // Of descriptor_waits, those of tasks that wake no other when they go on.
  int idle_waits = 0;
  onlooker* seen_by = nullptr;
  // Takes in what other threads have left; `last` when we end.
  void (*take_mail)(scheduler&, bool last) = nullptr;
  struct mailbox* mail = nullptr;
  list<in_flight> questions;

 private:
  friend class spawned_task;

  void stand_still(deadline until, const wait_reason& why);
  void let_others_run();
  task_block* pick();
  fiber* enter(task_block& next);
  void switch_to(task_block& next);
  static void* receive(void* message);
  void make_ready(task_block& t, task_block::cause why);
  static void ring_task(alarm& a, scheduler& s);
  fiber* finish(task_block& t);
  void end(task_block& t);
  void end_unstarted(task_block& t);
  void end_without_stack(task_block& t);

  // What is to be thrown in a task at its park, or would be if it ran.
  struct interruption {
    enum { none, a_kill, an_error, a_limit } what = none;
    scope* which = nullptr;
  };
  interruption due(task_block& t);
  // Nearly never: so what it costs to be sure is not paid each time.
  bool may_be_interrupted() const {
    return running_->kill_wanted || running_->thrown_in != nullptr ||
           due_limits_ != 0;
  }
  static int error_number(interruption i) {
    if (i.what == interruption::none) return 0;
    return i.what == interruption::a_limit ? ETIMEDOUT : ECANCELED;
  }
  bool handles_kill(task_block& t, fiber* leaf);
  void interrupt(task_block& t);
  void throw_interruption(task_block& t);
  // park() called on the flow of a task that has ended: by a callback.
  [[gnu::cold, gnu::noinline]] static bool refuse_to_wait(deadline until) {
    if (until.passed()) return false;
    throw std::logic_error("on_done: a callback must not wait");
  }

  // As nobody else writes it, it takes no locked instruction.
  unsigned long next_turn() {
    const unsigned long next = turn() + 1;
    turn_.store(next, std::memory_order_relaxed);
    return next;
  }
  void look_around(bool may_sleep);
  void choose_next();
  void report_ready(int fd, readiness ready);
  void declare_deadlock();
  [[noreturn]] void leave_child();

  // The path that an uncaught exception would take.
  static fiber* up(fiber* f) {
    if (f->lends) return f->link;
    f = f->killer != nullptr ? f->killer : f->link;
    return f != nullptr && f->leaf != nullptr ? f->leaf : f;
  }

  thread_state& thread_;
  task_block* running_;
  task_block* ready_ = nullptr;  // the first in line
  task_block** ready_end_ = &ready_;
  std::atomic<unsigned long> turn_{1};
  unsigned long look_at_ = 64;  // the poller is asked though tasks are ready
  unsigned turns_ = 64;         // from one such turn to the next
  int busy_calls_ = 0;  // that did not have to wait, since the last switch
  int due_limits_ = 0;
  std::uint32_t lots_ = 2463534242;
  nanoseconds now_ = 0;    // when the outside world was last looked at
  nanoseconds swept_ = 0;  // when stacks last gave memory back
  static constexpr nanoseconds sweep_pause = 50000000;
  timer_wheels timers_;
  list<task_block> tasks_;
  bao::poller poller_;
  std::vector<descriptor_watch*> watches_;
  unsigned long ids_ = 0;
  pid_t process_ = ::getpid();
  bool deadlocked_ = false;
  bool ending_ = false;

  // Unwinds what could not be unwound where it was let go of: on another
  // thread, or for want of a stack. That may have to wait, so it takes a task;
  // and as there must be one when there is no memory left, it is made in
  // advance, at the price of a page of memory.
  struct releasing_task final : task_block {
    bool busy = false;

    void begin(thread_state& t);
    fiber* run() noexcept override;
    void dispose() noexcept override {}
  } releaser_;

  task_block& main_;  // on its own, as handles may outlive us
};

// Whether this thread's tasks have ended. It has no destructor, so whatever is
// destroyed after all tasks may ask.
inline thread_local bool tasks_have_ended = false;

// Called once, before there is a task. Set by patch.hpp, which then warns of a
// patch that has no effect.
inline std::atomic<void (*)()> before_first_task{nullptr};

// Never suspends. This thread's; null when it has none.
inline scheduler* tasks_here() {
  const thread_state* const t = current_thread;
  return t == nullptr ? nullptr : t->tasks;
}

[[gnu::noinline]] inline scheduler& make_scheduler() {
  if (tasks_have_ended || (current_thread != nullptr && current_thread->ended))
    throw std::logic_error("bao: this thread has ended, and its tasks with it");
  if (auto* const tell = before_first_task.exchange(nullptr)) tell();
  static thread_local scheduler made(this_thread_state());
  return made;
}

// Never suspends. This thread's, made when there is none. Throws
// std::logic_error when the thread has ended, std::system_error when there is
// no poller, stack_exhausted.
inline scheduler& this_scheduler() {
  scheduler* const s = tasks_here();
  return s != nullptr ? *s : make_scheduler();
}

inline scheduler::scheduler(thread_state& t)
    : thread_(t), main_(*new task_block(t.main)) {
  try {
    releaser_.begin(t);
  } catch (...) {
    delete &main_;
    throw;
  }
  running_ = &main_;
  t.tasks = this;
  main_.home = &t;
  main_.parked_in = &t.main;
  t.add();
  main_.references = 1;
  main_.stage = task_state::running;
  main_.name = "main";
  main_.ring = ring_task;
  now_ = sys->now();
}

// --- park and wake -----------------------------------------------------------

// Makes a task the running one. Returns the flow in it to continue.
[[gnu::always_inline]] inline fiber* scheduler::enter(task_block& next) {
  running_ = &next;
  current_root = next.flow;
  return next.parked_in;
}

[[gnu::always_inline]] inline void scheduler::switch_to(task_block& next) {
  running_->parked_in = current_flow;
  void* message = switch_fiber(*current_flow, *enter(next)).message;
  // Whoever makes us run sends nothing along: what is sent is a visitor.
  while (__builtin_expect(message != nullptr, 0)) message = receive(message);
}

[[gnu::cold, gnu::noinline]] inline void* scheduler::receive(void* message) {
  auto& v = *static_cast<bao::visitor*>(message);
  v.look(v);
  return switch_fiber(*current_flow, *v.from).message;
}

inline void scheduler::visit(task_block& t, visitor& v) {
  if (&t == running_) return v.look(v);
  if (t.parked_in == nullptr) return;
  v.from = current_flow;
  switch_fiber(*current_flow, *t.parked_in, &v);
}

inline std::string scheduler::report() noexcept {
  std::string text;
  try {
    const auto tell = [&](task_block& t) {
      trace where;
      visit(t, where);
      text += "  " + describe(t, now_) + where.text();
    };
    text = describe_circles(main_, tasks_);
    tell(main_);
    for (task_block* t = tasks_.first(); t != nullptr; t = tasks_.after(*t))
      tell(*t);
    if (releaser_.busy) tell(releaser_);
  } catch (const std::bad_alloc&) {
  }
  return text;
}

// Returns when the running task is made ready and has its turn.
[[gnu::always_inline]] inline void scheduler::stand_still(
    deadline until, const wait_reason& why) {
  task_block& me = *running_;
  if (!until.is_never()) timers_.arm(me, until.at());
  me.stage = task_state::parked;
  me.why_woken = task_block::cause::none;
  me.waits_for = why;
  me.waits_since = now_;
  task_block* const next = pick();
  if (next != &me) switch_to(*next);
}

inline bool scheduler::park(deadline until, const wait_reason& why) {
  task_block& me = *running_;
  if (me.stage != task_state::running) return refuse_to_wait(until);
  meet_interruption();
  if (until.at() <= now_) return false;
  stand_still(until, why);
  if (deadlocked_ && &me == &main_) declare_deadlock();
  me.stage = task_state::running;
  if (me.why_woken == task_block::cause::late) return false;
  if (me.why_woken == task_block::cause::interrupted) meet_interruption();
  return true;
}

inline int scheduler::park_in_c(deadline until, const wait_reason& why) {
  task_block& me = *running_;
  if (const int error = interrupted_in_c()) {
    yield_in_c();
    return error;
  }
  if (until.at() <= now_) return ETIME;
  stand_still(until, why);
  if (deadlocked_ && &me == &main_) declare_deadlock();
  me.stage = task_state::running;
  if (me.why_woken == task_block::cause::late) return ETIME;
  if (me.why_woken == task_block::cause::interrupted) return interrupted_in_c();
  return 0;
}

inline bool scheduler::wake(task_block& t) {
  if (t.stage != task_state::parked) return false;
  make_ready(t, task_block::cause::woken);
  return true;
}

inline void scheduler::yield() {
  if (running_->stage != task_state::running) refuse_to_wait(never);
  meet_interruption();
  let_others_run();
}

[[gnu::always_inline]] inline void scheduler::let_others_run() {
  task_block& me = *running_;
  make_ready(me, task_block::cause::woken);
  task_block* const next = pick();
  if (next != &me) switch_to(*next);
  me.stage = task_state::running;
}

// The first cause wins: its alarm is off from now on.
inline void scheduler::make_ready(task_block& t, task_block::cause why) {
  t.cancel();
  t.stage = task_state::ready;
  t.why_woken = why;
  t.next_ready = nullptr;
  *ready_end_ = &t;
  ready_end_ = &t.next_ready;
}

// The next task to run, taken out of the line. It may be the one that asks.
inline task_block* scheduler::pick() {
  busy_calls_ = 0;
  if (next_turn() >= look_at_) look_around(false);
  for (;;) {
    task_block* const t = ready_;
    if (t == nullptr) {
      look_around(true);
      continue;
    }
    ready_ = t->next_ready;
    if (ready_ == nullptr) {
      ready_end_ = &ready_;
    } else {
      // Its turn comes next. What it will need of its stack is fetched until
      // then, as its block has been since the turn before: where there are
      // thousands, no cache holds either.
      __builtin_prefetch(ready_->top());
      if (task_block* const after = ready_->next_ready) {
        __builtin_prefetch(after);
        __builtin_prefetch(&after->next_ready);
        __builtin_prefetch(&after->waits_since);
      }
    }
    if (t->parked_in != nullptr) return t;
    if (t->life == flow_state::finished) {  // killed before it had its turn
      t->release();
      continue;
    }
    try {
      t->start(thread_, t->stack_size);
      t->parked_in = t;
      return t;
    } catch (...) {
      t->error = std::current_exception();
    }
    end_without_stack(*t);
  }
}

// --- the outside world -------------------------------------------------------

// Takes in what has happened outside: timers that are due, descriptors that are
// ready, what other threads have left. While tasks are ready this is done every
// so many turns, so that it happens every 50 to 200 microseconds: a busy server
// shall meet several events at a time.
inline void scheduler::look_around(bool may_sleep) {
  const nanoseconds before = now_;
  if (may_sleep && main_.stage == task_state::done && tasks_.empty())
    leave_child();
  if (thread_.released.load() != nullptr && !releaser_.busy &&
      wake(releaser_)) {
    releaser_.busy = true;
    may_sleep = false;
  }
  const bool others = remotes != 0 || jobs != 0;
  const bool timed = may_sleep && !timers_.empty();
  if (may_sleep && !timed && !others && descriptor_waits == idle_waits) {
    deadlocked_ = true;
    if (main_.stage == task_state::done) leave_child();
    if (main_.stage != task_state::parked) die("nobody is left to run");
    return make_ready(main_, task_block::cause::interrupted);
  }
  const nanoseconds until = timed ? timers_.next() : 0;
  nanoseconds sleep = may_sleep ? -1 : 0;
  if (timed) sleep = sys->may_sleep(until, jobs != 0);
  if (sleep != 0 && now_ - swept_ > sweep_pause) {
    swept_ = now_;
    thread_.stacks.sweep();
  }
  if (sleep != 0 && seen_by != nullptr) seen_by->sleeps();
  bool anything = false;
  if (may_sleep || others || descriptor_waits != 0) {
    try {
      poller_.wait(sleep, [&](int fd, readiness ready) {
        anything = true;
        report_ready(fd, ready);
      });
    } catch (const std::exception& e) {  // nobody's fault, and no way to go on
      die(e.what());
    }
    if (take_mail != nullptr) take_mail(*this, false);
  }
  if (timed && sleep >= 0 && !anything && ready_ == nullptr)
    sys->slept_until(until);
  now_ = sys->now();
  while (timer* const t = timers_.take(now_)) {
    auto& due = static_cast<alarm&>(*t);
    due.ring(due, *this);
  }
  if (!may_sleep) {
    const nanoseconds passed = now_ - before;
    if (passed < 50000 && turns_ < 512) turns_ *= 2;
    if (passed > 200000)  // at once: the next ones may take seconds
      turns_ = static_cast<unsigned>(turns_ * nanoseconds{200000} / passed) | 1;
  }
  look_at_ = next_turn() + turns_;
  if (seen_by != nullptr) seen_by->awake();
  if (sys->chooses()) choose_next();
}

// In tests: any ready task may be the next one.
[[gnu::cold]] inline void scheduler::choose_next() {
  look_at_ = turn() + 1;
  std::size_t ready = 0;
  for (task_block* t = ready_; t != nullptr; t = t->next_ready) ++ready;
  if (ready == 0) return;
  task_block** link = &ready_;
  for (std::size_t skip = sys->choose(ready); skip > 0; --skip)
    link = &(*link)->next_ready;
  task_block* const chosen = *link;
  *link = chosen->next_ready;
  if (*link == nullptr) ready_end_ = link;
  chosen->next_ready = ready_;
  if (ready_ == nullptr) ready_end_ = &chosen->next_ready;
  ready_ = chosen;
}

inline deadline scheduler::prepare(std::vector<pollfd>& fds) {
  poller_.prepare(fds);
  if (seen_by != nullptr) seen_by->sleeps();
  if (ready_ != nullptr || thread_.released.load() != nullptr) return at_once;
  if (timers_.empty()) return never;
  return clock::time_point(clock::duration(timers_.next()));
}

inline void scheduler::run_ready() {
  look_around(false);
  yield();
}

inline descriptor_watch*& scheduler::watch_of(int fd) {
  return entry_of(watches_, fd);
}

inline void scheduler::wake_first(descriptor_watch& w, readiness directions) {
  for (auto* one = w.waiters.first(); one != nullptr && directions;
       one = w.waiters.after(*one)) {
    if (one->want & directions) wake(*one->task);
    directions = directions.without(one->want);
  }
}

inline void scheduler::wake_all(descriptor_watch& w) {
  for (auto* one = w.waiters.first(); one != nullptr;
       one = w.waiters.after(*one))
    wake(*one->task);
}

// The first in line wakes the next one when it is through; of a descriptor that
// we do not own, all look for themselves.
inline void scheduler::report_ready(int fd, readiness ready) {
  descriptor_watch* const w = watch_of(fd);
  if (w == nullptr) return poller_.forget(fd);
  w->ready = w->ready | ready;
  if (w->owned)
    wake_first(*w, ready);
  else
    wake_all(*w);
}

// --- interruptions -----------------------------------------------------------
//
// What may interrupt a task depends on the path that an exception would take
// from where it waits: the scopes on it, from the inside out. Somewhere on it a
// shield, or a destructor that runs because of an exception, may hold back all
// that was opened outside of it; of the limits that are left, the outermost is
// thrown, as the inner ones will be passed by it anyway.

inline scheduler::interruption scheduler::due(task_block& t) {
  fiber* const leaf = &t == running_ ? current_flow : t.parked_in;
  interruption found;
  for (fiber* f = leaf; f != nullptr; f = up(f)) {
    const unsigned unwinding =
        f == current_flow ? current_exceptions->uncaught : f->handling.uncaught;
    for (scope* s = f->scopes; s != nullptr; s = s->outer_) {
      if (s->unwinding_ < unwinding || s->shields_) return found;
      if (s->passed_) found = {interruption::a_limit, s};
    }
    if (unwinding != 0 || f->cleaning) return found;
  }
  if (t.kill_wanted && (t.kill_is_new || !handles_kill(t, leaf)))
    return {interruption::a_kill};
  if (t.thrown_in != nullptr && found.what == interruption::none)
    return {interruption::an_error};
  return found;
}

// Whether the task is in the handler that has caught its kill. The C++ runtime
// tells this of the running flow only: so what another one is handling is put
// in the place of ours for a moment. A handler within that handler hides it:
// there, the kill is met again.
inline bool scheduler::handles_kill(task_block& t, fiber* leaf) {
  if (t.kill_thrown == nullptr) return false;
  const exceptions_in_flight ours = *current_exceptions;
  bool handles = false;
  for (fiber* f = leaf; f != nullptr && !handles; f = up(f)) {
    if (f != current_flow) *current_exceptions = f->handling;
    handles = std::current_exception() == t.kill_thrown;
    *current_exceptions = ours;
  }
  return handles;
}

inline void scheduler::interrupt(task_block& t) {
  if (t.stage == task_state::parked && due(t).what != interruption::none)
    make_ready(t, task_block::cause::interrupted);
}

inline void scheduler::kill(task_block& t) {
  if (&t == &main_)
    throw std::logic_error("kill: the main task cannot be killed");
  if (t.stage == task_state::done) return;
  t.kill_wanted = t.kill_is_new = true;
  if (t.flow->life != flow_state::created) return interrupt(t);
  t.ended_by_kill = true;
  end_unstarted(t);
}

inline void scheduler::throw_in(task_block& t, std::exception_ptr error) {
  if (error == nullptr) throw std::invalid_argument("throw_in: no exception");
  if (t.stage == task_state::done) return;
  if (t.flow->life == flow_state::created) {
    t.error = std::move(error);
    return end_unstarted(t);
  }
  t.thrown_in = std::move(error);
  interrupt(t);
}

inline void scheduler::limit_passed(scope& limit) {
  // The task that is held up in it, if any: a generator that nobody has resumed
  // is on nobody's path.
  fiber* f = limit.flow_;
  task_block* held_up = nullptr;
  while (!(f->lends && f->leaf != nullptr)) {
    fiber* const next = f->lends || f->killer == nullptr ? f->link : f->killer;
    if (next == nullptr) {
      held_up = static_cast<task_block*>(f->owner);
      break;
    }
    f = next;
  }
  // It was dropped where it stood, by start_over(): nobody will take it back.
  if (held_up != nullptr && held_up->stage == task_state::done) {
    limit.passed_ = false;
    return;
  }
  ++due_limits_;
  if (held_up != nullptr) interrupt(*held_up);
}

[[gnu::noinline]] inline void scheduler::throw_interruption(task_block& t) {
  const interruption i = due(t);
  switch (i.what) {
    case interruption::none:
      return;
    case interruption::a_limit:
      i.which->passed_ = false;
      --due_limits_;
      throw timed_out(i.which);
    case interruption::an_error:
      std::rethrow_exception(std::exchange(t.thrown_in, nullptr));
    case interruption::a_kill:
      break;
  }
  if (!std::exchange(t.kill_is_new, false)) {
    // It has been swallowed. The others go first, so that a loop which does
    // nothing but swallow cannot keep the thread.
    if (++t.kill_refusals == 1)
      std::fprintf(stderr, "bao: %s swallowed bao::killed, and gets it again\n",
                   title_and_place(t).c_str());
    if (ending_ && t.kill_refusals > 16)
      die(title_and_place(t).c_str(), " does not end, though its thread does");
    let_others_run();
  }
  t.kill_thrown = std::make_exception_ptr(killed(t.flow));
  std::rethrow_exception(t.kill_thrown);
}

// Nothing that could wake anybody is left. The error is thrown in the main
// task, as an error there is the program's own. Where it cannot be (in a
// shield, in a destructor that runs because of an exception, after main()) the
// program ends with the same text.
inline void scheduler::declare_deadlock() {
  deadlocked_ = false;
  main_.stage = task_state::parked;  // as it was
  std::string text = "deadlock";
  try {
    text += ": nothing can wake any of these tasks\n" + report();
  } catch (const std::bad_alloc&) {
  }
  main_.stage = task_state::running;
  try {
    throw deadlock(text);
  } catch (...) {  // for want of memory, it may be another
    main_.thrown_in = std::current_exception();
  }
  if (ending_ || due(main_).what == interruption::none) die(text.c_str());
}

// --- beginning and ending ----------------------------------------------------

inline void scheduler::add(task_block& t, deadline start) {
  t.id = ++ids_;
  t.home = &thread_;
  thread_.add();
  t.root = &t;
  ++t.references;  // ours, until it has ended
  tasks_.push_back(t);
  t.ring = ring_task;
  if (start.passed())
    make_ready(t, task_block::cause::woken);
  else if (!start.is_never())
    timers_.arm(t, start.at());
  if (ending_) wake(main_);
}

// A task's time is up: to begin, or to wait no longer.
inline void scheduler::ring_task(alarm& a, scheduler& s) {
  s.make_ready(static_cast<task_block&>(a), task_block::cause::late);
}

// Called on the stack of a task whose body has ended. Returns who goes on.
inline fiber* scheduler::finish(task_block& t) {
  end(t);
  t.life = flow_state::finished;
  t.release();
  current_flow = &thread_.main;  // the task may be gone
  running_ = &main_;
  return enter(*pick());
}

inline void scheduler::end(task_block& t) {
  t.stage = task_state::done;
  t.leave();
  t.kill_thrown = t.thrown_in = nullptr;
  while (!t.watchers.empty()) {
    completion& c = t.watchers.front();
    c.leave();
    c.ended(c, t);
  }
  if (ending_ && tasks_.empty()) wake(main_);
}

inline void scheduler::end_unstarted(task_block& t) {
  // The one that stands in line for its first turn stays there until pick()
  // meets it: to search the line would be slow.
  if (t.stage == task_state::ready) ++t.references;
  t.cancel();
  t.unwind();
  end(t);
  t.release();
}

// Called by whoever looks for the next task, on a stack whose own flow may be
// gone: no place to unwind what this one was given, a generator, say, whose end
// may have to wait. So that is left for later. Callbacks that are told of its
// end find themselves on its flow.
[[gnu::cold]] inline void scheduler::end_without_stack(task_block& t) {
  fiber* const flow = current_flow;
  fiber* const root = current_root;
  current_flow = current_root = &t;
  t.life = flow_state::running;
  end(t);
  t.life = flow_state::created;
  current_flow = flow;
  current_root = root;
  t.orphan = true;
  t.release_later();
}

inline void scheduler::releasing_task::begin(thread_state& t) {
  start(t);
  references = 1;
  root = this;
  parked_in = this;
  stage = task_state::parked;
  cleaning = true;  // which nothing interrupts
  name = "releasing";
  ring = ring_task;
}

inline fiber* scheduler::releasing_task::run() noexcept {
  scheduler& s = *home->tasks;
  id = ++s.ids_;  // what it destroys may hold locks
  stage = task_state::running;
  while (busy) {
    home->take_back();
    drop_locals();
    busy = false;
    if (s.ending_) s.wake(s.main_);
    s.park(never, {"nothing to release"});
  }
  return s.finish(*this);
}

// The others do not exist in the child: their threads of control have not come
// along, and what they own is the parent's to destroy. So they are dropped as
// they stand, and count as killed.
inline void scheduler::start_over() {
  process_ = ::getpid();
  ready_ = nullptr;
  ready_end_ = &ready_;
  const auto drop = [](task_block& t) {
    t.cancel();
    t.leave();
    t.stage = task_state::done;
    t.ended_by_kill = true;
  };
  task_block* const me = running_;
  for (task_block* t = tasks_.first(); t != nullptr;) {
    task_block& one = *t;
    t = tasks_.after(one);
    if (&one != me) drop(one);
  }
  if (&main_ != me) drop(main_);
  for (descriptor_watch*& w : watches_) {
    if (w == nullptr) continue;
    w->waiters.clear();
    if (!w->owned) w = nullptr;
  }
  descriptor_waits = idle_waits = jobs = 0;
  questions.clear();
  seen_by = nullptr;
  if (me != &releaser_ && std::exchange(releaser_.busy, false)) drop(releaser_);
  using type = bao::poller;
  thread_.tasks = nullptr;  // a patched close() must not tell what is going
  poller_.~type();          // closes our duplicates; the parent's are its own
  new (&poller_) type;
  thread_.tasks = this;
}

// The task that forked has ended, and nobody else is here: so the child does,
// as a process does when its last thread has.
inline void scheduler::leave_child() {
  if (!tasks_.empty())
    die("deadlock in a child process: nothing can wake any of these tasks\n",
        report().c_str());
  std::exit(0);
}

inline scheduler::~scheduler() {
  // Unless exit() was called in a task: then nothing is unwound, as we stand
  // on one of the stacks, and the main task will not go on.
  if (running_ == &main_) {
    ending_ = true;
    std::size_t left = 0;
    for (task_block* t = tasks_.first(); t != nullptr; t = tasks_.after(*t))
      ++left;
    for (; left > 0 && !tasks_.empty(); --left) {
      task_block& t = tasks_.front();  // each once, whatever it was told before
      tasks_.push_back(t);
      kill(t);
    }
    // Then those that they spawn while they end.
    while (thread_.take_back(), !tasks_.empty() || releaser_.busy) {
      task_block* t = tasks_.first();
      while (t != nullptr && t->kill_wanted) t = tasks_.after(*t);
      if (t != nullptr)
        kill(*t);
      else
        park(never, {"waiting for the tasks that are left"});
    }
    main_.drop_locals();
    if (wake(releaser_)) let_others_run();  // it ends
    while (ready_ != nullptr)               // killed before their turn
      std::exchange(ready_, ready_->next_ready)->release();
  }
  if (seen_by != nullptr) seen_by->ends();
  // Before helpers learn that we have ended: then they take none out.
  questions.clear();
  if (take_mail != nullptr) take_mail(*this, true);
  for (descriptor_watch* w : watches_)
    if (w != nullptr && w->parted.exchange(true)) delete w;
  thread_.tasks = nullptr;
  thread_.ended = tasks_have_ended = true;
  thread_.main.owner = nullptr;
  main_.release();
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/wait_queue.hpp - a line of parked tasks
//
// Locks, channels and whatever else tasks wait for are a few words of state and
// a line of those who wait. The line is served from its front:
//
//     front                                    back
//     [ task 3 ]--[ task 7 ]--[ task 4 ]     <- park: on the stack of the task
//         |
//         '-> wake: it is given what it waits for, then and there
//
// What is given belongs to whoever is woken, at once, even before it runs: so
// whoever comes later cannot snatch it. Whoever is late or killed just leaves,
// and is passed over: nothing is given to it that would be lost.
//
// A line belongs to the thread that used it first. It allocates nothing.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A task's place in a line. Lies on the stack of the task.
struct waiter : list_node<waiter> {
  explicit waiter(task_block& t, void* brings = nullptr)
      : task(&t), offer(brings) {}
  bool can_be_woken() const { return task->stage == task_state::parked; }

  task_block* const task;
  void* offer;         // what it brings: a value to send, room for one
  bool woken = false;  // and has been given what it waits for
};

class wait_queue {
 public:
  wait_queue() = default;
  // Those who still wait will not be woken any more.
  ~wait_queue() {
    while (waiter* const w = line_.first()) {
      w->leave();
      w->task->waits_for = {"waiting for something that is gone"};
    }
  }

  // Whoever calls is on the right thread, or gets wrong_thread. Never suspends.
  scheduler& enter(const char* call) {
    scheduler& s = this_scheduler();
    if (home_ != current_thread->number) settle(call);
    return s;
  }

  // Suspends in line until `ready()` holds or somebody wakes us (true), or
  // `until` passes (false). Throws what park() does. ready() is asked at once
  // and after each wake-up; if it holds, it has taken what there is.
  template <class Ready>
  bool wait(deadline until, wait_reason why, Ready ready,
            void* offer = nullptr) {
    scheduler& s = enter(why.what);
    if (ready()) return true;
    waiter me(s.running(), offer);
    return wait_as(me, until, why, ready);
  }
  // The same, for a waiter that wants to know how it left the line: until it is
  // woken it stays there.
  template <class Ready>
  bool wait_as(waiter& me, deadline until, wait_reason why, Ready ready) {
    scheduler& s = enter(why.what);
    line_.push_back(me);
    do {
      if (!s.park(until, why)) return me.woken;
    } while (!me.woken && !(me.in_list() && ready()));
    return true;
  }

  // The first that can be woken, or null. One that cannot is late or
  // interrupted, and will leave.
  waiter* first() {
    waiter* w = line_.first();
    while (w != nullptr && !w->can_be_woken()) w = line_.after(*w);
    return w;
  }
  void push_back(waiter& w) { line_.push_back(w); }

  // Wakes one of those, or all. Never suspends.
  static void wake(waiter& w) {
    w.leave();
    w.woken = true;
    w.task->home->tasks->wake(*w.task);
  }
  bool wake_one() {
    waiter* const w = first();
    if (w != nullptr) wake(*w);
    return w != nullptr;
  }
  // All: also those that are late or interrupted, since nothing is lost when
  // everybody gets it; but not one that another line has woken.
  void wake_all() {
    for (waiter* w = line_.first(); w != nullptr;) {
      waiter& one = *w;
      w = line_.after(one);
      if (one.task->why_woken != task_block::cause::woken) wake(one);
    }
  }

 private:
  [[gnu::cold, gnu::noinline]] void settle(const char* call) {
    if (home_ != 0)
      throw wrong_thread(std::string(call) + ": this is thread " +
                         std::to_string(current_thread->number) +
                         ", and it belongs to thread " + std::to_string(home_));
    home_ = current_thread->number;
  }

  list<waiter> line_;
  unsigned home_ = 0;  // the number of its thread
};

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/spawn.hpp - spawn, join, get, kill
//
//     auto eater = bao::spawn(eat, "harry");  // a task: runs when we wait
//     eater.join();                           // until it has ended
//     int eaten = eater.get();                // what it returned, or its error
//
// A task handle is cheap, can be copied, and does not own: the task runs on
// when the last one goes. When main() returns, the tasks that are left are
// killed. To spawn and join one takes about 60 ns on a warm stack.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// The task that runs a callable on a stack of its own.
class spawned_task : public task_block {
 public:
  // Destroys the callable and its arguments, which were not used.
  void unwind() noexcept override {
    orphan = false;
    if (life != flow_state::created) return;
    life = flow_state::finished;
    drop_body();
  }

 protected:
  [[gnu::noinline]] ~spawned_task() override {}
  virtual void call_body() = 0;
  virtual void drop_body() noexcept = 0;

 private:
  fiber* run() noexcept override {
    scheduler& s = *home->tasks;
    stage = task_state::running;
    try {
      call_body();
    } catch (const killed& k) {
      ended_by_kill = k.is_for(flow);
      if (!ended_by_kill) error = std::current_exception();
    } catch (...) {
      error = what_ended("task");
    }
    cleaning = true;
    drop_body();
    drop_locals();
    return s.finish(*this);
  }

  void dispose() noexcept override {
    if (error != nullptr && !std::exchange(asked, true)) {
      char whose[400];  // a string might find no memory
      title_and_place(*this, whose);
      ++references;  // who is told may ask for self()
      tell_unhandled(whose, error);
      return give_up(1);
    }
    drop_locals();  // those of whoever was told of its end
    delete this;
  }
};

template <class R>
class task_frame : public spawned_task {
 public:
  using kept = std::conditional_t<
      std::is_void_v<R>, nothing,
      std::conditional_t<std::is_reference_v<R>,
                         std::add_pointer_t<std::remove_reference_t<R>>, R>>;
  std::optional<kept> result;
};

template <class R, class F, class... Args>
class task_call final : public frame_with_body<task_frame<R>, F, Args...> {
 public:
  using frame_with_body<task_frame<R>, F, Args...>::frame_with_body;

 private:
  void call_body() override {
    if constexpr (std::is_void_v<R>)
      this->body(), this->result.emplace();
    else if constexpr (std::is_reference_v<R>)
      this->result = std::addressof(this->body());
    else
      this->result.emplace(this->body());
  }
  // Destroys the result too if nobody can ask for it: its destructor may have
  // to wait as well.
  void drop_body() noexcept override {
    frame_with_body<task_frame<R>, F, Args...>::drop_body();
    if constexpr (!std::is_trivially_destructible_v<
                      typename task_frame<R>::kept>)
      if (this->references == 1 && this->watchers.empty()) this->result.reset();
  }
};

// Where a task was spawned: filled in by the compiler at the call.
struct place {
  const char* file;
  int line;

  static constexpr place here(const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
    return {file, line};
  }
  static constexpr place nowhere() { return {"", 0}; }
};

// What a task is given besides its callable:
//     bao::spawn(bao::task_options().name("crawler").stack_size(64 * 1024), f);
// None of its members suspends.
class task_options {
 public:
  explicit task_options(place at = place::here()) : at_(at) {}

  // For reports; "" unless set.
  task_options& name(std::string name) {
    name_ = std::move(name);
    return *this;
  }
  // In bytes, rounded up to a power of two, 16 KiB to 1 GiB.
  task_options& stack_size(std::size_t bytes) {
    stack_size_ = bytes;
    return *this;
  }

  void apply_to(task_block& t) {
    if (!name_.empty()) t.name = std::move(name_);
    t.stack_size = stack_size_;
    t.file = at_.file;
    t.line = at_.line;
  }

 private:
  place at_;
  std::string name_;
  std::size_t stack_size_ = default_stack_size;
};

// Wakes a task when another one has ended.
struct joiner : completion {
  task_block* waits = nullptr;
  joiner() {
    ended = [](completion& c, task_block& t) {
      t.home->tasks->wake(*static_cast<joiner&>(c).waits);
    };
  }
};

// A handle of a task that returns R. A task<R> converts to a task<>. Of its
// members only join(), get() and kill() suspend. All throw wrong_thread on
// another thread than the task's own; only to destroy a handle is safe
// anywhere. Those of an empty handle throw std::logic_error.
template <class R = void>
class task {
 public:
  task() = default;
  task(const task& other) : task(other.block_) {}
  task(task&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  template <class S,
            class = std::enable_if_t<std::is_void_v<R> && !std::is_void_v<S>>>
  task(const task<S>& other) : task(other.block_) {}
  task& operator=(task other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~task() {
    if (block_ != nullptr) block_->release();
  }

  // Suspends until the task has ended (true) or `until` passes (false). Throws
  // what interrupts us, and deadlock when it is ourselves; never its error.
  bool join(deadline until = never) const {
    task_block& b = checked("join");
    scheduler& s = this_scheduler();
    if (b.stage == task_state::done) return true;
    task_block& me = s.running();
    if (&b == &me)
      throw deadlock("join: " + describe(b, s.turn_began()) +
                     " and would wait for itself");
    const task keep(&b);  // our handle may go meanwhile
    joiner j;
    j.waits = &me;
    b.watchers.push_back(j);
    const holding its_end{nullptr, static_cast<long>(b.id)};
    while (b.stage != task_state::done)
      if (!s.park(until, {"joining task", its_end.task, &its_end}))
        return b.stage == task_state::done;
    return true;
  }

  // Suspends like join(). Returns what the task returned, which stays in it;
  // throws the error it ended with, each time, and task_killed when it was
  // killed. From a temporary handle the result is moved out.
  decltype(auto) get() const& { return value(); }
  R get() && {
    if constexpr (std::is_void_v<R> || std::is_reference_v<R>)
      return value();
    else
      return std::move(value());
  }

  bool done() const { return state() == task_state::done; }
  // It has returned, without error or kill.
  bool ok() const { return done() && error() == nullptr && !killed(); }
  bool killed() const { return checked("killed").ended_by_kill; }
  // What ended it; null if nothing did.
  std::exception_ptr error() const {
    checked("error").asked = true;
    return block_->error;
  }
  task_state state() const { return checked("state").stage; }
  unsigned long id() const { return checked("id").id; }
  const std::string& name() const { return checked("name").name; }
  void set_name(std::string name) const {
    checked("set_name").name = std::move(name);
  }

  // Throws bao::killed in the task, at the place where it waits, and suspends
  // until it has ended (true) or `until` passes (false); 0s does not wait. One
  // that has not started never runs, one that kills itself is killed here and
  // now. Throws what interrupts us, and std::logic_error for the main task.
  bool kill(deadline until = never) const {
    const task keep(&checked("kill"));  // our handle may go meanwhile
    task_block& b = *keep.block_;
    scheduler& s = this_scheduler();
    s.kill(b);
    if (&b != &s.running()) return keep.join(until);
    s.yield();
    return false;  // inside a shield
  }

  // Throws `error` in the task, once: where it waits, or at its next wait,
  // unless another one takes its place before that. One that has not started
  // ends with it.
  void throw_in(std::exception_ptr error) const {
    task_block& b = checked("throw_in");
    this_scheduler().throw_in(b, std::move(error));
  }
  template <class E,
            class = std::enable_if_t<!std::is_same_v<E, std::exception_ptr>>>
  void throw_in(E error) const {
    throw_in(std::make_exception_ptr(std::move(error)));
  }

  // Has f(task) called when the task has ended, at once if it has. f must not
  // suspend: to wait while the task itself runs its end is a std::logic_error.
  // What it throws goes to on_unhandled(). Throws std::logic_error for the main
  // task.
  template <class F>
  void on_done(F f) const {
    task_block& b = checked("on_done");
    if (b.flow != &b)
      throw std::logic_error("on_done: the main task ends with its thread");
    struct callback final : completion {
      explicit callback(F g) : call(std::move(g)) {}
      F call;
    };
    auto made = std::make_unique<callback>(std::move(f));
    made->ended = [](completion& c, task_block& ended) {
      std::unique_ptr<callback> mine(static_cast<callback*>(&c));
      try {
        mine->call(task(&ended));
      } catch (...) {
        tell_unhandled("on_done", what_ended("callback of on_done"));
      }
    };
    b.asked = true;
    if (b.stage == task_state::done) {
      completion& c = *made.release();
      return c.ended(c, b);
    }
    b.watchers.push_back(*made.release());
  }

  explicit operator bool() const { return block_ != nullptr; }
  friend bool operator==(const task& a, const task& b) {
    return a.block_ == b.block_;
  }
  friend bool operator!=(const task& a, const task& b) { return !(a == b); }

  // For the chapters that follow.
  explicit task(task_block* block) : block_(block) {
    if (block_ == nullptr) return;
    if (block_->home != current_thread) throw_wrong_thread("task", *block_);
    ++block_->references;
  }
  task_block& checked(const char* call) const {
    if (block_ == nullptr)
      throw std::logic_error(std::string(call) + ": there is no task here");
    if (block_->home != current_thread) throw_wrong_thread(call, *block_);
    return *block_;
  }

 private:
  template <class>
  friend class task;

  std::add_lvalue_reference_t<R> value() const {
    const task keep(&checked("get"));
    keep.join();
    task_block& b = *keep.block_;
    b.asked = true;
    if (b.error != nullptr) std::rethrow_exception(b.error);
    if (b.ended_by_kill)
      throw task_killed("get: " + describe(b, 0) + ", and was killed");
    if constexpr (std::is_reference_v<R>)
      return **static_cast<task_frame<R>&>(b).result;
    else if constexpr (!std::is_void_v<R>)
      return *static_cast<task_frame<R>&>(b).result;
  }

  task_block* block_ = nullptr;
};

template <class F, class... Args>
using spawned_result = handed_on<
    typename call_result<std::decay_t<F>, std::decay_t<Args>...>::type>;
template <class F>  // the callable, as options have an overload of their own
using not_options =
    std::enable_if_t<!std::is_same_v<std::decay_t<F>, task_options>>;

template <class F, class... Args>
auto spawn_at(task_options&& options, deadline start, F&& f, Args&&... args) {
  using R = spawned_result<F, Args...>;
  scheduler& s = this_scheduler();
  task_block* const made =
      new task_call<R, std::decay_t<F>, std::decay_t<Args>...>(
          std::forward<F>(f), std::forward<Args>(args)...);
  options.apply_to(*made);
  s.add(*made, start);
  return task<R>(made);
}

// Never suspends. Runs f(args...) as a task, later: when this one waits. All
// are moved or copied into the task, and destroyed when it ends. A task for
// which there is no stack ends with stack_exhausted, and they go soon after.
//
// The overloads are one function: up to two arguments, the compiler fills in
// where the call stands, for reports. With more they leave the place out,
// unless task_options are given; spawn_later() always does.
template <class F, class... Args>
auto spawn(task_options options, F&& f, Args&&... args) {
  return spawn_at(std::move(options), at_once, std::forward<F>(f),
                  std::forward<Args>(args)...);
}
template <class F, class = not_options<F>>
auto spawn(F&& f, place at = place::here()) {
  return spawn(task_options(at), std::forward<F>(f));
}
template <class F, class A, class = not_options<F>>
auto spawn(F&& f, A&& a, place at = place::here()) {
  return spawn(task_options(at), std::forward<F>(f), std::forward<A>(a));
}
template <class F, class A, class B, class = not_options<F>>
auto spawn(F&& f, A&& a, B&& b, place at = place::here()) {
  return spawn(task_options(at), std::forward<F>(f), std::forward<A>(a),
               std::forward<B>(b));
}
template <class F, class A, class B, class C, class... More,
          class = not_options<F>>
auto spawn(F&& f, A&& a, B&& b, C&& c, More&&... more) {
  return spawn(task_options(place::nowhere()), std::forward<F>(f),
               std::forward<A>(a), std::forward<B>(b), std::forward<C>(c),
               std::forward<More>(more)...);
}

// The same, not before `start`: a duration from now, or a time.
template <class F, class... Args>
auto spawn_later(deadline start, F&& f, Args&&... args) {
  return spawn_at(task_options(place::nowhere()), start, std::forward<F>(f),
                  std::forward<Args>(args)...);
}

// Never suspends. The task that runs.
inline task<> self() { return task<>(&this_scheduler().running()); }

// Suspends until all other ready tasks have run; returns at once when there are
// none. Throws what interrupts us.
[[gnu::always_inline]] inline void yield() { this_scheduler().yield(); }

// Suspends until `until`: a duration from now, or a time. Never early; when it
// has passed, just yields. Throws what interrupts us.
inline void sleep(deadline until) {
  scheduler& s = this_scheduler();
  const unsigned long turn = s.turn();
  while (s.park(until, {"sleeping"})) {
  }
  if (s.turn() == turn) s.yield();  // it had passed before
}

// --- several tasks at once ---------------------------------------------------

// Each of these suspends, `until` at the latest where it takes one, and throws
// as join() does. A task may be named twice.

// Until all have ended (true) or it is late (false).
template <class Range, class = decltype(std::begin(std::declval<Range&>()))>
bool join_all(const Range& tasks, deadline until = never) {
  for (const auto& t : tasks)
    if (!t.join(until)) return false;
  return true;
}
template <class... R>
void join_all(const task<R>&... tasks) {
  (tasks.join(), ...);
}

// Until no other task is left, those included that are spawned meanwhile, but
// for those that only serve others, as for on_signal() and report_on().
inline void join_all() {
  scheduler& s = this_scheduler();
  for (task_block* t = s.tasks().first(); t != nullptr;) {
    if (t == &s.running() || t->background) {
      t = s.tasks().after(*t);
    } else {
      task<>(t).join();
      t = s.tasks().first();
    }
  }
}

// The tasks of a range, in the order in which they end, each as it does: it is
// the generator that suspends. The range may go away meanwhile.
template <class Range>
auto as_completed(const Range& tasks) {
  using handle = std::decay_t<decltype(*std::begin(tasks))>;
  return generator<handle>(
      [](yielder<handle, void>& yield, std::vector<handle> all) {
        struct {
          std::vector<std::size_t> ended;
          wait_queue news;
        } board;
        struct watcher : completion {
          std::size_t index;
          decltype(board)* notes;
        };
        std::vector<watcher> watchers(all.size());
        board.ended.reserve(all.size());  // to be told is no time to fail
        for (std::size_t i = 0; i < all.size(); ++i) {
          task_block& b = all[i].checked("as_completed");
          watchers[i].index = i;
          watchers[i].notes = &board;
          watchers[i].ended = [](completion& c, task_block&) {
            auto& w = static_cast<watcher&>(c);
            w.notes->ended.push_back(w.index);
            w.notes->news.wake_one();
          };
          if (b.stage == task_state::done)
            board.ended.push_back(i);
          else
            b.watchers.push_back(watchers[i]);
        }
        for (std::size_t next = 0; next < all.size(); ++next) {
          board.news.wait(never, {"joining any of several tasks"},
                          [&] { return next != board.ended.size(); });
          yield(std::move(all[board.ended[next]]));
        }
      },
      std::vector<handle>(std::begin(tasks), std::end(tasks)));
}

// Until the first of them ends: its index. Empty when late, or for no tasks.
template <class Range>
std::optional<std::size_t> join_any(const Range& tasks,
                                    deadline until = never) {
  using handle = std::decay_t<decltype(*std::begin(tasks))>;
  scheduler& s = this_scheduler();
  std::vector<handle> all(std::begin(tasks), std::end(tasks));
  std::vector<joiner> watchers(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    watchers[i].waits = &s.running();
    task_block& b = all[i].checked("join_any");
    if (b.stage == task_state::done) return i;
    b.watchers.push_back(watchers[i]);
  }
  if (all.empty()) return std::nullopt;
  while (s.park(until, {"joining any of several tasks"}))
    for (std::size_t i = 0; i < all.size(); ++i)
      if (all[i].done()) return i;
  return std::nullopt;
}

// Kills all, and waits until all have ended (true) or it is late (false).
template <class Range>
bool kill_all(const Range& tasks, deadline until = never) {
  scheduler& s = this_scheduler();
  for (const auto& t : tasks) s.kill(t.checked("kill_all"));
  s.meet_interruption();  // we may be one of them
  return join_all(tasks, until);
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/timeout.hpp - a limit on a block of code
//
//     try {
//       bao::timeout limit(5s);             // on all that this block waits for
//       auto page = fetch(url);
//     } catch (const bao::timed_out&) { ... }
//
// A limit belongs to the flow that opens it. It strikes whatever that flow
// waits for, in however deep a call, and nobody else: not the consumer of a
// generator that has opened it and yields.
//
// The price is a timer to arm and take back, some tens of ns. A block that
// computes and never waits is not stopped.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// None of its members suspends. Throws bao::timed_out where the flow waits,
// once, when `limit` has passed: at its next wait if it does not wait then. It
// must not outlive the flow that made it.
class timeout : public scope, private alarm {
 public:
  [[nodiscard]] explicit timeout(deadline limit) : scope(false) {
    ring = [](alarm& a, scheduler& s) {
      auto& self = static_cast<timeout&>(a);
      self.passed_ = self.expired_ = true;
      s.limit_passed(self);
    };
    start(limit);
  }
  ~timeout() { cancel(); }

  // Begins anew: until `limit`, a duration from now or a time.
  void start(deadline limit) {
    cancel();
    expired_ = false;
    scheduler& s = this_scheduler();
    if (limit.passed())
      ring(*this, s);
    else if (!limit.is_never())
      s.timers().arm(*this, limit.at());
  }
  // Nothing will be thrown any more.
  void cancel() {
    alarm::cancel();
    // In a generator that outlives the scheduler there is nobody to tell.
    if (std::exchange(passed_, false) && tasks_here() != nullptr)
      tasks_here()->limit_gone();
  }
  // It may still be thrown.
  bool pending() const { return armed() || passed_; }
  // It has passed, whether or not it was thrown.
  bool expired() const { return expired_; }

 private:
  bool expired_ = false;
};

// Suspends as f does. Returns the value that f() returns, or an empty optional
// when it took longer than `limit`; true or false where f returns nothing. A
// patched C library that is cut off returns, too: with an error of its own.
template <class F>
auto with_timeout(deadline limit, F&& f) {
  using R = std::decay_t<std::invoke_result_t<F&>>;
  using outcome = std::conditional_t<std::is_void_v<R>, bool, std::optional<R>>;
  timeout t(limit);
  try {
    if constexpr (std::is_void_v<R>) {
      f();
      return true;
    } else {
      return outcome(f());
    }
  } catch (const timed_out& e) {
    if (!e.is_for(t)) throw;
    return outcome();
  }
}

// While one lives, no kill, no error thrown in and no limit that was opened
// before it strikes the flow: for what has to be cleaned up in peace. Limits
// opened inside work. Neither to make nor to destroy one suspends.
class shield : public scope {
 public:
  [[nodiscard]] shield() : scope(true) {}
};

// Calls f() at the end of a block, however that is left. It must not throw.
template <class F>
class at_end {
 public:
  [[nodiscard]] explicit at_end(F f) : call_(std::move(f)) {}
  at_end(const at_end&) = delete;
  ~at_end() { call_(); }

 private:
  F call_;
};

}  // namespace BAO_ABI
}  // namespace bao

// IV. Cooperating: what tasks do for each other

// =============================================================================
// bao/sync.hpp - events, semaphores, locks
//
// Tasks of one thread need no lock for a few lines that do not wait: nobody
// else runs. What they need one for is to keep something to themselves while
// they wait, and what they need most is to wait for each other. The names are
// the standard's, and so are the rules, std::lock_guard and the like included:
//
//     bao::mutex door("the door");           bao::event ready;
//     std::lock_guard hold(door);            ready.wait(5s);
//
// All are fair: whoever releases hands over to the first in line, and has to
// queue to take again. Whoever is late or killed takes nothing along. A lock
// knows who has it: it is an error to lock what one holds already, or to unlock
// what somebody else holds, and reports name the holder.
//
// Calls named wait, lock, acquire and get, and those that end in _for or
// _until, suspend while they have to wait, `until` at the latest. When they are
// late they return false, but get() throws. All throw what interrupts us. The
// other calls never suspend. To take and release what is free costs some ns.
//
// Each object belongs to the thread that used it first; others get
// wrong_thread.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A door that starts closed. Tasks wait at it; set() lets them all through.
class event {
 public:
  // Those who wait now pass, even if it is cleared before they run.
  void set() {
    waiters_.enter("event: set");
    set_ = true;
    waiters_.wake_all();
  }
  void clear() {
    waiters_.enter("event: clear");
    set_ = false;
  }
  bool is_set() const { return set_; }
  bool wait(deadline until = never) {
    return waiters_.wait(until, {"waiting for an event"},
                         [this] { return set_; });
  }

  wait_queue& waiters() { return waiters_; }  // for the chapters that follow

 private:
  bool set_ = false;
  wait_queue waiters_;
};

// A number of units, which are taken one by one, and given back.
class semaphore {
 public:
  // Throws std::invalid_argument unless 0 <= units <= most.
  explicit semaphore(
      std::ptrdiff_t units,
      std::ptrdiff_t most = std::numeric_limits<std::ptrdiff_t>::max())
      : units_(units), most_(most) {
    if (units < 0 || units > most)
      throw std::invalid_argument("semaphore: " + std::to_string(units) +
                                  " of " + std::to_string(most) + " units");
  }

  bool acquire(deadline until = never) {
    return waiters_.wait(until, {"acquiring a semaphore"},
                         [this] { return take(); });
  }
  bool try_acquire() {
    waiters_.enter("try_acquire");
    return take();
  }
  // Throws std::logic_error when there would be more than `most`.
  void release(std::ptrdiff_t units = 1) {
    waiters_.enter("release");
    if (units < 0 || units > most_ - units_)
      throw std::logic_error("release: " + std::to_string(units) +
                             " units beside " + std::to_string(units_) +
                             " are more than " + std::to_string(most_));
    while (units > 0 && waiters_.wake_one()) --units;
    units_ += units;
  }
  std::ptrdiff_t available() const { return units_; }

 private:
  bool take() {
    if (units_ == 0) return false;
    --units_;
    return true;
  }

  std::ptrdiff_t units_, most_;
  wait_queue waiters_;
};

// Who has a lock, by its number, and who waits for it.
class lock_holder {
 public:
  lock_holder(const char* name) : held_{name} {}

 protected:
  static constexpr long nobody = -1;

  // The running task, that wants the lock or has it.
  long me(const char* call) {
    return static_cast<long>(waiters_.enter(call).running().id);
  }
  void expect_not_mine(const char* call) {
    if (held_.task != nobody && held_.task == me(call))
      throw deadlock(std::string(call) + ": " + held_.what +
                     " is held by this task itself, " +
                     title_and_place(waiters_.enter(call).running()));
  }
  void expect_mine(const char* call) {
    if (held_.task != me(call))
      throw std::logic_error(
          std::string(call) + ": " + held_.what + " is held by " +
          (held_.task == nobody ? "no task"
                                : "task " + std::to_string(held_.task)));
  }

  holding held_;
  wait_queue waiters_;
};

// One task has it at a time. `name` is for reports, and must outlive it.
class mutex : private lock_holder {
 public:
  explicit mutex(const char* name = "mutex") : lock_holder(name) {}

  // Throws deadlock when we hold it already.
  bool lock(deadline until = never) {
    expect_not_mine("lock");
    return waiters_.wait(until, {"locking", -1, &held_},
                         [this] { return try_lock(); });
  }
  bool try_lock() {
    const long us = me("try_lock");
    if (held_.task != nobody) return false;
    held_.task = us;
    return true;
  }
  bool try_lock_for(deadline until) { return lock(until); }
  bool try_lock_until(deadline until) { return lock(until); }
  // Throws std::logic_error unless we hold it.
  void unlock() {
    expect_mine("unlock");
    waiter* const next = waiters_.first();
    held_.task = next == nullptr ? nobody : static_cast<long>(next->task->id);
    if (next != nullptr) wait_queue::wake(*next);
  }
  bool held_by_us() { return held_.task == me("held_by_us"); }
};

// One task has it, as often as it likes.
class recursive_mutex {
 public:
  explicit recursive_mutex(const char* name = "recursive_mutex")
      : mutex_(name) {}

  bool lock(deadline until = never) {
    return counted(mutex_.held_by_us() || mutex_.lock(until));
  }
  bool try_lock() { return counted(mutex_.held_by_us() || mutex_.try_lock()); }
  bool try_lock_for(deadline until) { return lock(until); }
  bool try_lock_until(deadline until) { return lock(until); }
  // Throws std::logic_error unless we hold it.
  void unlock() {
    if (depth_ == 1 || !mutex_.held_by_us()) mutex_.unlock();
    --depth_;
  }

 private:
  bool counted(bool locked) {
    if (locked) ++depth_;
    return locked;
  }

  mutex mutex_;
  std::size_t depth_ = 0;
};

// One task has it alone, or any number share it. Nobody overtakes: who would
// share it waits behind one who waits to have it alone.
class shared_mutex : private lock_holder {
 public:
  explicit shared_mutex(const char* name = "shared_mutex")
      : lock_holder(name) {}

  // Throws deadlock when we have it alone already. A task that shares it and
  // then wants it alone waits for itself: that is noticed, and called a
  // deadlock, only when no other task can run.
  bool lock(deadline until = never) { return get("lock", until, false); }
  bool try_lock() {
    waiters_.enter("try_lock");
    return take(false);
  }
  bool try_lock_for(deadline until) { return lock(until); }
  bool try_lock_until(deadline until) { return lock(until); }
  // Throws std::logic_error unless we have it alone.
  void unlock() {
    expect_mine("unlock");
    held_.task = nobody;
    hand_over();
  }

  bool lock_shared(deadline until = never) {
    return get("lock_shared", until, true);
  }
  bool try_lock_shared() {
    waiters_.enter("try_lock_shared");
    return take(true);
  }
  bool try_lock_shared_for(deadline until) { return lock_shared(until); }
  bool try_lock_shared_until(deadline until) { return lock_shared(until); }
  // Throws std::logic_error when nobody shares it.
  void unlock_shared() {
    waiters_.enter("unlock_shared");
    if (sharing_ == 0)
      throw std::logic_error(std::string("unlock_shared: nobody shares ") +
                             held_.what);
    --sharing_;
    hand_over();
  }

 private:
  bool free_for(bool shared) const {
    return held_.task == nobody && (shared || sharing_ == 0);
  }
  void give(task_block& t, bool shared) {
    if (shared)
      ++sharing_;
    else
      held_.task = static_cast<long>(t.id);
  }
  bool take(bool shared) {
    if (!free_for(shared) || waiters_.first() != nullptr) return false;
    give(this_scheduler().running(), shared);
    return true;
  }
  bool get(const char* call, deadline until, bool shared) {
    expect_not_mine(call);
    waiters_.enter(call);
    if (take(shared)) return true;
    struct in_line final : waiter {
      shared_mutex& lock;
      in_line(shared_mutex& m, bool shares)
          : waiter(this_scheduler().running(), shares ? &m : nullptr),
            lock(m) {}
      ~in_line() {  // late or killed: those behind may have waited for us alone
        if (!in_list()) return;
        leave();
        lock.hand_over();
      }
    } us(*this, shared);
    return waiters_.wait_as(us, until,
                            {shared ? "sharing" : "locking", -1, &held_},
                            [&] { return take(shared); });
  }
  void hand_over() {
    while (waiter* const w = waiters_.first()) {
      const bool shared = w->offer != nullptr;
      if (!free_for(shared)) return;
      give(*w->task, shared);
      wait_queue::wake(*w);
    }
  }

  std::size_t sharing_ = 0;
};

// Tasks that hold a lock wait for something to change, and let go of it
// meanwhile. With any lock that has lock() and unlock(), std::unique_lock, say.
class condition_variable {
 public:
  void notify_one() {
    waiters_.enter("notify_one");
    waiters_.wake_one();
  }
  void notify_all() {
    waiters_.enter("notify_all");
    waiters_.wake_all();
  }

  // Until notified (true) or late (false); rarely returns true for no reason,
  // as the standard's does. We hold the lock again when it returns or throws:
  // to get it we wait even beyond `until`, and cannot be interrupted.
  template <class Lock>
  bool wait(Lock& lock, deadline until = never) {
    struct let_go {
      Lock& lock;
      explicit let_go(Lock& l) : lock(l) { lock.unlock(); }
      ~let_go() {
        shield in_peace;
        lock.lock();
      }
    };
    std::optional<let_go> meanwhile;
    return waiters_.wait(until, {"waiting for a condition"}, [&] {
      if (meanwhile) return true;
      meanwhile.emplace(lock);
      return false;
    });
  }
  // Until ready() holds, which is asked with the lock held.
  template <class Lock, class Ready,
            class = std::enable_if_t<std::is_invocable_v<Ready&>>>
  bool wait(Lock& lock, Ready ready, deadline until = never) {
    while (!ready())
      if (!wait(lock, until)) return ready();
    return true;
  }
  template <class Lock, class... Ready>
  bool wait_for(Lock& lock, deadline until, Ready... ready) {
    return wait(lock, std::move(ready)..., until);
  }
  template <class Lock, class... Ready>
  bool wait_until(Lock& lock, deadline until, Ready... ready) {
    return wait(lock, std::move(ready)..., until);
  }

 private:
  wait_queue waiters_;
};

// Counts what is under way; tasks wait until nothing is.
class wait_group {
 public:
  // Throws std::logic_error when less than nothing would be under way.
  void add(std::ptrdiff_t more = 1) {
    waiters_.enter("wait_group");
    if (more < -count_)
      throw std::logic_error("wait_group: more is done than was added");
    count_ += more;
    if (count_ == 0) waiters_.wake_all();
  }
  void done() { add(-1); }
  std::ptrdiff_t count() const { return count_; }
  bool wait(deadline until = never) {
    return waiters_.wait(until, {"waiting for a group"},
                         [this] { return count_ == 0; });
  }

 private:
  std::ptrdiff_t count_ = 0;
  wait_queue waiters_;
};

// A value, or an error, that some task will have.
template <class T = void>
class async_result {
 public:
  // Each throws std::logic_error when there is a value or an error already.
  template <class... Args>
  void set(Args&&... args) {
    expect_none("set");
    value_.emplace(std::forward<Args>(args)...);
    there_.set();
  }
  void set_error(std::exception_ptr error) {
    expect_none("set_error");
    if (error == nullptr) throw std::invalid_argument("set_error: no error");
    error_ = std::move(error);
    there_.set();
  }

  bool ready() const { return there_.is_set(); }
  bool wait(deadline until = never) { return there_.wait(until); }
  // Suspends until it is there. The value, which stays; throws the error, and
  // std::system_error with timed_out when late.
  std::add_lvalue_reference_t<T> get(deadline until = never) {
    if (!there_.wait(until)) throw_late("async_result: get");
    if (error_ != nullptr) std::rethrow_exception(error_);
    if constexpr (!std::is_void_v<T>) return *value_;
  }

 private:
  void expect_none(const char* call) {
    there_.waiters().enter(call);
    if (ready())
      throw std::logic_error(std::string("async_result: ") + call +
                             ": it has been set already");
  }

  event there_;
  std::optional<std::conditional_t<std::is_void_v<T>, nothing, T>> value_;
  std::exception_ptr error_;
};

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/channel.hpp - values from task to task
//
//     bao::channel<int> numbers;                    // Go's word, and its rules
//     bao::spawn([&] {
//       for (int n = 1; n <= 3; ++n) numbers.send(n);
//       numbers.close();
//     });
//     for (int n : numbers) std::printf("%d\n", n);
//
// Between those who send and those who receive lies a buffer. What does not fit
// waits with its sender, who holds it out; without a buffer every value goes
// from hand to hand:
//
//     senders in line          buffer           receivers in line
//     [ 7: "d" ]-[ 4: "c" ] -> | "b" "a" | ->   (none: there is something)
//     (none: there is room) -> |         | ->   [ 2: room ]-[ 9: room ]
//
// Each line is served in the order of arrival. Whoever is late or killed leaves
// it, and nothing is lost: what was not sent stays with the sender, what was
// received is with a receiver that runs. A message takes some tens of ns. A
// channel must outlive the tasks that use it: a group declared behind it sees
// to that.

#include <deque>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// In what order a buffer gives out what it holds: as it came; the latest first;
// the greatest first.
struct fifo {
  template <class T>
  class buffer {
   public:
    std::size_t size() const { return items_.size(); }
    void push(T&& value) { items_.push_back(std::move(value)); }
    T pop() {
      T value = std::move(items_.front());
      items_.pop_front();
      return value;
    }

   private:
    std::deque<T> items_;
  };
};

struct lifo {
  template <class T>
  class buffer {
   public:
    std::size_t size() const { return items_.size(); }
    void push(T&& value) { items_.push_back(std::move(value)); }
    T pop() {
      T value = std::move(items_.back());
      items_.pop_back();
      return value;
    }

   protected:
    std::vector<T> items_;
  };
};

// The greatest comes to the end, where lifo takes it.
template <class Less>
struct priority {
  template <class T>
  class buffer : public lifo::buffer<T> {
   public:
    void push(T&& value) {
      lifo::buffer<T>::push(std::move(value));
      std::push_heap(this->items_.begin(), this->items_.end(), Less());
    }
    T pop() {
      std::pop_heap(this->items_.begin(), this->items_.end(), Less());
      return lifo::buffer<T>::pop();
    }
  };
};

// Walks over what from.next() returns, until that is empty.
template <class Source, class T>
class input_iterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = T;
  using difference_type = std::ptrdiff_t;
  using pointer = T*;
  using reference = T&;

  input_iterator() = default;
  explicit input_iterator(Source& from) : from_(&from) { ++*this; }
  T& operator*() { return *value_; }
  T* operator->() { return &*value_; }
  input_iterator& operator++() {
    value_.reset();
    if (auto next = from_->next()) value_.emplace(std::move(*next));
    return *this;
  }
  void operator++(int) { ++*this; }
  bool operator==(const input_iterator& other) const {
    return value_.has_value() == other.value_.has_value();
  }
  bool operator!=(const input_iterator& other) const {
    return !(*this == other);
  }

 private:
  Source* from_ = nullptr;
  std::optional<T> value_;
};

// A capacity that is never reached.
inline constexpr std::size_t unbounded = PTRDIFF_MAX;

struct discard_t {};
inline constexpr discard_t discard{};

// Any number of tasks of one thread may send and receive. T may be move-only.
// Only send(), receive() and a loop over the channel suspend: while they have
// to wait, and now and then when they need not, to let others run. They throw
// what interrupts us, and wrong_thread on another thread.
template <class T, class Order = fifo>
class channel {
 public:
  using value_type = T;

  // How many values the buffer holds; with 0, whoever sends waits until its
  // value has been received. Throws std::invalid_argument when it is negative.
  explicit channel(std::size_t capacity = 0) : capacity_(capacity) {
    if (capacity > unbounded)
      throw std::invalid_argument(
          "channel: the capacity is " +
          std::to_string(static_cast<std::ptrdiff_t>(capacity)));
  }

  // True when the value has been received or buffered; false, and the value is
  // left alone, when `until` passes before that. Throws channel_closed.
  bool send(T&& value, deadline until = never) {
    scheduler& s = senders_.enter("send");
    if (s.time_to_yield() && !until.passed()) s.yield();
    if (put(value, "send")) return true;
    waiter me(s.running(), &value);
    const bool sent = senders_.wait_as(me, until, {"sending to a channel"},
                                       [&] { return put(value, "send"); });
    if (me.offer == nullptr) throw_closed("send");
    return sent;
  }
  bool send(const T& value, deadline until = never) {
    T copy(value);
    return send(std::move(copy), until);
  }
  // The same, without waiting.
  bool try_send(T&& value) {
    senders_.enter("try_send");
    return put(value, "try_send");
  }
  bool try_send(const T& value) {
    T copy(value);
    return try_send(std::move(copy));
  }

  // The next value; empty when the channel is closed and nothing is left, or
  // when `until` passes: closed() tells.
  std::optional<T> receive(deadline until = never) {
    scheduler& s = receivers_.enter("receive");
    if (s.time_to_yield() && !until.passed()) s.yield();
    std::optional<T> value;
    const auto ready = [&] { return take(value) || closed_; };
    if (ready()) return value;
    waiter me(s.running(), &value);
    const bool told =
        receivers_.wait_as(me, until, {"receiving from a channel"}, ready);
    // Late, and closed meanwhile: nobody shall take that for the end while
    // something is left.
    if (!told && me.in_list() && closed_) take(value);
    return value;
  }
  std::optional<T> try_receive() {
    receivers_.enter("try_receive");
    std::optional<T> value;
    take(value);
    return value;
  }

  // Nothing more can be sent: who waits to is told, by channel_closed. What is
  // buffered can still be received, unless it is discarded.
  void close() {
    senders_.enter("close");
    closed_ = true;
    while (waiter* const w = senders_.first()) {
      w->offer = nullptr;
      wait_queue::wake(*w);
    }
    // With nothing. Where something is left, whoever stands in line is late or
    // interrupted, and looks for itself.
    if (buffer_.size() == 0) receivers_.wake_all();
  }
  void close(discard_t) {
    close();
    const auto dropped = std::exchange(buffer_, {});
  }
  bool closed() const { return closed_; }

  // How many values are buffered.
  std::size_t size() const { return buffer_.size(); }

  // For range-for and algorithms: until it is closed and nothing is left. ++
  // suspends like receive().
  using iterator = input_iterator<channel, T>;
  iterator begin() { return iterator(*this); }
  iterator end() { return {}; }
  std::optional<T> next() { return receive(); }

 private:
  template <class, class, class>
  friend class receive_case;
  template <class, class, class>
  friend class send_case;

  [[noreturn, gnu::cold]] static void throw_closed(const char* call) {
    throw channel_closed(std::string(call) + ": the channel is closed");
  }

  // Into the hands of a receiver, or into the buffer.
  bool put(T& value, const char* call) {
    if (closed_) throw_closed(call);
    if (waiter* const w = receivers_.first()) {
      static_cast<std::optional<T>*>(w->offer)->emplace(std::move(value));
      wait_queue::wake(*w);
      return true;
    }
    if (buffer_.size() >= capacity_) return false;
    buffer_.push(std::move(value));
    return true;
  }

  // Out of the hands of a sender, or out of the buffer, where the value of a
  // sender takes its place.
  bool take(std::optional<T>& into) {
    waiter* const w = senders_.first();
    if (w != nullptr && capacity_ == 0)
      into.emplace(std::move(*static_cast<T*>(w->offer)));
    else if (w != nullptr)
      buffer_.push(std::move(*static_cast<T*>(w->offer)));
    if (w != nullptr) wait_queue::wake(*w);
    if (!into && buffer_.size() != 0) into.emplace(buffer_.pop());
    return into.has_value();
  }

  std::size_t capacity_;
  bool closed_ = false;
  typename Order::template buffer<T> buffer_;
  wait_queue senders_;
  wait_queue receivers_;
};

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/group.hpp - tasks that belong together
//
//     {
//       bao::group both;                     // nothing outlives these braces
//       both.spawn(download, "a");
//       both.spawn(download, "b");
//       both.join();                         // throws the first error
//     }
//
//     bao::pool ten(10);                       // at most ten at a time
//     for (auto& page : ten.imap(urls, fetch)) index(page);
//
// A task that nobody waits for is easily forgotten. Those of a group end with
// it: when it goes, those that are left are killed and waited for. So declare
// it after all variables that its members use: it goes before they do.
//
// A pool limits how many tasks it has at a time, and its map functions call a
// function for each element of a range, in tasks. They ask for the next element
// when a slot is free, so the range may be endless, and may wait itself.
//
// A member costs a small note on the heap beside its task. A group that has
// members when the process forks is of no use in the child, but can be
// destroyed there.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// What groups and pools have in common: their members, until they end.
class task_set {
 public:
  task_set() = default;
  task_set(const task_set&) = delete;

  // Spawns f(args...) as a member, as bao::spawn() does; with more than one
  // argument, reports do not tell the place. A pool's suspends until a slot is
  // free, a group's never.
  template <class... Args>
  auto spawn(task_options options, Args&&... args) {
    take_slot();
    try {
      auto t = bao::spawn(std::move(options), std::forward<Args>(args)...);
      enter(t.checked("spawn"));
      return t;
    } catch (...) {
      give_slot_back();
      throw;
    }
  }
  template <class F, class = not_options<F>>
  auto spawn(F&& f, place at = place::here()) {
    return spawn(task_options(at), std::forward<F>(f));
  }
  template <class F, class A, class = not_options<F>>
  auto spawn(F&& f, A&& a, place at = place::here()) {
    return spawn(task_options(at), std::forward<F>(f), std::forward<A>(a));
  }
  template <class F, class A, class B, class... More, class = not_options<F>>
  auto spawn(F&& f, A&& a, B&& b, More&&... more) {
    return spawn(task_options(place::nowhere()), std::forward<F>(f),
                 std::forward<A>(a), std::forward<B>(b),
                 std::forward<More>(more)...);
  }

  // Kills all members, and suspends until they have ended, those included that
  // they spawn meanwhile (true), or until `until` (false). Throws what
  // interrupts us: bao::killed in a member that calls this.
  bool kill(deadline until = never) {
    for (;;) {
      std::vector<task<>> left;
      for (member* m = members_.first(); m != nullptr; m = members_.after(*m))
        if (m->who.stage != task_state::done) left.emplace_back(&m->who);
      if (left.empty()) return true;
      if (!kill_all(left, until)) return false;
    }
  }
  bool empty() const { return members_.empty(); }
  // How many have not ended.
  std::size_t size() const { return size_; }
  bool contains(const task<>& t) {
    task_block& one = t.checked("contains");
    for (member* m = members_.first(); m != nullptr; m = members_.after(*m))
      if (&m->who == &one) return one.stage != task_state::done;
    return false;
  }

 protected:
  virtual ~task_set() = default;

  // A task that has just been spawned is a member from now on.
  void enter(task_block& t) try {
    auto* const m = new member(*this, t);
    members_.push_back(*m);
    t.watchers.push_back(*m);
    ++size_;
  } catch (...) {
    this_scheduler().kill(t);  // it has not begun, and never will
    throw;
  }
  virtual void take_slot() {}
  virtual void give_slot_back() noexcept {}
  virtual void has_ended(task_block&) {}

  // Suspends until all have ended, or enough() holds, which is asked at each
  // wake-up (true), or until `until` (false).
  template <class Enough>
  bool wait(deadline until, Enough enough) {
    if (contains(self()))
      throw deadlock("join: a member of the group would wait for itself");
    return all_ended_.wait(until, {"joining a group"},
                           [&] { return enough() || empty(); });
  }
  wait_queue all_ended_;

  // For destructors: kills those that are left, and nothing interrupts that.
  void end() noexcept {
    if (empty()) return;
    if (contains(self())) die("a group goes while a member of it runs");
    shield in_peace;
    kill();
  }

 private:
  // Stands in our list, and among those that the task tells of its end.
  struct member final : completion, list_node<member> {
    using list_node<member>::leave;
    task_set& of;
    task_block& who;

    member(task_set& set, task_block& t) : of(set), who(t) {
      ended = [](completion& c, task_block& one) {
        auto* const m = static_cast<member*>(&c);
        task_set& left = m->of;
        delete m;
        --left.size_;
        left.give_slot_back();
        left.has_ended(one);
        if (left.empty()) left.all_ended_.wake_all();
      };
    }
  };

  list<member> members_;  // that have not ended
  std::size_t size_ = 0;
};

// Only join(), kill() and the destructor suspend.
class group : public task_set {
 public:
  group() = default;
  // Kills those that are left, and waits until they have ended. An error that
  // nobody has joined for goes to on_unhandled().
  ~group() { end(); }

  // Suspends until all members have ended (true) or `until` passes (false). An
  // error of a member ends the wait: the others are killed, waited for even
  // beyond `until`, and the first error is thrown. Throws what interrupts us.
  bool join(deadline until = never) {
    ++joining_;
    // Several may join, and be told: it is forgotten when the last one leaves.
    const at_end leaves([this] {
      if (--joining_ == 0 && std::exchange(told_, false)) failed_ = {};
    });
    const bool in_time = wait(until, [this] { return bool(failed_); });
    const task<> failed = failed_;
    if (!failed) return in_time;
    kill();
    told_ = true;
    std::rethrow_exception(failed.error());
  }

 private:
  void has_ended(task_block& t) override {
    if (t.error == nullptr) return;
    if (failed_) {
      t.asked = true;  // it is not told of
    } else {
      failed_ = task<>(&t);
      all_ended_.wake_all();
    }
  }

  // The first with an error, until all who join have been told; else it is told
  // of when we let go of it.
  task<> failed_;
  bool told_ = false;  // join() has thrown it
  int joining_ = 0;
};

// The results of a pool's imap functions, one after the other: next(), a loop
// and the destructor suspend. An error of one element is thrown in its place,
// and the next call goes on behind it. To drop what is left kills its tasks,
// and waits until they have ended. The pool must outlive it.
template <class R>
class mapped {
 public:
  explicit mapped(generator<task<R>> tasks) : tasks_(std::move(tasks)) {}

  // Empty, or false where there is no value to return, at the end.
  auto next() {
    std::optional<task<R>> t = tasks_.next();
    if constexpr (std::is_void_v<R>) {
      if (t) t->get();
      return t.has_value();
    } else {
      return t ? std::optional<R>(std::move(*t).get()) : std::nullopt;
    }
  }

  using iterator = input_iterator<mapped, R>;
  iterator begin() { return iterator(*this); }
  iterator end() { return {}; }

 private:
  generator<task<R>> tasks_;
};

// An error stays with its task: nobody else is killed, and where nobody asks
// the task it goes to on_unhandled(). Only spawn(), join(), kill(), map() and
// the destructor suspend.
class pool : public task_set {
 public:
  // Throws std::invalid_argument for a size of 0, or a negative one.
  explicit pool(std::size_t size)
      : most_(size), slots_(static_cast<std::ptrdiff_t>(size)) {
    if (size == 0) throw std::invalid_argument("pool: a size of 0");
  }
  // Kills those that are left, and waits until they have ended.
  ~pool() { end(); }

  // Suspends until all have ended (true), be it by errors, or `until` passes
  // (false). Throws what interrupts us.
  bool join(deadline until = never) {
    return wait(until, [] { return false; });
  }

  // How many could be spawned without waiting.
  std::size_t free_count() const {
    return static_cast<std::size_t>(slots_.available());
  }

  // f(x) for each x of a range, in its order. Throws the first error of that
  // order, and kills the rest.
  template <class Range, class F>
  auto map(Range&& range, F f) {
    auto results = imap(std::forward<Range>(range), std::move(f));
    if constexpr (std::is_same_v<decltype(results.next()), bool>) {
      while (results.next()) {
      }
    } else {
      std::vector<typename decltype(results)::iterator::value_type> all;
      while (auto r = results.next()) all.push_back(std::move(*r));
      return all;
    }
  }

  // The same, one by one as they are asked for: as many tasks as the pool has
  // slots are ahead. A range that is an lvalue is borrowed.
  template <class Range, class F>
  auto imap(Range&& range, F f) & {
    return mapping<true>(std::forward<Range>(range), std::move(f));
  }
  // The same, in the order in which they are done.
  template <class Range, class F>
  auto imap_unordered(Range&& range, F f) & {
    return mapping<false>(std::forward<Range>(range), std::move(f));
  }
  // Both, for the stages of pipelines below.
  template <bool InOrder, class Range, class F>
  auto mapping(Range&& range, F f);

 private:
  void take_slot() override { slots_.acquire(); }
  void give_slot_back() noexcept override { slots_.release(); }

  // While a member waits for other members it needs no slot: else a pool full
  // of those would stand still.
  class lent_slot {
   public:
    explicit lent_slot(pool& p) : pool_(p) { lend(); }
    lent_slot(const lent_slot&) = delete;
    ~lent_slot() { take_back(); }

    void lend() {
      if (lent_ || !pool_.contains(self())) return;
      pool_.slots_.release();
      lent_ = true;
    }
    void take_back() {
      if (!std::exchange(lent_, false)) return;
      shield in_peace;
      pool_.slots_.acquire();
    }

   private:
    pool& pool_;
    bool lent_ = false;
  };

  // The tasks of a mapping that were spawned and not yet handed on.
  template <class R>
  struct ahead {
    explicit ahead(pool& p) : slot(p) {}
    lent_slot slot;              // while we wait for them
    std::deque<task<R>> all;     // in order
    std::vector<task<R>> ended;  // as they did, where that counts
    wait_queue news;

    ~ahead() {
      shield in_peace;
      if (std::any_of(all.begin(), all.end(),
                      [](auto& t) { return !t.done(); }))
        slot.lend();
      kill_all(all);
    }
    void add(task<R> t, bool in_order) try {
      all.push_back(t);
      if (in_order) return;
      // The callback must not fail for want of memory.
      if (ended.capacity() < all.size()) ended.reserve(2 * all.size());
      t.on_done([this](const task<R>& done) {
        ended.push_back(done);
        news.wake_one();
      });
    } catch (...) {
      this_scheduler().kill(t.checked("map"));  // it has not begun
      throw;
    }
    task<R> next(bool in_order) {
      task<R> t;
      if (in_order) {
        t = all.front();
        t.join();
      } else {
        news.wait(never, {"waiting for a mapped task"},
                  [this] { return !ended.empty(); });
        t = std::move(ended.front());
        ended.erase(ended.begin());
      }
      all.erase(std::find(all.begin(), all.end(), t));
      return t;
    }
  };

  std::size_t most_;
  semaphore slots_;
};

template <bool InOrder, class Range, class F>
auto pool::mapping(Range&& range, F f) {
  if constexpr (!is_generator<std::decay_t<Range>>::value) {
    return mapping<InOrder>(from(std::forward<Range>(range)), std::move(f));
  } else {
    using kept = handed_on<Range&&>;
    using in = yielded<Range>;
    using R = spawned_result<F&, in>;
    return mapped<R>(generator<task<R>>(
        [this](yielder<task<R>, void>& yield, std::tuple<kept> source, F g) {
          ahead<R> tasks(*this);
          const auto hand_on = [&] {
            task<R> t = tasks.next(InOrder);
            tasks.slot.take_back();
            yield(std::move(t));
            tasks.slot.lend();
          };
          for (auto& x : std::get<0>(source)) {
            while (tasks.all.size() >= most_) hand_on();
            tasks.add(spawn(task_options(place::nowhere()), std::ref(g),
                            static_cast<in&&>(x)),
                      InOrder);
          }
          while (!tasks.all.empty()) hand_on();
        },
        std::tuple<kept>(std::forward<Range>(range)), std::move(f)));
  }
}

// --- pipeline stages that wait -----------------------------------------------

template <bool InOrder, class F>
auto parallel_stage(std::size_t n, F f) {
  return pipeline_stage{[n, f = std::move(f)](auto&& source) mutable {
    using in = yielded<decltype(source)>;
    using out = handed_on<std::invoke_result_t<F&, std::decay_t<in>>>;
    return std::forward<decltype(source)>(source) |
           stage<out>([n, f = std::move(f)](auto& values, auto& yield) mutable {
             pool tasks(n);
             for (auto& r : tasks.mapping<InOrder>(values, std::ref(f)))
               yield(std::move(r));
           });
  }};
}

// f(x) for every x, in n tasks; in their order, or as they are done. It is the
// generator that suspends; an error ends it, and kills the tasks.
template <class F>
auto par(std::size_t n, F f) {
  return parallel_stage<true>(n, std::move(f));
}
template <class F>
auto par_unordered(std::size_t n, F f) {
  return parallel_stage<false>(n, std::move(f));
}

// The values of several generators, as they come: each runs in a task of its
// own. The first error ends all.
template <class First, class... More>
auto merge(First&& first, More&&... more) {
  using out = std::decay_t<yielded<First>>;
  using all = std::tuple<handed_on<First&&>, handed_on<More&&>...>;
  return generator<out>(
      [](yielder<out, void>& yield, all sources) {
        channel<out> values;
        std::size_t left = sizeof...(More) + 1;
        group pumps;
        const auto pump = [&](auto& source) {
          pumps.spawn([&] {
            try {
              for (auto&& x : source)
                values.send(out(std::forward<decltype(x)>(x)));
            } catch (const killed&) {
              throw;  // nobody reads any more
            } catch (...) {
              values.close();
              throw;
            }
            if (--left == 0) values.close();
          });
        };
        std::apply([&](auto&... each) { (pump(each), ...); }, sources);
        for (auto& x : values) yield(std::move(x));
        pumps.join();
      },
      all(std::forward<First>(first), std::forward<More>(more)...));
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/local.hpp - one value a task
//
//     bao::task_local<std::string> user("nobody");   // at namespace scope, say
//
//     user = "harry";          // this task's; every other one has its own
//     log(user);               // deep in calls that nobody hands it to
//
// It is to a task what thread_local is to a thread. A task's value is made when
// the task first asks for it, as a copy of the first one, and destroyed when
// the task ends. Coroutines and generators have that of the task that runs
// them; a task that is spawned inherits none. To ask takes some ns for each
// such value that the task has.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Never reused: so a value outlives its variable without being taken for
// another one's.
inline std::atomic<unsigned long> last_local_key{0};

// None of its members suspends. They throw what T's constructors do. It may be
// used by any thread.
template <class T>
class task_local {
 public:
  // Each begins as T(), or as a copy of `first`.
  task_local() = default;
  template <class U = T,
            class = std::enable_if_t<std::is_copy_constructible_v<U>>>
  explicit task_local(T first) : first_(std::move(first)) {}
  task_local(const task_local&) = delete;

  T& get() const {
    task_block& t = this_scheduler().running();
    for (local_value* v = t.locals; v != nullptr; v = v->next)
      if (v->key == key_) return static_cast<value&>(*v).own;
    auto* const made = new value(*this);  // which may make others
    made->next = std::exchange(t.locals, made);
    return made->own;
  }
  operator T&() const { return get(); }
  T& operator*() const { return get(); }
  T* operator->() const { return &get(); }
  task_local& operator=(T v) {
    get() = std::move(v);
    return *this;
  }

 private:
  struct value final : local_value {
    explicit value(const task_local& of)
        : local_value(of.key_), own(of.first()) {}
    T own;
  };
  T first() const {
    if constexpr (std::is_copy_constructible_v<T>)
      return first_;
    else
      return T();
  }

  T first_{};
  const unsigned long key_ = ++last_local_key;
};

}  // namespace BAO_ABI
}  // namespace bao

// V. The outside world

// =============================================================================
// bao/remote.hpp - wake a thread's tasks from other threads
//
// Tasks belong to one thread and need no locking. What other threads may do is
// leave a message: it goes into a mailbox, and a doorbell that the poller
// watches is rung. A message costs a lock and a system call.
//
//     bao::remote home = bao::this_scheduler().remote();
//     std::thread([home]() mutable { home.post([] { ... }); }).detach();

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A lock between threads; <mutex> would double what it takes to parse this
// file. The holder must not suspend, so it is libc's whatever is patched.
class thread_mutex {
 public:
  thread_mutex() = default;
  thread_mutex(const thread_mutex&) = delete;
  ~thread_mutex() { ::pthread_mutex_destroy(&mutex_); }
  pthread_mutex_t* native() { return &mutex_; }

 private:
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
};

class thread_lock {
 public:
  explicit thread_lock(thread_mutex& m) : mutex_(m) {
    hook::original::pthread_mutex_lock(mutex_.native());
  }
  thread_lock(const thread_lock&) = delete;
  ~thread_lock() { hook::original::pthread_mutex_unlock(mutex_.native()); }

 private:
  thread_mutex& mutex_;
};

// Something to be done on another thread.
struct message {
  message* next = nullptr;
  // Called there, between two tasks; null for the scheduler: it has ended, and
  // only what the message holds is to be given up.
  void (*arrive)(message&, scheduler*) = nullptr;
};

// Shared by a scheduler and the remotes of it; goes with the last of them.
struct mailbox {
  thread_mutex mutex;
  scheduler* home = nullptr;  // null when it has ended
  message* first = nullptr;
  message** last = &first;
  int remotes = 0;

  // False when the thread has ended: nobody will see the message.
  bool put(message& m) {
    thread_lock hold(mutex);
    if (home == nullptr) return false;
    m.next = nullptr;
    *last = &m;
    last = &m.next;
    home->poller().wake();
    return true;
  }

  // In a child process: what was left here is for the parent, and so are the
  // remotes. A thread that has not come along may have held the mutex.
  static void start_over(scheduler& s) {
    mailbox* const box = std::exchange(s.mail, nullptr);
    if (box == nullptr) return;
    new (&box->mutex) thread_mutex;
    box->home = nullptr;
    s.take_mail = nullptr;
    s.remotes = 0;
    if (box->remotes == 0) delete box;
  }

  // On the home thread.
  static void take(scheduler& s, bool last_time) {
    mailbox& box = *s.mail;
    message* all = nullptr;
    bool last_use = false;
    {
      thread_lock hold(box.mutex);
      all = std::exchange(box.first, nullptr);
      box.last = &box.first;
      s.remotes = box.remotes;
      if (last_time) {
        box.home = nullptr;
        last_use = box.remotes == 0;
      }
    }
    while (all != nullptr) {
      message& m = *std::exchange(all, all->next);
      m.arrive(m, last_time ? nullptr : &s);
    }
    if (last_use) delete &box;
  }
};

// A way to another thread's scheduler. May be copied and used on any thread;
// while one lives, waiting on its home thread for nothing else is no deadlock.
// None of its members suspends.
class remote {
 public:
  remote() = default;  // to nowhere: nothing arrives
  explicit remote(scheduler& s) {
    if (s.mail == nullptr) {
      s.mail = new mailbox;
      s.mail->home = &s;
      s.take_mail = mailbox::take;
    }
    box_ = s.mail;
    enter();
    ++s.remotes;
  }
  remote(const remote& other) : box_(other.box_) { enter(); }
  remote(remote&& other) noexcept : box_(std::exchange(other.box_, nullptr)) {}
  remote& operator=(remote other) noexcept {
    box_ = std::exchange(other.box_, box_);
    return *this;
  }
  ~remote() {
    if (box_ == nullptr) return;
    bool last_use = false;
    {
      thread_lock hold(box_->mutex);
      if (--box_->remotes == 0) {
        scheduler* const home = box_->home;
        last_use = home == nullptr;
        // Where there is mail, it has been told to look. On the home thread
        // itself, nobody sleeps.
        if (home != nullptr && box_->first == nullptr) {
          if (home == tasks_here())
            home->remotes = 0;
          else
            home->poller().wake();
        }
      }
    }
    if (last_use) delete box_;
  }

  // Has f() run as a task of the home thread. False, and f is dropped, when
  // that thread has ended.
  template <class F>
  bool post(F f) {
    // The task is made here, where it can be said that there is no memory.
    using call = task_call<spawned_result<F>, F>;
    struct posted final : message {
      std::unique_ptr<call> task;
    };
    auto made = std::make_unique<posted>();
    made->task = std::make_unique<call>(std::move(f));
    made->task->name = "posted";
    made->arrive = [](message& m, scheduler* s) {
      const std::unique_ptr<posted> mine(static_cast<posted*>(&m));
      if (s != nullptr) s->add(*mine->task.release(), clock::duration{0});
    };
    return put(*made) && (made.release(), true);
  }

  // For the chapters that follow.
  bool put(message& m) { return box_ != nullptr && box_->put(m); }
  explicit operator bool() const { return box_ != nullptr; }

 private:
  void enter() {
    if (box_ == nullptr) return;
    thread_lock hold(box_->mutex);
    ++box_->remotes;
  }

  mailbox* box_ = nullptr;
};

inline class remote scheduler::remote() { return bao::remote(*this); }

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/offload.hpp - threads for what must block
//
// Some calls cannot wait politely: name look-ups, regular files, a long
// computation. They run on a helper thread while the task that wants the result
// waits as for anything else. The price is two switches between threads, some
// microseconds.
//
// The helpers are made when they are needed, ten at most, and leave after five
// seconds without work; what comes eleventh waits for its turn. They take no
// signals. Who wants more, or fewer, or some to himself, makes a thread_pool.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

struct job : list_node<job> {
  void (*run)(job&) = nullptr;  // on a helper thread; must not throw
};

// Makes a thread that takes no signals. Returns what pthread_create() does.
inline int make_thread(pthread_t& made, void* (*body)(void*), void* argument) {
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const int failed = ::pthread_create(&made, nullptr, body, argument);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return failed;
}

// A job that offloads in its turn does the work itself: were it to wait for
// another helper, ten of them could wait for each other.
inline thread_local bool on_helper_thread = false;

// Threads for jobs, at most so many. Any thread may use it.
class thread_pool {
 public:
  // Throws std::invalid_argument unless `most` is from 1 to 10,000.
  explicit thread_pool(int most) : most_(most) {
    if (most < 1 || most > 10000)
      throw std::invalid_argument("thread_pool: of " + std::to_string(most) +
                                  " threads");
  }
  thread_pool(const thread_pool&) = delete;
  // Blocks until all jobs are done and all threads have left.
  ~thread_pool() {
    if (process_ != ::getpid()) return;  // they are in the parent
    thread_lock hold(mutex_);
    ending_ = true;
    hook::original::pthread_cond_broadcast(&wanted_);
    while (threads_ > 0)
      hook::original::pthread_cond_wait(&left_, mutex_.native());
  }

  // As bao::offload(), by a thread of this pool.
  template <class F, class... Args>
  auto offload(F f, Args... args);

  // Throws std::system_error when there is no helper and none can be made.
  void submit(job& j) {
    if (process_ != ::getpid()) start_over();
    thread_lock hold(mutex_);
    jobs_.push_back(j);
    if (idle_ > waiting_) {
      ++waiting_;
      hook::original::pthread_cond_signal(&wanted_);
    } else if (threads_ < most_) {
      pthread_t made;
      const int failed = make_thread(made, serve, this);
      if (failed == 0) {
        ::pthread_detach(made);
        ++threads_;
      } else if (threads_ == 0) {
        j.leave();
        throw_errno("pthread_create", failed);
      }
    }
  }

 private:
  static constexpr time_t patience = 5;  // seconds

  // In a child process: there are no helpers, and none was at work for it.
  void start_over() {
    jobs_.clear();
    const int most = most_;
    new (this) thread_pool(most);
  }

  static void* serve(void* pool) {
    auto& me = *static_cast<thread_pool*>(pool);
    on_helper_thread = true;
    while (job* j = me.next()) j->run(*j);
    return nullptr;
  }

  job* next() {
    thread_lock hold(mutex_);
    while (jobs_.empty()) {
      if (ending_) return leave();
      timespec until;
      ::clock_gettime(CLOCK_REALTIME, &until);
      until.tv_sec += patience;
      ++idle_;
      const int late = hook::original::pthread_cond_timedwait(
          &wanted_, mutex_.native(), &until);
      --idle_;
      // Late, but there is work: the signal may have come too late for us.
      if (waiting_ > 0 && (late == 0 || !jobs_.empty())) --waiting_;
      if (late != 0 && jobs_.empty()) return leave();
    }
    job* const j = jobs_.first();
    j->leave();
    return j;
  }

  job* leave() {
    --threads_;
    hook::original::pthread_cond_signal(&left_);
    return nullptr;
  }

  int most_;
  pid_t process_ = ::getpid();  // which a fork leaves
  thread_mutex mutex_;
  pthread_cond_t wanted_ = PTHREAD_COND_INITIALIZER;
  pthread_cond_t left_ = PTHREAD_COND_INITIALIZER;
  bool ending_ = false;
  list<job> jobs_;
  int threads_ = 0;
  int idle_ = 0;
  int waiting_ = 0;  // signals on their way to idle helpers
};

// The process has one such pool. It is never destroyed, for a helper may still
// be busy when the process ends.
inline thread_pool& helpers() {
  static auto* const all = new thread_pool(10);
  return *all;
}

// A job that sends word home when it is done.
class offloaded : public job, public message {
 public:
  virtual void work() noexcept = 0;

  bool done = false;
  task_block* waits = nullptr;  // null: nobody does any more

  // Hands itself to a helper. Whoever calls waits until `done`, or lets it go.
  void submit(thread_pool& pool = helpers()) {
    if (on_helper_thread) {
      work();
      done = true;
      return;
    }
    scheduler& s = this_scheduler();
    home_ = remote(s);
    run = [](job& j) {
      auto& me = static_cast<offloaded&>(j);
      me.work();
      // Once it has been put, it may be gone.
      remote way = me.home_;
      if (!way.put(me)) me.abandon();
    };
    arrive = [](message& m, scheduler* home) {
      auto& me = static_cast<offloaded&>(m);
      me.done = true;
      if (home != nullptr) --home->jobs;
      if (me.waits == nullptr || home == nullptr)
        me.abandon();
      else
        home->wake(*me.waits);
    };
    pool.submit(*this);
    waits = &s.running();
    ++s.jobs;
  }

 protected:
  ~offloaded() = default;
  virtual void abandon() noexcept {}

 private:
  remote home_;
};

template <class F, class... Args>
auto thread_pool::offload(F f, Args... args) {
  using R = std::decay_t<typename call_result<F, Args...>::type>;
  const auto f_with_args = [&]() -> R {
    return std::invoke(std::move(f), std::move(args)...);
  };
  struct call final : offloaded {
    explicit call(const decltype(f_with_args)& c) : function(c) {}
    void work() noexcept override {
      try {
        if constexpr (std::is_void_v<R>)
          function(), result.emplace();
        else
          result.emplace(function());
      } catch (...) {
        error = what_ended("job of offload");
      }
    }
    const decltype(f_with_args)& function;
    std::optional<std::conditional_t<std::is_void_v<R>, nothing, R>> result;
    std::exception_ptr error;
  } here(f_with_args);
  here.submit(*this);
  {
    shield until_it_is_done;
    while (!here.done)
      this_scheduler().park(never, {"waiting for a helper thread"});
  }
  if (here.error != nullptr) std::rethrow_exception(here.error);
  if constexpr (!std::is_void_v<R>) return std::move(*here.result);
}

// Suspends until f(args...), called on a helper thread, has finished; returns,
// as a value, or throws what it does. It may refer to our variables: we stay
// even when we are killed or late, and learn of that at the next wait. Throws
// std::system_error when no helper can be made.
template <class F, class... Args>
auto offload(F f, Args... args) {
  return helpers().offload(std::move(f), std::move(args)...);
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/look_up.hpp - questions to the system's resolver
//
// libc blocks when it looks up a name, sometimes for seconds, and only libc
// knows the files and services that an administrator has set up. So a helper
// thread asks it. offload() would do, but its job may refer to variables of the
// task that waits, which must therefore stay until the job is done, even when
// it is killed. A question owns all it works on, so those who wait may leave:
//
//     task 1 --.
//     task 2 ---+--> "example.org:80" ... helper ... answer --> tasks 1 and 3
//     task 3 --'          task 2 is killed: it just leaves
//
// While a question is in flight, others who ask the same share its answer.
//
// It costs what offload() does; who shares an answer pays for the wait alone.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Belongs to all who ask it, and to the helper while it looks for the answer,
// which is part of it. One class for each kind of question says how.
class question : public offloaded, public in_flight {
 public:
  // Never suspends. Takes over what was made by new, and has a helper thread
  // look it up; or joins those who wait for the same already, and returns what
  // they ask. The key says what that is, and so of what class. Throws
  // std::system_error when there is no helper.
  static std::shared_ptr<question> ask(question* made) {
    std::shared_ptr<question> q(made);
    if (auto same = asked_already(q->key_)) return same;
    begin(q);
    return q;
  }
  virtual ~question() = default;

  // Whoever has asked waits once, and then leaves.

  // Suspends until the answer is there (true), or `until` passes (false).
  // Throws what interrupts us, and std::bad_alloc when there was no memory for
  // the answer.
  bool wait(deadline until) {
    const at_end leave([this] { --askers_; });
    const bool in_time = waiters_.wait(until, asking, [&] { return done; });
    if (no_memory_) throw std::bad_alloc();
    return in_time;
  }
  // The same for a caller in C, without a limit: returns what park_in_c() does,
  // or ENOMEM.
  int wait_in_c() {
    const at_end leave([this] { --askers_; });
    scheduler& s = waiters_.enter(asking.what);
    waiter me(s.running());
    waiters_.push_back(me);
    while (!done)
      if (const int error = s.park_in_c(never, asking)) return error;
    return no_memory_ ? ENOMEM : 0;
  }

 protected:
  explicit question(std::string key) : key_(std::move(key)) {}

 private:
  static constexpr wait_reason asking{"asking the resolver"};

  // On a helper thread; uses what it owns, nothing else. May throw nothing but
  // std::bad_alloc.
  virtual void look_up() = 0;

  static std::shared_ptr<question> asked_already(const std::string& key) {
    auto& all = this_scheduler().questions;
    for (auto* one = all.first(); one != nullptr; one = all.after(*one)) {
      auto& q = static_cast<question&>(*one);
      if (q.key_ == key && q.join()) return q.self_;
    }
    return nullptr;
  }
  static void begin(const std::shared_ptr<question>& q) {
    q->submit();
    q->waits = nullptr;  // no single task
    if (q->done) return;
    q->self_ = q;
    this_scheduler().questions.push_back(*q);
  }

  // One more asks, unless the helper has found that nobody does (false).
  bool join() {
    int n = askers_;
    while (n >= 0 && !askers_.compare_exchange_weak(n, n + 1)) {
    }
    return n >= 0;
  }

  void work() noexcept override {
    int nobody = 0;
    if (askers_.compare_exchange_strong(nobody, -1)) return;
    try {
      look_up();
    } catch (const std::bad_alloc&) {
      no_memory_ = true;
    }
  }
  // Called when it is done, as there is no single task to be woken.
  void abandon() noexcept override {
    in_flight::leave();
    const auto last_use = std::move(self_);
    waiters_.wake_all();
  }

  std::string key_;
  bool no_memory_ = false;
  wait_queue waiters_;
  std::atomic<int> askers_{1};
  std::shared_ptr<question> self_;  // until a helper is done
};

// The addresses of a host for a service, which may be empty: what getaddrinfo()
// says. Of the hints these four count.
struct addresses_of final : question {
  addresses_of(const std::string& name, const std::string& port,
               const addrinfo& hints)
      : question(key_of(name, port, hints)), host(name), service(port) {
    how.ai_flags = hints.ai_flags;
    how.ai_family = hints.ai_family;
    how.ai_socktype = hints.ai_socktype;
    how.ai_protocol = hints.ai_protocol;
  }
  ~addresses_of() override {
    if (list != nullptr) ::freeaddrinfo(list);
  }

  const std::string host, service;
  addrinfo how{};
  int result = 0, error = 0;  // of the call, and errno
  addrinfo* list = nullptr;

 private:
  static std::string key_of(const std::string& name, const std::string& port,
                            const addrinfo& hints) {
    std::string key = "getaddrinfo " + name + '\0' + port;
    for (int n : {hints.ai_flags, hints.ai_family, hints.ai_socktype,
                  hints.ai_protocol})
      key += '\0' + std::to_string(n);
    return key;
  }
  void look_up() override {
    result =
        hook::original::getaddrinfo(host.c_str(), service.c_str(), &how, &list);
    error = errno;
  }
};

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/io.hpp - own a descriptor, wait for it
//
// Every call here tries first, and only when the kernel has nothing (EAGAIN)
// does the task park until the poller reports the descriptor:
//
//     read --> data?  --yes--> return it
//      ^         no
//      |         v
//      '------ park until readable, or until the deadline
//
// Of a descriptor that bao owns it remembers whether it is ready. A stream that
// gave less than was asked for is empty, so the next read waits without trying:
// a request and its reply cost one read, one write and a share of one wait, as
// in a loop written by hand.
//
// Any number of tasks may wait for one descriptor. Each direction is served in
// the order of arrival; closing it wakes them all with EBADF.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Never suspends. Readiness right now, by asking the kernel. Throws
// std::system_error, in which `call` is named, for a descriptor that is not
// open.
inline readiness poll_now(int fd, readiness want, const char* call = "poll") {
  const auto fail = [&](int error) {
    throw_errno(std::string(call) + ": descriptor " + std::to_string(fd),
                error);
  };
  pollfd p{fd, 0, 0};
  if (want & readable) p.events = static_cast<short>(p.events | POLLIN);
  if (want & writable) p.events = static_cast<short>(p.events | POLLOUT);
  while (hook::original::poll(&p, 1, 0) == -1)
    if (errno != EINTR) fail(errno);
  if (fd < 0 || (p.revents & POLLNVAL)) fail(EBADF);
  readiness got;
  if (p.revents & (POLLIN | POLLHUP | POLLERR)) got = got | readable;
  if (p.revents & (POLLOUT | POLLHUP | POLLERR)) got = got | writable;
  return got & want;
}

// Tells those who wait for a descriptor, and the poller, that it is closed.
inline void abandon(scheduler& s, descriptor_watch& w, int fd) noexcept {
  w.closed = true;
  s.wake_all(w);
  s.poller().forget(fd);
}

// A task's place in the line for one direction of a descriptor, from when it
// has to wait until it is through. Whoever leaves wakes the next one.
class place_in_line {
 public:
  place_in_line(scheduler& s, int fd, descriptor_watch& w, readiness want)
      : scheduler_(s), fd_(fd), watch_(w) {
    self_.task = &s.running();
    self_.want = want;
    watch_.waiters.push_back(self_);
    ++watch_.references;
  }
  place_in_line(const place_in_line&) = delete;
  ~place_in_line() {
    if (watching_) --scheduler_.descriptor_waits;
    self_.leave();
    scheduler_.wake_first(watch_, self_.want);
    if (!watch_.owned && !watch_.closed && watch_.waiters.empty()) {
      scheduler_.poller().unwatch(fd_);
      scheduler_.watch_of(fd_) = nullptr;
    }
    if (--watch_.references == 0) delete &watch_;
  }

  // Whether nobody is before us.
  bool our_turn() {
    auto* w = watch_.waiters.first();
    while (!(w->want & self_.want)) w = watch_.waiters.after(*w);
    return w == &self_;
  }

  // Both suspend until `until` at the latest (false), and throw EBADF when the
  // descriptor is closed meanwhile: then nothing of it may be used any more.

  // Until nobody is before us.
  bool wait_for_turn(deadline until, const char* what) {
    while (!our_turn()) {
      const bool woken = scheduler_.park(until, {what, fd_});
      expect_open(what);
      if (!woken) return false;
    }
    return true;
  }
  // Until there may be news.
  bool wait(deadline until, const char* what) {
    if (!watch()) return true;
    const bool news = scheduler_.park(until, {what, fd_});
    expect_open(what);
    return news;
  }
  // Never suspends. Has us woken when there may be news; false when it is
  // always ready. From then on our wait is no deadlock.
  bool watch() {
    return watch([&](poller& p) { return p.watch(fd_, wanted()); });
  }
  // The same for one that is waited for again and again: see readiness.hpp.
  bool watch_again(bool anew) {
    return watch([&](poller& p) { return p.watch_again(fd_, wanted(), anew); });
  }
  bool closed() const { return watch_.closed; }
  void expect_open(const char* what) const {
    if (closed())
      throw_errno(std::string(what) + ' ' + std::to_string(fd_) +
                      ": it was closed meanwhile",
                  EBADF);
  }

 private:
  template <class Watch>
  bool watch(Watch watch_foreign) try {
    poller& p = scheduler_.poller();
    if (!(watch_.owned ? p.watch_owned(fd_, self_.want) : watch_foreign(p)))
      return false;
    if (!std::exchange(watching_, true)) ++scheduler_.descriptor_waits;
    return true;
  } catch (...) {
    watch_.ready = watch_.ready | self_.want;  // nobody will report it: try
    throw;
  }
  readiness wanted() {
    readiness all;
    for (auto* w = watch_.waiters.first(); w != nullptr;
         w = watch_.waiters.after(*w))
      all = all | w->want;
    return all;
  }

  scheduler& scheduler_;
  int fd_;
  descriptor_watch& watch_;
  descriptor_waiter self_;
  bool watching_ = false;
};

// Puts the running task in line for a descriptor, whoever owns it.
inline void get_in_line(std::optional<place_in_line>& place, int fd,
                        readiness want) {
  scheduler& s = this_scheduler();
  descriptor_watch*& known = s.watch_of(fd);
  if (known == nullptr) known = new descriptor_watch;
  // Its owner may have closed it behind our back: the kernel is told anew.
  if (known->owned && known->waiters.empty()) s.poller().forget(fd);
  place.emplace(s, fd, *known, want);
}

// Suspends until any of `want` (readable | writable) holds for a descriptor,
// whoever owns it, and returns what does; empty when `until` passes. What
// cannot be waited for, a regular file, is ready. Throws std::system_error, and
// std::invalid_argument when nothing is wanted.
inline readiness wait_fd(int fd, readiness want, deadline until = never) {
  if (!(want & (readable | writable)))
    throw std::invalid_argument("wait_fd: neither direction wanted");
  readiness ready = poll_now(fd, want, "wait_fd");
  if (ready || until.passed()) return ready;
  std::optional<place_in_line> here;
  get_in_line(here, fd, want);
  do {
    if (!here->wait(until, "waiting for descriptor")) return {};
    ready = poll_now(fd, want, "wait_fd");
  } while (!ready);
  return ready;
}

// How long to wait before the next try where the kernel gives no word: twice as
// long each time.
class growing_pause {
 public:
  explicit growing_pause(clock::duration first = std::chrono::milliseconds(1),
                         clock::duration most = std::chrono::milliseconds(50))
      : next_(first), most_(most) {}
  clock::duration next() {
    return std::exchange(next_, std::min(next_ * 2, most_));
  }

 private:
  clock::duration next_, most_;
};

// Owns a descriptor. Move-only; an empty one has the number -1. It belongs to
// the thread where a task first had to wait for it: others get wrong_thread.
// None of its members suspends.
class descriptor {
 public:
  descriptor() = default;
  explicit descriptor(int fd) : fd_(fd) {}
  descriptor(descriptor&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)),
        watch_(std::exchange(other.watch_, nullptr)),
        home_(other.home_) {}
  descriptor& operator=(descriptor&& other) noexcept {
    descriptor taken(std::move(other));
    std::swap(fd_, taken.fd_);
    std::swap(watch_, taken.watch_);
    std::swap(home_, taken.home_);
    return *this;
  }
  ~descriptor() { close(); }

  int fd() const { return fd_; }
  explicit operator bool() const { return fd_ != -1; }

  // Closes it, and wakes whoever waits for it, who gets EBADF. On another
  // thread than theirs it wakes nobody.
  void close() noexcept {
    const int fd = std::exchange(fd_, -1);
    if (fd == -1) return;
    stop_watching(fd);
    ::close(fd);
  }

  // Gives it away: it stays open. Who waits for it gets EBADF.
  int release() noexcept {
    const int fd = std::exchange(fd_, -1);
    if (fd != -1) stop_watching(fd);
    return fd;
  }

  // The last call has shown that there is nothing left in this direction,
  // unless the other end has hung up, of which there is news only once.
  void drained(readiness direction) {
    if (watch_ != nullptr && !(watch_->ready & uncertain))
      watch_->ready = watch_->ready.without(direction);
  }

  [[noreturn, gnu::cold]] void fail(const char* name) const {
    throw_errno(std::string(name) + ' ' + std::to_string(fd_));
  }

 private:
  friend class io_call;

  // This thread's number, 0 without a scheduler. Its address would not do: a
  // later thread may get the same one.
  static unsigned here_number() {
    return tasks_here() == nullptr ? 0 : current_thread->number;
  }

  void watch_here(scheduler& s) {
    if (watch_ == nullptr) {
      descriptor_watch*& known = s.watch_of(fd_);
      if (known != nullptr && known->owned) {  // closed behind our back
        abandon(s, *known, fd_);
        if (known->parted && --known->references == 0) delete known;
        known = nullptr;
      }
      if (known == nullptr)
        known = new descriptor_watch;
      else
        s.wake_all(*known);  // they look for themselves, and watch it anew
      watch_ = known;
      watch_->owned = true;
      ++watch_->references;
      home_ = here_number();
    } else if (home_ != here_number()) {
      throw wrong_thread("descriptor " + std::to_string(fd_) +
                         ": another thread has waited for it");
    }
  }

  void stop_watching(int fd) noexcept {
    descriptor_watch* const w = std::exchange(watch_, nullptr);
    if (w == nullptr) return;
    if (home_ != here_number()) {
      if (w->parted.exchange(true)) delete w;
      return;
    }
    scheduler& s = *tasks_here();
    if (s.watch_of(fd) == w) {
      abandon(s, *w, fd);
      s.watch_of(fd) = nullptr;
    }
    if (--w->references == 0) delete w;
  }

  int fd_ = -1;
  descriptor_watch* watch_ = nullptr;
  unsigned home_ = 0;  // the thread where it first had to wait
};

// One call that reads or writes a descriptor, however many system calls it
// takes: whoever comes later in the same direction waits until it is over. A
// kill or a limit that is due is thrown when it begins, and while it waits.
//
// Meanwhile the descriptor may be closed, and be gone: nothing of it is touched
// after a wait that ends so. A task that never has to wait yields now and then,
// so that the others get their turn.
class io_call {
 public:
  // `name` says who calls, for errors and reports. Suspends until it is our
  // turn.
  io_call(descriptor& d, readiness direction, deadline until, const char* name)
      : descriptor_(d),
        direction_(direction),
        until_(until),
        name_(name),
        scheduler_(tasks_here()) {
    if (scheduler_ != nullptr) scheduler_->meet_interruption();
    if (d.watch_ == nullptr ||
        (d.watch_->waiters.empty() && d.home_ == descriptor::here_number()))
      return;
    get_in_line();
    if (!place_->wait_for_turn(until_, name_)) too_late();
  }
  io_call(const io_call&) = delete;

  // Calls call(), which returns -1 and sets errno like a system call, until it
  // does not return EAGAIN; suspends in between until there may be news. Throws
  // std::system_error: what the call meets, timed_out when late.
  template <class Call>
  auto retry(Call call) {
    if (scheduler_ != nullptr && scheduler_->time_to_yield()) yield();
    bool late = false;
    for (;;) {
      // One who is late still gets what is there.
      descriptor_watch* const w = descriptor_.watch_;
      if (w == nullptr || late || (w->ready & direction_)) {
        const auto result = call();
        if (result != -1) return result;
        if (errno == EINTR) continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK) descriptor_.fail(name_);
        if (w != nullptr) w->ready = w->ready.without(direction_);
      }
      if (late) too_late();
      get_in_line();
      late = !place_->wait(until_, name_);
    }
  }

  // Suspends until a helper thread has read or written a file, however late. It
  // gets a duplicate of the descriptor: the number may be closed, and be given
  // to another file, before its turn comes.
  ssize_t elsewhere(void* p, std::size_t n) {
    get_in_line();
    const descriptor same(check(::fcntl(descriptor_.fd_, F_DUPFD_CLOEXEC, 0),
                                "duplicate descriptor"));
    const std::string what =
        std::string(name_) + ' ' + std::to_string(descriptor_.fd_);
    const ssize_t result = offload([&] {
      return check(direction_ & readable ? ::read(same.fd(), p, n)
                                         : ::write(same.fd(), p, n),
                   what.c_str());
    });
    place_->expect_open(name_);
    return result;
  }

  // Suspends for a while in the middle of the call; fails when late.
  void pause(clock::duration time) {
    if (until_.passed()) too_late();
    get_in_line();
    scheduler_->park(std::min(until_, deadline(time)), {"pausing"});
    place_->expect_open(name_);
  }

 private:
  void get_in_line() {
    if (place_) return;
    if (!descriptor_) errno = EBADF, descriptor_.fail(name_);
    scheduler_ = &this_scheduler();
    descriptor_.watch_here(*scheduler_);
    place_.emplace(*scheduler_, descriptor_.fd_, *descriptor_.watch_,
                   direction_);
  }
  void yield() {
    if (until_.passed()) return;
    get_in_line();
    scheduler_->yield();
    place_->expect_open(name_);
  }
  [[noreturn]] void too_late() {
    throw_late(std::string(name_) + ' ' + std::to_string(descriptor_.fd_));
  }

  descriptor& descriptor_;
  readiness direction_;
  deadline until_;
  const char* name_;
  scheduler* scheduler_;
  std::optional<place_in_line> place_;
};

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/stream.hpp - bytes in and out of a descriptor
//
// Reading asks for as much as there is and keeps what was not wanted yet, so
// that a line, a delimiter or a count of bytes may come in pieces of any size.
// That takes one more copy, which read_some() into memory of yours saves.
//
// A stream changes no flag of its descriptor, which others may share: sockets
// are told with each call not to block, pipes and terminals are polled before
// each, and files are read and written by helper threads.

#include <limits.h>
#include <sys/stat.h>

#include <string_view>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A socket, a pipe, a terminal or a file, which it owns. Move-only. What nobody
// reads is EPIPE to whoever writes, never a SIGPIPE.
//
// All that take an `until` suspend while they have to wait, until then at the
// latest (of a file: until the helper is through, however late); nothing else
// suspends. They throw what interrupts us, and std::system_error whose text
// names the call and the descriptor; its code is std::errc::timed_out when
// late. What was read before that is kept for the next read; where there is no
// memory to keep it, the stream is closed. One task may read while another one
// writes; several that read, or write, take turns in the order in which they
// came. It may be closed or destroyed under them, which is EBADF; it must not
// be moved.
class stream {
 public:
  stream() = default;
  // Owns `fd` from now on. Throws std::system_error when it is not open.
  explicit stream(int fd) : descriptor_(fd), kind_(kind_of(fd)) {}
  stream(stream&& other) noexcept { swap(other); }
  stream& operator=(stream&& other) noexcept {
    stream taken(std::move(other));
    swap(taken);
    return *this;
  }

  int fd() const { return descriptor_.fd(); }
  explicit operator bool() const { return static_cast<bool>(descriptor_); }
  void close() noexcept { descriptor_.close(); }
  // Gives the descriptor away. Throws std::logic_error when bytes that were
  // read ahead would be lost.
  int release() {
    if (ahead() != 0)
      throw std::logic_error("release: there are unread bytes in the buffer");
    return descriptor_.release();
  }

  // At least one byte, at most n: how many. 0 at the end.
  std::size_t read_some(void* p, std::size_t n, deadline until = never);
  // The same, at most `limit` bytes; "" at the end.
  std::string read_some(std::size_t limit = 64 * 1024, deadline until = never);

  // Exactly n bytes. Throws end_of_stream when there are fewer; those are kept.
  void read_exactly(void* p, std::size_t n, deadline until = never);
  std::string read_exactly(std::size_t n, deadline until = never);

  // A line without its \n or \r\n; empty at the end of the stream, which is not
  // an empty line. A last line may lack its end. Throws line_too_long after
  // `limit` bytes without one.
  std::optional<std::string> read_line(std::size_t limit,
                                       deadline until = never);
  std::optional<std::string> read_line(deadline until = never) {
    return read_line(64 * 1024, until);
  }

  // What comes before `delimiter`, which is dropped; empty at the end. Throws
  // line_too_long after `limit` bytes without one, end_of_stream when the end
  // comes in the middle, std::invalid_argument for a delimiter of no bytes.
  std::optional<std::string> read_until(std::string_view delimiter,
                                        std::size_t limit = 64 * 1024,
                                        deadline until = never);

  // Everything up to the end. Throws line_too_long after `limit` bytes.
  std::string read_all(std::size_t limit = SIZE_MAX, deadline until = never);

  // Writes at least one byte (none if n is 0): how many.
  std::size_t write_some(const void* p, std::size_t n, deadline until = never);

  // Writes all of it.
  void write_all(const void* p, std::size_t n, deadline until = never);
  void write_all(std::string_view text, deadline until = never) {
    write_all(text.data(), text.size(), until);
  }
  // Writes several pieces as if they were one.
  void writev(const std::vector<std::string_view>& pieces,
              deadline until = never);

  // The other end will read an end; we may still read. Throws
  // std::system_error.
  void shutdown_write() {
    if (::shutdown(fd(), SHUT_WR) == -1)
      descriptor_.fail("shutting down descriptor");
  }

 protected:
  enum class kind {
    tcp_socket,
    other_socket,
    pollable,
    terminal,
    non_blocking,
    file
  };
  stream(int fd, kind k) : descriptor_(fd), kind_(k) {}

  descriptor descriptor_;

 private:
  static kind kind_of(int fd);
  void swap(stream& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    std::swap(kind_, other.kind_);
    std::swap(buffer_, other.buffer_);
    std::swap(consumed_, other.consumed_);
  }
  std::size_t receive(io_call& reading, void* p, std::size_t n);
  std::size_t send(io_call& writing, const void* p, std::size_t n);
  std::size_t ahead() const { return buffer_.size() - consumed_; }
  bool read_ahead(io_call& reading);
  std::string take_ahead(std::size_t n);
  std::optional<std::string> take_until(io_call& reading,
                                        std::string_view delimiter,
                                        std::size_t limit);

  kind kind_ = kind::other_socket;
  std::string buffer_;  // read ahead, from consumed_ on
  std::size_t consumed_ = 0;
};

inline stream::kind stream::kind_of(int fd) {
  struct stat s;
  if (::fstat(fd, &s) == -1)
    throw_errno("stream: descriptor " + std::to_string(fd));
  if (S_ISREG(s.st_mode) || S_ISBLK(s.st_mode) || S_ISDIR(s.st_mode))
    return kind::file;
  if (S_ISSOCK(s.st_mode)) {
    sockaddr_storage at{};
    socklen_t n = sizeof at;
    ::getsockname(fd, reinterpret_cast<sockaddr*>(&at), &n);
    int type = 0;
    n = sizeof type;
    ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n);
    const bool tcp = type == SOCK_STREAM && at.ss_family != AF_UNIX;
    return tcp ? kind::tcp_socket : kind::other_socket;
  }
  if (::fcntl(fd, F_GETFL) & O_NONBLOCK) return kind::non_blocking;
  return ::isatty(fd) ? kind::terminal : kind::pollable;
}

// Reads from the kernel.
inline std::size_t stream::receive(io_call& reading, void* p, std::size_t n) {
  if (kind_ == kind::file)
    return static_cast<std::size_t>(reading.elsewhere(p, n));
  return static_cast<std::size_t>(reading.retry([&] {
    if (kind_ != kind::tcp_socket && kind_ != kind::other_socket) {
      if (kind_ == kind::non_blocking || poll_now(fd(), readable))
        return sys->read(fd(), p, n);
      errno = EAGAIN;
      return ssize_t{-1};
    }
    const ssize_t got = sys->recv(fd(), p, n, MSG_DONTWAIT);
    // Only TCP: where messages have bounds, more may lie behind them.
    if (got >= 0 && static_cast<std::size_t>(got) < n &&
        kind_ == kind::tcp_socket)
      descriptor_.drained(readable);
    return got;
  }));
}

// Adds what there is to the buffer. False at the end. What there is no memory
// for is lost: nobody shall read on as if it had not been.
//
// It is read into memory that all tasks of the thread share, as nothing comes
// between the arrival and the copy. A buffer on each reader's stack would cost
// a connection two pages, and be cold.
inline bool stream::read_ahead(io_call& reading) {
  constexpr std::size_t size = 16 * 1024;
  auto& shared = this_thread_state().scratch;
  std::unique_ptr<char[]> own;  // a helper thread fills it while others run
  auto& memory = kind_ == kind::file ? own : shared;
  if (memory == nullptr) memory.reset(new char[size]);
  char* const piece = memory.get();
  const std::size_t n = receive(reading, piece, size);
  try {
    buffer_.append(piece, n);
  } catch (...) {
    close();
    throw;
  }
  return n != 0;
}

inline std::string stream::take_ahead(std::size_t n) {
  // All of it can go as it is, unless little lies in much memory.
  if (consumed_ == 0 && n >= buffer_.size() &&
      buffer_.capacity() <= 2 * buffer_.size())
    return std::exchange(buffer_, {});
  std::string taken = buffer_.substr(consumed_, n);
  consumed_ += taken.size();
  if (consumed_ > buffer_.size() / 2) {
    buffer_.erase(0, consumed_);  // moves fewer bytes than were consumed
    consumed_ = 0;
    // An idle connection keeps a small buffer, and does not sit on a large one.
    if (buffer_.capacity() > 64 * 1024) buffer_.shrink_to_fit();
  }
  return taken;
}

// Each public call takes its turn, and keeps it until it is through.

inline std::size_t stream::read_some(void* p, std::size_t n, deadline until) {
  if (n == 0) return 0;
  io_call reading(descriptor_, readable, until, "reading descriptor");
  if (ahead() == 0) return receive(reading, p, n);
  const std::string taken = take_ahead(n);
  std::memcpy(p, taken.data(), taken.size());
  return taken.size();
}

inline std::string stream::read_some(std::size_t limit, deadline until) {
  if (limit == 0) return {};
  io_call reading(descriptor_, readable, until, "reading descriptor");
  if (ahead() == 0) read_ahead(reading);
  return take_ahead(limit);
}

inline std::string stream::read_exactly(std::size_t n, deadline until) {
  io_call reading(descriptor_, readable, until, "reading descriptor");
  while (ahead() < n)
    if (!read_ahead(reading))
      throw end_of_stream("read_exactly: the stream ended after " +
                          std::to_string(ahead()) + " of " + std::to_string(n) +
                          " bytes");
  return take_ahead(n);
}

inline void stream::read_exactly(void* p, std::size_t n, deadline until) {
  const std::string all = read_exactly(n, until);
  std::memcpy(p, all.data(), n);
}

// Empty where the stream ends before a delimiter: what there is stays.
inline std::optional<std::string> stream::take_until(io_call& reading,
                                                     std::string_view delimiter,
                                                     std::size_t limit) {
  if (delimiter.empty())
    throw std::invalid_argument("read_until: the delimiter is empty");
  std::size_t searched = 0;  // from consumed_ on
  for (;;) {
    const auto unread = std::string_view(buffer_).substr(consumed_);
    const std::size_t at = unread.find(delimiter, searched);
    if (at != std::string_view::npos && at <= limit) {
      std::string taken = take_ahead(at + delimiter.size());
      taken.resize(at);
      return taken;
    }
    searched = unread.size() < delimiter.size()
                   ? 0
                   : unread.size() - delimiter.size() + 1;
    if (searched > limit)
      throw line_too_long("read_line or read_until: no end within " +
                          std::to_string(limit) + " bytes");
    if (!read_ahead(reading)) return std::nullopt;
  }
}

inline std::optional<std::string> stream::read_until(std::string_view delimiter,
                                                     std::size_t limit,
                                                     deadline until) {
  io_call reading(descriptor_, readable, until, "reading descriptor");
  auto text = take_until(reading, delimiter, limit);
  if (!text && ahead() != 0)
    throw end_of_stream("read_until: the stream ended before the delimiter");
  return text;
}

inline std::optional<std::string> stream::read_line(std::size_t limit,
                                                    deadline until) {
  io_call reading(descriptor_, readable, until, "reading descriptor");
  auto line = take_until(reading, "\n", limit);
  if (!line && ahead() != 0) return take_ahead(ahead());
  if (line && !line->empty() && line->back() == '\r') line->pop_back();
  return line;
}

inline std::string stream::read_all(std::size_t limit, deadline until) {
  io_call reading(descriptor_, readable, until, "reading descriptor");
  do {
    if (ahead() > limit)
      throw line_too_long("read_all: more than " + std::to_string(limit) +
                          " bytes");
  } while (read_ahead(reading));
  return take_ahead(ahead());
}

// Writes to a pipe. One that nobody reads raises SIGPIPE, and no flag turns
// that off: so the signal is held back meanwhile, and taken away if it has
// come, at the price of two system calls.
inline ssize_t write_quietly(int fd, const void* p, std::size_t n) {
  sigset_t pipe, before, pending;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  ::pthread_sigmask(SIG_BLOCK, &pipe, &before);
  const ssize_t put = sys->write(fd, p, n);
  const int error = errno;
  // Who holds it back himself may want to see it.
  if (put == -1 && error == EPIPE && !sigismember(&before, SIGPIPE)) {
    int taken;
    ::sigpending(&pending);
    if (sigismember(&pending, SIGPIPE)) ::sigwait(&pipe, &taken);
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  errno = error;
  return put;
}

// So much is taken without blocking by a terminal that is writable: a few plain
// bytes, or one that it may turn into several, like the end of a line.
inline std::size_t taken_by_terminal(const void* p, std::size_t n) {
  const auto* const bytes = static_cast<const unsigned char*>(p);
  std::size_t plain = 0;
  while (plain < std::min(n, std::size_t{128}) && bytes[plain] >= ' ') ++plain;
  return std::max(plain, std::size_t{1});
}

inline std::size_t stream::send(io_call& writing, const void* p,
                                std::size_t n) {
  if (kind_ == kind::file)
    return static_cast<std::size_t>(writing.elsewhere(const_cast<void*>(p), n));
  return static_cast<std::size_t>(writing.retry([&] {
    if (kind_ == kind::tcp_socket || kind_ == kind::other_socket)
      return sys->send(fd(), p, n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (kind_ == kind::non_blocking) return write_quietly(fd(), p, n);
    // A pipe that is writable takes this much without blocking.
    const std::size_t most = kind_ == kind::terminal
                                 ? taken_by_terminal(p, n)
                                 : std::min(n, std::size_t{PIPE_BUF});
    if (poll_now(fd(), writable)) return write_quietly(fd(), p, most);
    errno = EAGAIN;
    return ssize_t{-1};
  }));
}

inline std::size_t stream::write_some(const void* p, std::size_t n,
                                      deadline until) {
  if (n == 0) return 0;
  io_call writing(descriptor_, writable, until, "writing descriptor");
  return send(writing, p, n);
}

inline void stream::write_all(const void* p, std::size_t n, deadline until) {
  if (n == 0) return;
  io_call writing(descriptor_, writable, until, "writing descriptor");
  const char* from = static_cast<const char*>(p);
  while (n > 0) {
    const std::size_t put = send(writing, from, n);
    from += put;
    n -= put;
  }
}

inline void stream::writev(const std::vector<std::string_view>& pieces,
                           deadline until) {
  std::string all;  // one copy costs less than many small packets
  for (std::string_view piece : pieces) all += piece;
  write_all(all, until);
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/select.hpp - whatever comes first
//
//     bao::select(bao::on(orders, [&](auto order) { take(*order); }),
//                 bao::on_send(ready, dish, [&] { next_dish(); }),
//                 bao::on(fd, bao::readable, [&] { read_more(); }),
//                 bao::after(5s, [&] { wipe_the_counter(); }));
//
// Exactly one of the cases is taken, and its function called. If several are
// ready it is any of them, by lot, so that none starves. A case that is not
// taken loses nothing: what it would have received stays in the channel, what
// it would have sent with us.
//
// First all are tried in turn, then the task stands in every line at once, and
// leaves them all when it has been woken. The time goes with the number of
// cases: people wait for two or three.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// One thing that a task may wait for, beside others.
class select_case {
 public:
  select_case() = default;
  select_case(const select_case&) = delete;

  // Takes it, if it is ready.
  virtual bool take() { return false; }
  // Has the task woken when it may be. Called before each wait.
  virtual void stand_in_line(scheduler&) {}
  // Whoever woke us has given it to us.
  virtual bool given() const { return false; }
  virtual void leave() {}
  virtual void act() = 0;

  // When it is taken because nothing else is.
  deadline last_resort = never;

 protected:
  ~select_case() = default;

  // Functions may take what the case has to tell, or nothing.
  template <class F, class What>
  static void tell(F& f, What&& what) {
    static_assert(std::is_invocable_v<F&, What&&> || std::is_invocable_v<F&>,
                  "select: a function takes what the case has to tell by "
                  "value, or nothing");
    if constexpr (std::is_invocable_v<F&, What&&>)
      f(std::forward<What>(what));
    else
      f();
  }
};

// One that stands in a line of waiting tasks. The line may go meanwhile, and
// with it what it belongs to: then nothing of that is touched.
class case_in_line : public select_case {
 public:
  bool take() final {
    const bool line_is_gone = stood_ && !place_.woken && !place_.in_list();
    if (line_is_gone) return false;
    line_.enter("select");
    return take_from_line();
  }
  void stand_in_line(scheduler&) final {
    if (std::exchange(stood_, true)) return;
    place_.offer = offer();
    line_.push_back(place_);
  }
  bool given() const final { return place_.woken; }
  void leave() final { place_.leave(); }

 protected:
  explicit case_in_line(wait_queue& line) : line_(line) {}
  ~case_in_line() = default;

  virtual bool take_from_line() = 0;
  virtual void* offer() { return nullptr; }

  wait_queue& line_;
  waiter place_{this_scheduler().running()};
  bool stood_ = false;
};

// --- the cases ---------------------------------------------------------------

template <class T, class Order, class F>
class receive_case final : public case_in_line {
 public:
  receive_case(channel<T, Order>& from, F f)
      : case_in_line(from.receivers_), from_(from), function_(std::move(f)) {}

  void act() override { tell(function_, std::move(got_)); }

 private:
  bool take_from_line() override { return from_.take(got_) || from_.closed(); }
  void* offer() override { return &got_; }

  channel<T, Order>& from_;
  F function_;
  std::optional<T> got_;
};

template <class T, class Order, class F>
class send_case final : public case_in_line {
 public:
  send_case(channel<T, Order>& to, T&& value, F f)
      : case_in_line(to.senders_),
        to_(to),
        value_(value),
        function_(std::move(f)) {}
  send_case(channel<T, Order>& to, const T& value, F f)
      : case_in_line(to.senders_),
        to_(to),
        copy_(value),
        value_(*copy_),
        function_(std::move(f)) {}

  void act() override {
    if (given() && place_.offer == nullptr) to_.throw_closed("select");
    function_();
  }

 private:
  bool take_from_line() override { return to_.put(value_, "select"); }
  void* offer() override { return &value_; }

  channel<T, Order>& to_;
  std::optional<T> copy_;
  T& value_;
  F function_;
};

template <class F>
class event_case final : public case_in_line {
 public:
  event_case(event& e, F f)
      : case_in_line(e.waiters()), event_(e), function_(std::move(f)) {}

  void act() override { function_(); }

 private:
  bool take_from_line() override { return event_.is_set(); }

  event& event_;
  F function_;
};

template <class R, class F>
class task_case final : public select_case {
 public:
  task_case(task<R> t, F f) : task_(std::move(t)), function_(std::move(f)) {}

  bool take() override { return task_.done(); }
  void stand_in_line(scheduler& s) override {
    if (place_.in_list()) return;
    place_.waits = &s.running();
    task_.checked("select").watchers.push_back(place_);
  }
  void leave() override { place_.leave(); }
  void act() override { tell(function_, task_); }

 private:
  task<R> task_;
  F function_;
  joiner place_;
};

template <class F>
class descriptor_case final : public select_case {
 public:
  descriptor_case(int fd, readiness want, F f)
      : fd_(fd), want_(want), function_(std::move(f)) {
    if (!(want & (readable | writable)))
      throw std::invalid_argument("select: neither direction wanted");
  }

  bool take() override {
    if (place_) place_->expect_open("waiting for descriptor");
    ready_ = poll_now(fd_, want_, "select");
    return static_cast<bool>(ready_);
  }
  void stand_in_line(scheduler&) override {
    if (!place_) get_in_line(place_, fd_, want_);
    place_->watch();
  }
  void leave() override { place_.reset(); }
  void act() override { tell(function_, ready_); }

 private:
  int fd_;
  readiness want_, ready_;
  F function_;
  std::optional<place_in_line> place_;
};

template <class F>
class time_case final : public select_case {
 public:
  time_case(deadline until, F f) : function_(std::move(f)) {
    last_resort = until;
  }
  void act() override { function_(); }

 private:
  F function_;
};

// What to select from. None of these suspends. A channel's function is given
// what was received, an optional that is empty when the channel is closed; a
// task's the task, a descriptor's what it is ready for; all may take nothing.

template <class T, class Order, class F>
receive_case<T, Order, F> on(channel<T, Order>& from, F f) {
  return {from, std::move(f)};
}
// With std::move(), the value is moved from if this case is taken.
template <class T, class Order, class F>
send_case<T, Order, F> on_send(channel<T, Order>& to,
                               typename channel<T, Order>::value_type&& value,
                               F f) {
  return {to, std::move(value), std::move(f)};
}
template <class T, class Order, class F>
send_case<T, Order, F> on_send(
    channel<T, Order>& to, const typename channel<T, Order>::value_type& value,
    F f) {
  return {to, value, std::move(f)};
}
template <class F>
event_case<F> on(event& e, F f) {
  return {e, std::move(f)};
}
template <class R, class F>
task_case<R, F> on(task<R> ended, F f) {
  return {std::move(ended), std::move(f)};
}
template <class F>
descriptor_case<F> on(int fd, readiness want, F f) {
  return {fd, want, std::move(f)};
}
// Taken when none of the others is ready until then.
template <class F>
time_case<F> after(deadline until, F f) {
  return {until, std::move(f)};
}
// Taken when none of the others is ready.
template <class F>
time_case<F> otherwise(F f) {
  return {clock::duration{0}, std::move(f)};
}

// --- select ------------------------------------------------------------------

inline select_case& take_any(select_case** cases, std::size_t n) {
  scheduler& s = this_scheduler();
  const std::size_t lot = s.draw_lot() % n;
  const auto taken = [&]() -> select_case* {
    for (std::size_t i = 0; i < n; ++i)
      if (cases[i]->given()) return cases[i];
    for (std::size_t i = 0; i < n; ++i)
      if (cases[(lot + i) % n]->take()) return cases[(lot + i) % n];
    return nullptr;
  };
  const at_end leave([&] {
    for (std::size_t i = 0; i < n; ++i) cases[i]->leave();
  });
  if (s.time_to_yield()) {
    // In line, so that none is touched that goes meanwhile.
    for (std::size_t i = 0; i < n; ++i) cases[i]->stand_in_line(s);
    s.yield();
  }
  if (select_case* const ready = taken()) return *ready;

  select_case* last = cases[0];
  for (std::size_t i = 1; i < n; ++i)
    if (cases[i]->last_resort < last->last_resort) last = cases[i];
  const deadline until = last->last_resort;
  if (until.passed()) return *last;

  for (;;) {
    for (std::size_t i = 0; i < n; ++i) cases[i]->stand_in_line(s);
    const bool in_time = s.park(until, {"selecting"});
    if (select_case* const ready = taken()) return *ready;
    if (!in_time) return *last;
  }
}

// Suspends until one of the cases is ready, takes it, and calls its function;
// and now and then when it need not, to let others run, even with otherwise().
// Returns its number, from 0 on. Throws what the cases do: channel_closed to
// whoever would send, std::system_error for a descriptor; and what interrupts
// us.
template <class... Cases>
std::size_t select(Cases&&... cases) {
  static_assert(sizeof...(cases) > 0, "select: from what?");
  static_assert(!(std::is_lvalue_reference_v<Cases> || ...),
                "select: a case is good for one call: make it there");
  select_case* all[] = {&cases...};
  select_case& taken = take_any(all, sizeof...(cases));
  std::size_t number = 0;
  while (all[number] != &taken) ++number;
  taken.act();
  return number;
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/socket.hpp - addresses, TCP, UDP, unix sockets
//
//     bao::tcp_listener door("127.0.0.1:8080");
//     for (bao::tcp_stream& peer : door)
//       bao::spawn(serve, std::move(peer));
//
//     bao::tcp_stream peer = bao::connect("example.org:80", 5s);
//
// Sockets are non-blocking and close-on-exec from the start, TCP ones without
// Nagle's delay; listeners may reuse an address whose old connections linger.
// The addresses of a name are tried in turn: one that does not answer uses up
// the deadline. Beside the system calls this costs next to nothing, but to look
// up a name takes a helper thread.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Where a socket is: an IPv4 or IPv6 address and a port, or a unix path. None
// of its members suspends.
class address {
 public:
  address() = default;
  address(const sockaddr* from, socklen_t n) : size_(n) {
    if (n > sizeof storage_) throw std::invalid_argument("address: too long");
    std::memcpy(&storage_, from, n);
  }

  // "127.0.0.1:80", "[::1]:80", ":80" (all of IPv4), "unix:/path", and
  // "unix:@name" outside of the file system. No names: see resolve(). Throws
  // std::invalid_argument.
  static address parse(std::string_view text);

  // What parse() takes.
  std::string to_string() const;
  // In host order; 0 for a unix path.
  int port() const;
  int family() const { return storage_.ss_family; }

  const sockaddr* data() const {
    return reinterpret_cast<const sockaddr*>(&storage_);
  }
  sockaddr* data() { return reinterpret_cast<sockaddr*>(&storage_); }
  socklen_t size() const { return size_; }
  socklen_t* size_to_fill() {
    size_ = sizeof storage_;
    return &size_;
  }

 private:
  // Empty unless the host is one in numbers, and there is a port.
  static address numeric(const std::string& host, std::optional<int> port);
  friend std::vector<address> resolve(const std::string&, const std::string&,
                                      deadline);

  sockaddr_storage storage_{};
  socklen_t size_ = 0;
};

// Asks by getsockname() or getpeername().
inline address ask_address(int fd, int (*call)(int, sockaddr*, socklen_t*),
                           const char* name) {
  address a;
  if (call(fd, a.data(), a.size_to_fill()) == -1)
    throw_errno(std::string(name) + ": descriptor " + std::to_string(fd));
  return a;
}
inline address local_address_of(int fd) {
  return ask_address(fd, ::getsockname, "getsockname");
}

// "host:port" in two; the host without brackets.
inline std::pair<std::string, std::string> split_host_port(
    std::string_view text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos)
    throw std::invalid_argument("address: no port in \"" + std::string(text) +
                                '"');
  std::string_view host = text.substr(0, colon);
  const bool brackets =
      host.size() >= 2 && host.front() == '[' && host.back() == ']';
  if (brackets) host = host.substr(1, host.size() - 2);
  if (brackets != (host.find(':') != std::string_view::npos) ||
      text.find('\0') != std::string_view::npos)
    throw std::invalid_argument("address: \"" + std::string(text) +
                                "\" is not host:port; IPv6 is [host]:port");
  return {std::string(host), std::string(text.substr(colon + 1))};
}

inline std::optional<int> parse_port(const std::string& text) {
  if (text.empty() || text.size() > 5) return std::nullopt;
  int port = 0;
  for (char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    port = port * 10 + (c - '0');
  }
  return port <= 65535 ? std::optional<int>(port) : std::nullopt;
}

inline address address::numeric(const std::string& host,
                                std::optional<int> port) {
  address a;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&a.storage_);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&a.storage_);
  if (!port) return a;
  if (::inet_pton(AF_INET, host.empty() ? "0.0.0.0" : host.c_str(),
                  &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<std::uint16_t>(*port));
    a.size_ = sizeof *v4;
  } else if (::inet_pton(AF_INET6, host.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<std::uint16_t>(*port));
    a.size_ = sizeof *v6;
  }
  return a;
}

inline address address::parse(std::string_view text) {
  if (text.substr(0, 5) != "unix:") {
    const auto [host, service] = split_host_port(text);
    const address found = numeric(host, parse_port(service));
    if (found.size() == 0)
      throw std::invalid_argument("address: \"" + std::string(text) +
                                  "\" is not a numeric address and port");
    return found;
  }
  const std::string_view path = text.substr(5);
  address a;
  auto* un = reinterpret_cast<sockaddr_un*>(&a.storage_);
  if (path.empty() || path.size() >= sizeof un->sun_path ||
      path.find('\0') != std::string_view::npos)
    throw std::invalid_argument(
        "address: \"" + std::string(text) + "\": a unix path has 1 to " +
        std::to_string(sizeof un->sun_path - 1) + " bytes");
  un->sun_family = AF_UNIX;
  std::memcpy(un->sun_path, path.data(), path.size());
  a.size_ =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  if (path.front() == '@') {  // abstract: a zero first, and none at the end
    un->sun_path[0] = '\0';
    --a.size_;
  }
  return a;
}

inline std::string address::to_string() const {
  char text[INET6_ADDRSTRLEN] = "";
  const std::string port_text = ':' + std::to_string(port());
  if (family() == AF_INET) {
    auto* v4 = reinterpret_cast<const sockaddr_in*>(&storage_);
    return ::inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text) + port_text;
  }
  if (family() == AF_INET6) {
    auto* v6 = reinterpret_cast<const sockaddr_in6*>(&storage_);
    ::inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
    return '[' + std::string(text) + ']' + port_text;
  }
  if (family() != AF_UNIX) return "";
  auto* un = reinterpret_cast<const sockaddr_un*>(&storage_);
  const std::size_t n = size_ - offsetof(sockaddr_un, sun_path);
  if (size_ <= offsetof(sockaddr_un, sun_path)) return "unix:";
  if (un->sun_path[0] == '\0')
    return "unix:@" + std::string(un->sun_path + 1, n - 1);
  return "unix:" + std::string(un->sun_path, ::strnlen(un->sun_path, n));
}

inline int address::port() const {
  if (family() == AF_INET)
    return ntohs(reinterpret_cast<const sockaddr_in*>(&storage_)->sin_port);
  if (family() == AF_INET6)
    return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_port);
  return 0;
}

// Suspends, `until` at the latest, while a helper thread asks the system for
// the stream addresses of a host and a service; numbers are answered at once.
// Throws std::runtime_error when there is none, std::system_error with
// timed_out when late, std::invalid_argument for an impossible port.
inline std::vector<address> resolve(const std::string& host,
                                    const std::string& service,
                                    deadline until = never) {
  const auto port = parse_port(service);
  if (!port && service.find_first_not_of("0123456789-+ ") == std::string::npos)
    throw std::invalid_argument("resolve: \"" + service + "\" is no port");
  const address known = address::numeric(host, port);
  if (known.size() != 0) return {known};
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  const auto asked = question::ask(new addresses_of(host, service, hints));
  const std::string what = "resolve: " + host + ':' + service;
  if (!asked->wait(until)) throw_late(what);
  const auto& found = static_cast<const addresses_of&>(*asked);
  if (found.result != 0)
    throw std::runtime_error(what + ": " + ::gai_strerror(found.result));
  std::vector<address> all;
  for (const addrinfo* a = found.list; a != nullptr; a = a->ai_next)
    all.emplace_back(a->ai_addr, a->ai_addrlen);
  return all;
}

// A new socket, non-blocking and close-on-exec.
inline int make_socket(int family, int type) {
#if defined(SOCK_NONBLOCK)
  const int flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
  const int fd = check(::socket(family, type | flags, 0), "socket");
#else
  const int fd = check(::socket(family, type, 0), "socket");
  ::fcntl(fd, F_SETFL, O_NONBLOCK);
  ::fcntl(fd, F_SETFD, FD_CLOEXEC);
#endif
  return fd;
}

inline void send_at_once(int fd) {  // no waiting for a fuller packet
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

// A connection: a stream that knows its two ends. To ask for them never
// suspends, and throws std::system_error.
class socket_stream : public stream {
 public:
  socket_stream() = default;
  using stream::stream;

  address peer_address() const {
    return ask_address(fd(), ::getpeername, "getpeername");
  }
  address local_address() const { return local_address_of(fd()); }
};

// Each owns the connected socket that it is made from.
class tcp_stream final : public socket_stream {
 public:
  tcp_stream() = default;
  explicit tcp_stream(int fd) : socket_stream(fd, kind::tcp_socket) {}
};
class unix_stream final : public socket_stream {
 public:
  unix_stream() = default;
  explicit unix_stream(int fd) : socket_stream(fd, kind::other_socket) {}
};

// A new socket, connected to `to`. Suspends until then, `until` at the latest;
// throws std::system_error.
inline int connect_socket(const address& to, deadline until) {
  const bool local = to.family() == AF_UNIX;
  descriptor d(make_socket(to.family(), SOCK_STREAM));
  const std::string what = "connect: " + to.to_string();
  if (!local) send_at_once(d.fd());
  int error = 0;
  growing_pause pause;
  for (;;) {
    if (sys->connect(d.fd(), to.data(), to.size()) == 0) return d.release();
    error = errno;
    // The queue of a unix listener is full, and nobody tells when it is not.
    if (!local || error != EAGAIN) break;
    if (until.passed()) throw_late(what);
    sleep(std::min(until, deadline(pause.next())));
  }
  if (error == EINPROGRESS || error == EINTR) {
    // Under way: the socket becomes writable when it has been decided.
    if (!wait_fd(d.fd(), writable, until)) throw_late(what);
    socklen_t n = sizeof error;
    check(::getsockopt(d.fd(), SOL_SOCKET, SO_ERROR, &error, &n), "getsockopt");
  }
  if (error != 0) throw_errno(what, error);
  return d.release();
}

// Suspends until connected by TCP, `until` at the latest. Throws
// std::system_error, timed_out when late; std::invalid_argument for unix.
inline tcp_stream connect(const address& to, deadline until = never) {
  if (to.family() == AF_UNIX)
    throw std::invalid_argument("connect: " + to.to_string() +
                                " is not for TCP: use connect_unix()");
  return tcp_stream(connect_socket(to, until));
}
// The same to "host:port", where each address of a name is tried in turn.
// Throws what the last one said, what resolve() throws, std::invalid_argument.
inline tcp_stream connect(std::string_view host_port, deadline until = never) {
  const auto [host, service] = split_host_port(host_port);
  const auto all = resolve(host, service, until);
  for (std::size_t i = 0; i + 1 < all.size(); ++i) {
    try {
      return connect(all[i], until);
    } catch (const std::system_error&) {
      if (until.passed()) throw;
    }
  }
  return connect(all.back(), until);
}

// Suspends until connected to a unix listener, at address::parse("unix:/path"),
// `until` at the latest. Throws std::system_error; std::invalid_argument for
// an address of another kind.
inline unix_stream connect_unix(const address& to, deadline until = never) {
  if (to.family() != AF_UNIX)
    throw std::invalid_argument("connect_unix: " + to.to_string() +
                                " is no unix path");
  return unix_stream(connect_socket(to, until));
}

// Never suspends. Two ends of a connection within the process. Throws
// std::system_error.
inline std::pair<unix_stream, unix_stream> socket_pair() {
  int ends[2];
  check(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
  for (int fd : ends) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  return {unix_stream(ends[0]), unix_stream(ends[1])};
}

// A socket at an address. None of its members suspends.
class bound_socket {
 public:
  int port() const { return local_address().port(); }
  address local_address() const { return local_address_of(fd()); }
  int fd() const { return descriptor_.fd(); }
  // Whoever waits for it gets EBADF. Connections not yet accepted are reset.
  void close() noexcept { descriptor_.close(); }

 protected:
  bound_socket(const address& at, int type, bool shared = false)
      : descriptor_(make_socket(at.family(), type)) {
    const bool tcp = type == SOCK_STREAM && at.family() != AF_UNIX;
    const int on = 1;
    if (tcp) ::setsockopt(fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (tcp && shared)
      ::setsockopt(fd(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (::bind(fd(), at.data(), at.size()) == -1)
      throw_errno("bind: " + at.to_string());
  }

  descriptor descriptor_;
};

// Takes connections at an address. Only accept() and a loop over it suspend.
template <class Stream>
class listener : public bound_socket {
 public:
  // At "host:port" in numbers, port 0 for any that is free; at "unix:/path".
  // Throws std::system_error, and std::invalid_argument for another kind of
  // address. The system queues up to `backlog` connections; it divides them
  // among all listeners at an address that share it.
  explicit listener(const address& at, int backlog = 1024, bool shared = false)
      : bound_socket(expected(at), SOCK_STREAM, shared) {
    if (::listen(fd(), backlog) == -1) throw_errno("listen: " + at.to_string());
  }
  explicit listener(std::string_view at, int backlog = 1024)
      : listener(address::parse(at), backlog) {}

  // Suspends until somebody connects. Throws std::system_error: timed_out when
  // late, EBADF when the listener is closed. Where the process has no
  // descriptor left, it says so once and tries again, until `until`.
  Stream accept(deadline until = never) {
    io_call accepting(descriptor_, readable, until, "accepting on descriptor");
    growing_pause pause(std::chrono::milliseconds(10), std::chrono::seconds(1));
    for (;;) {
      const int fd = accepting.retry([&] {
        int got;
        do {
          got = sys->accept(descriptor_.fd(), nullptr, nullptr, accept_flags);
        } while (got == -1 && given_up());
        return got == -1 && out_of_descriptors() ? none_left : got;
      });
      if (fd != none_left) {
        if constexpr (std::is_same_v<Stream, tcp_stream>) send_at_once(fd);
        return Stream(fd);
      }
      if (!std::exchange(complained_, true))
        std::fprintf(stderr, "bao: accept: %s (see ulimit -n); waiting\n",
                     std::strerror(errno));
      accepting.pause(pause.next());
    }
  }

  // For range-for: until it is closed; ++ suspends as accept() does. The
  // listener must outlive the loop.
  using iterator = input_iterator<listener, Stream>;
  iterator begin() { return iterator(*this); }
  iterator end() { return {}; }
  // Suspends like accept(); empty when the listener is closed.
  std::optional<Stream> next() {
    try {
      if (fd() != -1) return accept();
    } catch (const std::system_error& e) {
      if (e.code() != std::errc::bad_file_descriptor) throw;
    }
    return std::nullopt;
  }

 private:
#if defined(SOCK_NONBLOCK)
  static constexpr int accept_flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
#else
  static constexpr int accept_flags = 0;
#endif
  static constexpr int none_left = -2;

  static const address& expected(const address& at) {
    if ((at.family() == AF_UNIX) != std::is_same_v<Stream, unix_stream>)
      throw std::invalid_argument("listener: " + at.to_string() +
                                  " is an address of another kind");
    return at;
  }
  // Who was about to connect has gone again: no fault of ours.
  static bool given_up() {
    return errno == ECONNABORTED || errno == EPROTO || errno == EPERM ||
           errno == ENETDOWN || errno == EHOSTUNREACH || errno == ENETUNREACH ||
           errno == EHOSTDOWN || errno == ENOPROTOOPT || errno == EOPNOTSUPP;
  }
  static bool out_of_descriptors() {
    return errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
           errno == ENOMEM;
  }

  bool complained_ = false;
};

using tcp_listener = listener<tcp_stream>;
using unix_listener = listener<unix_stream>;

// Datagrams. Only send_to() and receive_from() suspend: while they have to
// wait, `until` at the latest. They throw std::system_error, timed_out when
// late.
class udp_socket : public bound_socket {
 public:
  // At "host:port" in numbers, port 0 for any that is free, or at "unix:/path".
  // Throws std::system_error, std::invalid_argument.
  explicit udp_socket(const address& at) : bound_socket(at, SOCK_DGRAM) {}
  explicit udp_socket(std::string_view at) : udp_socket(address::parse(at)) {}

  // Suspends until there is room, and sends one datagram.
  void send_to(std::string_view data, const address& to,
               deadline until = never) {
    iovec piece{const_cast<char*>(data.data()), data.size()};
    msghdr m{};
    m.msg_name = const_cast<sockaddr*>(to.data());
    m.msg_namelen = to.size();
    m.msg_iov = &piece;
    m.msg_iovlen = 1;
    io_call writing(descriptor_, writable, until, "writing descriptor");
    growing_pause pause;
    constexpr ssize_t full = -2;
    while (writing.retry([&] {
      const ssize_t put =
          sys->sendmsg(descriptor_.fd(), &m, MSG_DONTWAIT | MSG_NOSIGNAL);
      const bool again = put == -1 && errno == EAGAIN;
      return again && to.family() == AF_UNIX ? full : put;
    }) == full)
      writing.pause(pause.next());
  }

  struct datagram {
    std::string data;
    address from;
    bool truncated;  // it was longer than `limit`; the rest is lost
  };
  // Suspends until one arrives; keeps its first `limit` bytes.
  datagram receive_from(std::size_t limit = 65536, deadline until = never) {
    datagram d;
    d.data.resize(limit);
    iovec piece{d.data.data(), limit};
    msghdr m{};
    m.msg_iov = &piece;
    m.msg_iovlen = 1;
    io_call reading(descriptor_, readable, until, "reading descriptor");
    const ssize_t n = reading.retry([&] {
      m.msg_name = d.from.data();
      m.msg_namelen = *d.from.size_to_fill();
      return sys->recvmsg(descriptor_.fd(), &m, MSG_DONTWAIT);
    });
    *d.from.size_to_fill() = m.msg_namelen;
    d.truncated = (m.msg_flags & MSG_TRUNC) != 0;
    d.data.resize(static_cast<std::size_t>(n));
    return d;
  }
};

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/server.hpp - a task for each connection
//
//     bao::tcp_server server("127.0.0.1:8080", [](bao::tcp_stream& peer) {
//       while (auto line = peer.read_line()) peer.write_all(*line + "\n");
//     });
//     auto end = bao::on_signal(SIGTERM, [&] { server.stop(5s); });
//     server.serve();
//
// To accept and spawn takes two lines and needs no class. This one adds what a
// program in service needs. It limits how many clients are served at a time:
// the others wait in the system's queue. It ends gracefully: the clients that
// are there may finish in a time of grace, but their handlers are not told, and
// one that waits for a silent client takes all of it. And a server may run on
// several threads, each with a scheduler and a listener of its own, among which
// the system divides the connections:
//
//              port 8080
//     thread 1   thread 2   thread 3        no task ever leaves its thread,
//     |     |    |     |    |     |         nothing is shared but the handler
//    task  task task  task task  task
//
// Beside accept and spawn, a connection costs a note on the heap.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// None of its members suspends. They throw std::invalid_argument for what makes
// no sense.
class server_options {
 public:
  // How many connections are served at a time, on all threads together.
  server_options& max_clients(std::size_t n) {
    if (n == 0 || n > unbounded)
      throw std::invalid_argument("max_clients: " + std::to_string(n));
    most_ = n;
    return *this;
  }
  // How many threads serve, that of serve() included. The handler must be fit
  // for several threads.
  server_options& threads(int n) {
    if (n < 1 || n > 1000)
      throw std::invalid_argument("threads: " + std::to_string(n));
    threads_ = n;
    return *this;
  }
  // How many connections the system may queue up, for each thread.
  server_options& backlog(int n) {
    if (n < 1) throw std::invalid_argument("backlog: " + std::to_string(n));
    backlog_ = n;
    return *this;
  }
  // Other processes may listen at the same address, if they say this as well.
  server_options& shared() {
    shared_ = true;
    return *this;
  }

 private:
  template <class>
  friend class server;
  std::size_t most_ = unbounded;
  int threads_ = 1;
  int backlog_ = 1024;
  bool shared_ = false;
};

// Only serve(), stop() and the destructor suspend. It belongs to the thread
// that made it: there it serves, and is stopped.
template <class Stream>
class server {
 public:
  // Listens from now on, at an address as for a listener, and throws what that
  // throws. handler(peer) takes the stream by value or by reference; when it
  // returns, the connection is closed. Its error ends that connection alone,
  // and goes to on_unhandled().
  template <class Handler>
  server(std::string_view at, Handler handler, server_options options = {})
      : server(address::parse(at), std::move(handler), options) {}
  template <class Handler>
  server(const address& at, Handler handler, server_options options = {})
      : options_(checked(options, at)),
        handler_([own = std::make_shared<Handler>(std::move(handler))](
                     Stream& peer) {
          if constexpr (std::is_invocable_v<Handler&, Stream>)
            (*own)(std::move(peer));
          else
            (*own)(peer);
        }),
        here_(*this, at, 0) {}
  server(const server&) = delete;
  // Stops without grace.
  ~server() {
    if (tasks_have_ended) return;
    shield in_peace;
    stop(clock::duration{0});
  }

  // Both throw std::system_error when it has stopped.
  int port() const { return here_.door.port(); }
  address local_address() const { return here_.door.local_address(); }
  // How many are served on this thread.
  std::size_t clients() const { return here_.size(); }

  // Suspends until it has been stopped. Throws what interrupts us, and
  // std::system_error when it cannot go on; then it has stopped as well. Throws
  // std::logic_error when it serves already.
  void serve() {
    if (stopped_) return;
    if (std::exchange(serves_, true))
      throw std::logic_error("serve: this server serves already");
    try {
      start_threads();
      here_.serve();
      threads_left_.wait();
    } catch (...) {
      shield in_peace;
      stop(clock::duration{0});
      throw;
    }
    for (other_thread& t : threads_)
      if (t.error != nullptr) std::rethrow_exception(t.error);
  }

  // Suspends until all clients have been served, those included who have
  // connected and wait to be accepted. At `grace` it kills those that are left;
  // true if there were none. Then the address can be used again. Throws
  // deadlock when a client's task calls, and what interrupts us: then another
  // stop() has to end it.
  bool stop(deadline grace = std::chrono::seconds(1)) {
    here_.expect_here("stop");
    if (here_.contains(self()))
      throw deadlock(
          "stop: a handler would wait for itself: spawn a task that stops");
    stopped_ = true;
    starting_.wait();
    for (other_thread& t : threads_)
      t.way.post([&t, grace] {
        if (t.mine != nullptr) t.all_served = t.mine->stop(grace);
      });
    bool all = here_.stop(grace);
    threads_left_.wait();
    for (other_thread& t : threads_) {
      all = all && t.all_served;
      if (std::exchange(t.runs, false)) ::pthread_join(t.id, nullptr);
    }
    return all;
  }

 private:
  static server_options checked(server_options o, const address& at) {
    const auto n = static_cast<std::size_t>(o.threads_);
    if (o.most_ < n || (n > 1 && at.family() == AF_UNIX))
      throw std::invalid_argument(
          "server: " + std::to_string(n) + " threads cannot divide " +
          std::to_string(o.most_) + " clients of " + at.to_string());
    return o;
  }

  // What it has on one thread.
  class part final : public task_set {
   public:
    part(server& s, const address& at, std::size_t index)
        : door(at, s.options_.backlog_,
               s.options_.shared_ || s.options_.threads_ > 1),
          server_(s),
          slots_(share(s.options_, index)) {
      expect_here("server");
    }
    ~part() {
      this->end();
      if (stops_.count() == 0) return;
      shield in_peace;
      stops_.wait();
    }

    void expect_here(const char* call) { stopped_.waiters().enter(call); }

    void serve() {
      acceptor_ =
          bao::spawn(task_options(place::nowhere()).name("accepting"), [this] {
            for (;;) accept_one(never, never);
          });
      acceptor_.join();
      if (!acceptor_.killed()) acceptor_.get();
      stopped_.wait();
      stops_.wait();
    }

    bool stop(deadline grace) {
      stops_.add();
      const at_end stopped([this] { stops_.done(); });
      if (acceptor_) acceptor_.kill();
      try {
        // No more than can have come before: others keep coming.
        for (int left = server_.options_.backlog_; left > 0; --left)
          if (!accept_one(grace, clock::duration{0})) break;
      } catch (const std::system_error&) {
        // Nobody else can come in. What the acceptor has met, serve() throws.
        if (!acceptor_ || acceptor_.killed())
          tell_unhandled("stop", std::current_exception());
      }
      close_door();
      const bool all = this->wait(grace, [] { return false; });
      if (!all) has_killed_ = true, this->kill();
      stopped_.set();
      return !has_killed_;
    }

    listener<Stream> door;

   private:
    // False when late: for a slot, or for a connection.
    bool accept_one(deadline slot_until, deadline until) {
      if (!slots_.acquire(slot_until)) return false;
      bool ours = true;  // the slot
      const at_end give_back([&] {
        if (ours) slots_.release();
      });
      if (door.fd() == -1) return false;
      std::optional<Stream> peer;
      try {
        peer.emplace(door.accept(until));
      } catch (const std::system_error& e) {
        if (e.code() == std::errc::timed_out || door.fd() == -1) return false;
        throw;
      }
      const auto t = bao::spawn(
          task_options(place::nowhere()).name("client"),
          [this](Stream s) { server_.handler_(s); }, std::move(*peer));
      this->enter(t.checked("serve"));
      ours = false;  // give_slot_back() does
      return true;
    }
    void give_slot_back() noexcept override { slots_.release(); }
    void close_door() {
      if (door.fd() == -1) return;
      const std::string name = door.local_address().to_string();
      door.close();
      // Else nobody could listen there again.
      if constexpr (std::is_same_v<Stream, unix_stream>)
        if (name.size() > 5 && name[5] != '@') ::unlink(name.c_str() + 5);
    }

    // How many of all clients the thread of that number may serve.
    static std::ptrdiff_t share(const server_options& o, std::size_t index) {
      const auto n = static_cast<std::size_t>(o.threads_);
      return static_cast<std::ptrdiff_t>(o.most_ / n + (index < o.most_ % n));
    }

    server& server_;
    semaphore slots_;
    task<> acceptor_;
    event stopped_;
    wait_group stops_;  // that are under way
    bool has_killed_ = false;
  };

  // One of the other threads.
  struct other_thread {
    other_thread(server& s, address where, std::size_t number)
        : of(s), at(where), index(number) {}

    server& of;
    address at;
    std::size_t index;
    pthread_t id{};
    bool runs = false;
    // From here on set by the thread, before it tells.
    part* mine = nullptr;
    remote way;
    std::exception_ptr error;
    bool all_served = true;
  };

  void start_threads() {
    if (options_.threads_ == 1) return;
    home_ = remote(this_scheduler());
    const address at = local_address();
    for (int i = 1; i < options_.threads_; ++i) {
      other_thread& t =
          threads_.emplace_back(*this, at, static_cast<std::size_t>(i));
      threads_left_.add();
      starting_.add();
      const int failed = ::pthread_create(&t.id, nullptr, run_thread, &t);
      t.runs = failed == 0;
      if (failed == 0) continue;
      threads_left_.done();
      starting_.done();
      throw_errno("pthread_create", failed);
    }
    starting_.wait();
    for (other_thread& t : threads_)
      if (t.error != nullptr) std::rethrow_exception(t.error);
  }

  static void* run_thread(void* one) {
    auto& t = *static_cast<other_thread*>(one);
    remote home = t.of.home_;
    bool started = false;
    const auto has_started = [&] {
      started = true;
      home.post([&s = t.of] { s.starting_.done(); });
    };
    try {
      part mine(t.of, t.at, t.index);
      t.mine = &mine;  // for what is posted here
      const at_end gone([&] { t.mine = nullptr; });
      t.way = remote(this_scheduler());
      has_started();
      mine.serve();
    } catch (...) {
      t.error = std::current_exception();
    }
    if (!started) has_started();
    home.post([&s = t.of] { s.threads_left_.done(); });
    return nullptr;
  }

  server_options options_;
  const std::function<void(Stream&)> handler_;
  part here_;
  bool serves_ = false;
  bool stopped_ = false;
  remote home_;
  std::deque<other_thread> threads_;
  wait_group starting_;
  wait_group threads_left_;
};

using tcp_server = server<tcp_stream>;
using unix_server = server<unix_stream>;

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/signal.hpp - wait for a signal, or have it handled
//
// A signal handler may do next to nothing. Ours counts the signal and rings a
// doorbell; a task that waits for it does the rest, as for any descriptor.
//
//     int which = bao::wait_signal({SIGINT, SIGTERM});
//     auto reload = bao::on_signal(SIGHUP, [] { read_settings(); });
//
// At most 16 tasks may wait at a time; each on_signal() has one. A doorbell
// costs a descriptor, and is kept for the next who waits.

#include <initializer_list>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// What the process has received and nobody has taken yet, and whom to tell.
struct received_signals {
  // Who waits has a seat with a bell. The bell stays when they leave: a handler
  // may be about to ring it.
  struct seat {
    std::atomic<bool> taken{false};
    std::atomic<const doorbell*> bell{nullptr};
  };
  static constexpr int numbers = 65;
  static constexpr int most_waiting = 16;

  std::atomic<int> count[numbers] = {};
  std::atomic<unsigned> arrived[numbers] = {};  // ever, taken or not
  std::atomic<bool> handled[numbers] = {};
  seat seats[most_waiting];

  static void handle(int signal);

  // Puts that handler in place of what the signal did before.
  void begin_to_handle(int signal, const char* call) {
    if (signal <= 0 || signal >= numbers)
      throw_errno(std::string(call) + ": " + std::to_string(signal), EINVAL);
    if (handled[signal].exchange(true)) return;
    struct sigaction ours {};
    ours.sa_handler = handle;
    ours.sa_flags = SA_RESTART;
    sigemptyset(&ours.sa_mask);
    if (::sigaction(signal, &ours, nullptr) != -1) return;
    handled[signal] = false;
    throw_errno("sigaction: signal " + std::to_string(signal));
  }

  // Takes one that has arrived, if any has.
  bool take(int signal) {
    int left = count[signal].load();
    while (left > 0)
      if (count[signal].compare_exchange_weak(left, left - 1)) return true;
    return false;
  }

  // In a child process: those who wait are in the parent, and so are its bells
  // and what it has received.
  void start_over() {
    for (std::atomic<int>& n : count) n = 0;
    for (seat& s : seats) {
      s.taken = false;
      delete s.bell.exchange(nullptr);
    }
  }
};

inline received_signals signals;

inline void received_signals::handle(int signal) {
  signals.count[signal].fetch_add(1);
  signals.arrived[signal].fetch_add(1);
  for (seat& s : signals.seats)
    if (const doorbell* bell = s.bell.load()) bell->ring();
}

// A seat, for as long as it lives.
class signal_seat {
 public:
  // Throws std::runtime_error when there is none.
  explicit signal_seat(const char* call) : seat_(signals.seats) {
    while (seat_->taken.exchange(true))
      if (++seat_ == std::end(signals.seats))
        throw std::runtime_error(std::string(call) +
                                 ": 16 tasks wait for signals already");
    if (seat_->bell.load() != nullptr) return;
    try {
      seat_->bell = new doorbell;
    } catch (...) {
      seat_->taken = false;
      throw;
    }
  }
  signal_seat(signal_seat&& other) noexcept
      : seat_(std::exchange(other.seat_, nullptr)) {}
  ~signal_seat() {
    if (seat_ != nullptr) seat_->taken = false;
  }

  // Suspends until there may be news (true) or `until` passes (false).
  bool wait(deadline until) const {
    const doorbell& bell = *seat_->bell.load();
    if (!wait_fd(bell.fd(), readable, until)) return false;
    bell.answer();
    return true;
  }
  void ring() const noexcept {
    if (const doorbell* bell = seat_->bell.load()) bell->ring();
  }

 private:
  received_signals::seat* seat_;
};

// Suspends until the process receives one of these signals, and returns which;
// 0 when `until` passes. From the first call on, a handler of ours stands in
// place of what they did before: those that arrive while nobody waits are kept
// for the next call. Throws std::system_error, for SIGKILL say,
// std::invalid_argument when none is named, std::runtime_error when 16 tasks
// wait already, and what interrupts us.
inline int wait_signal(std::initializer_list<int> which,
                       deadline until = never) {
  if (which.size() == 0)
    throw std::invalid_argument("wait_signal: no signal is named");
  for (int n : which) signals.begin_to_handle(n, "wait_signal");
  const signal_seat here("wait_signal");
  for (;;) {
    for (int n : which)
      if (signals.take(n)) return n;
    if (!here.wait(until)) return 0;
  }
}

// Shared by a handler, the task that waits for it, and its calls.
struct signal_watch {
  const signal_seat seat{"on_signal"};
  std::atomic<bool> cancelled{false};
};

// What on_signal() returns: while it lives, the signal is looked after.
// Move-only. None of its members suspends, and it may be destroyed on any
// thread.
class signal_handler {
 public:
  signal_handler() = default;
  signal_handler(signal_handler&&) noexcept = default;
  signal_handler& operator=(signal_handler&& other) noexcept {
    cancel();
    watch_ = std::move(other.watch_);
    return *this;
  }
  ~signal_handler() { cancel(); }

  // No call begins any more; one that has begun goes on.
  void cancel() noexcept {
    if (watch_ == nullptr) return;
    watch_->cancelled = true;
    watch_->seat.ring();
    watch_ = nullptr;
  }
  explicit operator bool() const { return watch_ != nullptr; }

  // For on_signal().
  explicit signal_handler(std::shared_ptr<signal_watch> w)
      : watch_(std::move(w)) {}

 private:
  std::shared_ptr<signal_watch> watch_;
};

// Never suspends. Has f(), or f(signal), run as a task of this thread each time
// the signal arrives, for as long as what is returned lives. The signal is
// caught from now on, and for good, as by wait_signal(); several who look after
// the same one share what arrives.
//
// join_all() does not wait for a handler. But while one lives no wait is a
// deadlock, as its signal might end it. Throws as wait_signal() does. When the
// handler goes, its place among the 16 is free after the next turn.
template <class F>
[[nodiscard]] signal_handler on_signal(int signal, F f,
                                       place at = place::here()) {
  struct handler : signal_watch {
    explicit handler(F g) : call(std::move(g)) {}
    F call;
  };
  signals.begin_to_handle(signal, "on_signal");
  const auto on = std::make_shared<handler>(std::move(f));
  const auto call = [on, signal] {
    if (on->cancelled) return;
    if constexpr (std::is_invocable_v<F&, int>)
      on->call(signal);
    else
      static_cast<void>(signal), on->call();
  };
  task<> waits = spawn(task_options(at).name("on_signal"), [=] {
    while (!on->cancelled) {
      if (signals.take(signal))
        spawn(task_options(at).name("signal " + std::to_string(signal)), call);
      else
        on->seat.wait(never);
    }
  });
  waits.checked("on_signal").background = true;
  return signal_handler(on);
}

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/fork.hpp - what a child process begins with
//
// fork() copies the process, and one thread of it: the one that calls. Within
// that thread bao does the same. The child has the task that called fork() and
// no other; the rest stay with the parent, and so do their sockets, their
// timers and the objects on their stacks: no destructor of theirs runs in the
// child. To the child their handles show tasks that were killed.
//
//     parent    main   task 1   task 2 --- fork() --->   main   task 1   task 2
//                                            |
//     child                                  '------------------------> task 2
//
// The child gets a poller, doorbells and helper threads of its own, since
// what it has copied is the parent's: to touch that would steal its events.
// For the same reason remotes made before lead nowhere in the child. When its
// task ends and no other is there, the child exits with status 0; most children
// call exec() or _exit() long before.
//
// It costs nothing until somebody forks, and then some system calls.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Called in the child, by the thread that has forked.
inline void start_over_in_child() {
  try {
    signals.start_over();
    scheduler* const s = tasks_here();
    if (s == nullptr) return;
    mailbox::start_over(*s);
    s->start_over();
  } catch (const std::exception& e) {  // fork() itself is C
    die("fork: ", e.what());
  }
}

// In every program, when it starts.
inline const bool ready_to_fork = [] {
  ::pthread_atfork(nullptr, nullptr, start_over_in_child);
  return true;
}();

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/process.hpp - run other programs
//
//     auto listing = bao::run({"ls", "-l"}, 5s);
//     if (listing.status == 0) show(listing.output);
//
// A child is a program of its own. To us it is a number, and three streams:
//
//     in()  -->  0  the child  1  -->  out()
//                              2  -->  err()
//
// A pipe holds 64 KiB; then whoever writes has to wait. So if we write all of a
// child's input before we read any of its output, and the child does not read
// on while nobody takes its output, both wait for ever. communicate() has a
// task for each pipe, and so does not.
//
// The child begins with what it was given and no other descriptor of bao's,
// with no signal blocked, and with the usual end by SIGPIPE. It is started by
// posix_spawn(), which does not copy our memory: some 150 microseconds, during
// which the thread stands still. Of its end Linux tells by a descriptor;
// elsewhere we ask time and again. Only children made here are waited for:
// those that others have started are theirs.

#include <spawn.h>
#if defined(__linux__)
#include <sys/syscall.h>  // pidfd_open
#endif

extern "C" char** environ;  // POSIX leaves it to the program to declare it

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// What a child is given besides its arguments:
//     bao::process_options().directory("/tmp").stdout_to("log.txt")
// Without more, its input and its outputs are pipes to us. A descriptor stays
// ours, and has to be open until the child has started: stdout_to(1) gives it
// our own output. A file is opened, and made or emptied to write to it;
// "/dev/null" is one. None of its members suspends.
class process_options {
 public:
  // With a copy of our environment, as it is now.
  process_options() {
    for (char** ours = environ; ours != nullptr && *ours != nullptr; ++ours)
      environment_.push_back(*ours);
  }

  // Where it starts, and from where a program named "./so" is looked for.
  process_options& directory(std::string path) {
    return directory_ = std::move(path), *this;
  }
  // One variable more, or another value. Throws std::invalid_argument for a
  // name that cannot be one.
  process_options& env(const std::string& name, const std::string& value);
  // None but those that are set from here on.
  process_options& clear_env() { return environment_.clear(), *this; }

  process_options& stdin_from(int fd) { return connect(0, fd); }
  process_options& stdin_from(std::string file) {
    return connect(0, a_file, std::move(file));
  }
  process_options& stdout_to(int fd) { return connect(1, fd); }
  process_options& stdout_to(std::string file) {
    return connect(1, a_file, std::move(file));
  }
  process_options& stderr_to(int fd) { return connect(2, fd); }
  process_options& stderr_to(std::string file) {
    return connect(2, a_file, std::move(file));
  }
  // Both outputs are one, as by 2>&1 in a shell.
  process_options& stderr_to_stdout() { return connect(2, its_output); }

 private:
  friend class process;

  enum : int { a_pipe = -2, a_file = -3, its_output = -4 };  // or a descriptor
  struct end {
    int fd = a_pipe;
    std::string file;
  };

  process_options& connect(int number, int fd, std::string file = {}) {
    return ends_[number] = {fd, std::move(file)}, *this;
  }

  std::string directory_;
  std::vector<std::string> environment_;
  end ends_[3];
};

struct process_result {
  std::string output, errors;
  int status = 0;  // as wait() tells it
};

// A child. Move-only; the calls of an empty one throw std::logic_error. It must
// neither be moved nor destroyed while a task uses it.
//
// Only communicate() and wait() suspend, until `until` at the latest; they
// throw what interrupts us, and the child runs on. All throw std::system_error
// whose text names the call: "waitpid" with ECHILD where others take the ends
// of our children, or the program ignores SIGCHLD.
//
// A child that has not ended is killed when its object goes. That blocks the
// thread until it is gone: some 100 microseconds, longer if it has much memory.
class process {
 public:
  process() = default;
  // Starts a program, looked for along our PATH unless its name has a /.
  // Throws std::system_error when that fails, also in the child: there is no
  // such program or directory, there are no descriptors left; and
  // std::invalid_argument when nothing is named, or a text has a NUL byte.
  explicit process(std::vector<std::string> command,
                   process_options options = {});
  process(process&& other) noexcept : my_(std::exchange(other.my_, {})) {}
  process& operator=(process&& other) noexcept {
    process taken(std::move(other));
    std::swap(my_, taken.my_);
    return *this;
  }
  ~process();

  explicit operator bool() const { return my_.pid != 0; }
  pid_t pid() const { return expect_one("pid"), my_.pid; }

  // What it reads and writes. Where that is not a pipe, they are empty.
  stream& in() { return expect_one("in"), my_.in; }
  stream& out() { return expect_one("out"), my_.out; }
  stream& err() { return expect_one("err"), my_.err; }

  // Writes `input`, closes in(), reads both outputs up to their ends, and waits
  // for the end of the child, which need not read its input. Throws
  // std::errc::timed_out when late. After that, or an interruption, it may be
  // called again: it goes on where it was, with what is left of the input
  // first. Throws std::logic_error while another task is at it.
  //
  // The outputs end when nobody can write to them any more, neither the child
  // nor those whom it has started.
  process_result communicate(std::string_view input, deadline until = never);
  process_result communicate(deadline until = never) {
    return communicate({}, until);
  }

  // Until it has ended: what it exited with, or -n when signal n was its end.
  // Empty when late.
  std::optional<int> wait(deadline until = never);
  bool running();
  // Sends it a signal, unless it has ended.
  void kill(int signal = SIGKILL);

 private:
  void expect_one(const char* call) const {
    if (my_.pid == 0)
      throw std::logic_error(std::string(call) + ": there is no process here");
  }
  std::string text(const char* call) const {
    return std::string(call) + ": process " + std::to_string(my_.pid);
  }
  void feed();

  struct state {
    pid_t pid = 0;
    std::optional<int> status;  // once it is reaped
    stream in, out, err;
    bool communicates = false;
    std::string input;           // what communicate() has still to write
    std::size_t fed = 0;         // but for so much of it
    std::string output, errors;  // what it has read to the end
  } my_;
};

// Suspends as communicate() does. Runs a program to its end; when this is late
// or interrupted, the child is killed.
inline process_result run(std::vector<std::string> command,
                          process_options options, std::string_view input,
                          deadline until = never) {
  process child(std::move(command), std::move(options));
  return child.communicate(input, until);
}
inline process_result run(std::vector<std::string> command,
                          process_options options, deadline until = never) {
  return run(std::move(command), std::move(options), {}, until);
}
inline process_result run(std::vector<std::string> command,
                          std::string_view input, deadline until = never) {
  return run(std::move(command), process_options(), input, until);
}
inline process_result run(std::vector<std::string> command,
                          deadline until = never) {
  return run(std::move(command), process_options(), {}, until);
}

// --- before it starts --------------------------------------------------------

inline process_options& process_options::env(const std::string& name,
                                             const std::string& value) {
  if (name.empty() || name.find('=') != std::string::npos)
    throw std::invalid_argument("env: \"" + name + "\" is no name");
  const std::string begin = name + '=';
  for (std::string& variable : environment_)
    if (variable.compare(0, begin.size(), begin) == 0)
      return variable = begin + value, *this;
  environment_.push_back(begin + value);
  return *this;
}

inline const char* c_string(const std::string& text) {
  if (text.find('\0') == std::string::npos) return text.c_str();
  throw std::invalid_argument(
      std::string("process: there is a NUL byte after \"") + text.c_str() +
      '"');
}

// As C takes them: null comes last.
inline std::vector<char*> c_strings(std::vector<std::string>& texts) {
  std::vector<char*> all;
  for (std::string& text : texts) c_string(text), all.push_back(text.data());
  all.push_back(nullptr);
  return all;
}

// A duplicate that is none of 0, 1 and 2, where one of ours is closed: what is
// to become one of those in the child must not be overwritten by another that
// does so first, and nobody shall print into a pipe of ours.
inline descriptor duplicate_above_2(int fd) {
  const int made = ::fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (made == -1) throw_errno("process: descriptor " + std::to_string(fd));
  return descriptor(made);
}

// A new pipe: read from its first end what is written to the other.
inline void make_pipe(descriptor (&its)[2]) {
  int ends[2];
#if defined(__APPLE__)
  check(::pipe(ends), "pipe");
  for (int fd : ends) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
#else
  check(::pipe2(ends, O_CLOEXEC), "pipe2");
#endif
  for (int i = 0; i < 2; ++i) its[i] = descriptor(ends[i]);
}

// What posix_spawn() is told.
class child_setup {
 public:
  child_setup() {
    expect(::posix_spawnattr_init(&attributes_), "posix_spawn");
    expect(::posix_spawn_file_actions_init(&actions_), "posix_spawn");
    sigset_t blocked, usual;
    sigemptyset(&blocked);
    sigemptyset(&usual);
    sigaddset(&usual, SIGPIPE);  // those with a handler become so anyway
    ::posix_spawnattr_setsigmask(&attributes_, &blocked);
    ::posix_spawnattr_setsigdefault(&attributes_, &usual);
    ::posix_spawnattr_setflags(&attributes_,
                               POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  child_setup(const child_setup&) = delete;
  ~child_setup() {
    ::posix_spawnattr_destroy(&attributes_);
    ::posix_spawn_file_actions_destroy(&actions_);
  }

  void connect(int fd, int number) {
    expect(::posix_spawn_file_actions_adddup2(&actions_, fd, number),
           "posix_spawn");
  }
  void change_directory(const char* path) {
#if defined(__GLIBC__) && __GLIBC__ == 2 && __GLIBC_MINOR__ < 29
    static_cast<void>(path);
    expect(ENOSYS, "posix_spawn_file_actions_addchdir_np");
#else
    expect(::posix_spawn_file_actions_addchdir_np(&actions_, path),
           "posix_spawn_file_actions_addchdir_np");
#endif
  }
  pid_t spawn(char* const* words, char* const* variables,
              const std::string& what) {
    pid_t made = 0;
    expect(::posix_spawnp(&made, words[0], &actions_, &attributes_, words,
                          variables),
           what);
    return made;
  }

 private:
  static void expect(int error, const std::string& call) {
    if (error != 0) throw_errno(call, error);
  }

  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

inline process::process(std::vector<std::string> command,
                        process_options options) {
  if (command.empty())
    throw std::invalid_argument("process: no program is named");
  const std::vector<char*> words = c_strings(command);
  const std::vector<char*> variables = c_strings(options.environment_);

  child_setup setup;
  std::string what = "posix_spawn: \"" + command[0] + '"';
  if (!options.directory_.empty()) {
    setup.change_directory(c_string(options.directory_));
    what += " in " + options.directory_;
  }
  // The child's ends are closed here when it has them: while we could write to
  // its output ourselves, we would never read an end of it.
  descriptor its[3];
  stream* const ours[] = {&my_.in, &my_.out, &my_.err};
  for (int i = 0; i < 3; ++i) {
    const auto& [fd, file] = options.ends_[i];
    if (fd == options.its_output) {
      setup.connect(1, i);
      continue;
    }
    descriptor given;
    if (fd == options.a_pipe) {
      descriptor ends[2];
      make_pipe(ends);
      *ours[i] = stream(duplicate_above_2(ends[i == 0].fd()).release());
      given = std::move(ends[i != 0]);
    } else if (fd == options.a_file) {
      const int how = i == 0 ? O_RDONLY : O_WRONLY | O_CREAT | O_TRUNC;
      given = descriptor(::open(c_string(file), how | O_CLOEXEC, 0666));
      if (!given) throw_errno("open: " + file);
    }
    its[i] = duplicate_above_2(given ? given.fd() : fd);
    setup.connect(its[i].fd(), i);
  }
  my_.pid = setup.spawn(words.data(), variables.data(), what);
}

// --- while it runs -----------------------------------------------------------

// Until it is reaped, its number is given to nobody else: so whom we signal is
// our child, or what is left of it. One that we may not kill, having changed
// its user, is left alone; and in a child of ours by fork(), a sibling is.
inline process::~process() {
  if (my_.pid == 0 || my_.status) return;
  if (hook::original::waitpid(my_.pid, nullptr, WNOHANG) != 0) return;
  if (::kill(my_.pid, SIGKILL) == -1) return;
  while (hook::original::waitpid(my_.pid, nullptr, 0) == -1 && errno == EINTR) {
  }
}

inline bool process::running() {
  expect_one("running");
  if (my_.status) return false;
  int how = 0;
  const pid_t ended = hook::original::waitpid(my_.pid, &how, WNOHANG);
  if (ended == -1) throw_errno(text("waitpid"));
  if (ended == 0) return true;
  my_.status = WIFSIGNALED(how) ? -WTERMSIG(how) : WEXITSTATUS(how);
  return false;
}

inline void process::kill(int signal) {
  expect_one("kill");
  if (running() && ::kill(my_.pid, signal) == -1) throw_errno(text("kill"));
}

// Becomes readable when the child has ended. Empty where there is no such thing
// or none to spare.
inline descriptor watch_process(pid_t pid) {
#if defined(SYS_pidfd_open)
  return descriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
#else
  static_cast<void>(pid);
  return {};
#endif
}

inline std::optional<int> process::wait(deadline until) {
  expect_one("wait");
  if (running() && !until.passed()) {
    if (const descriptor end = watch_process(my_.pid))
      wait_fd(end.fd(), readable, until);
    growing_pause pause;
    while (running() && !until.passed())
      sleep(std::min(until, deadline(pause.next())));
  }
  return my_.status;
}

inline void process::feed() {
  try {
    while (my_.fed < my_.input.size())
      my_.fed += my_.in.write_some(my_.input.data() + my_.fed,
                                   my_.input.size() - my_.fed);
  } catch (const std::system_error& e) {
    if (e.code() != std::errc::broken_pipe) throw;
  }
  my_.input.clear();
  my_.fed = 0;
  my_.in.close();
}

inline process_result process::communicate(std::string_view input,
                                           deadline until) {
  expect_one("communicate");
  if (my_.communicates)
    throw std::logic_error(text("communicate") + ": another task does");
  if (!input.empty() && !my_.in)
    throw std::logic_error(text("communicate") +
                           ": its input is no pipe of ours, or is closed");
  my_.input += input;
  my_.communicates = true;
  const at_end others_may([this] { my_.communicates = false; });
  const bool in_time = with_timeout(until, [&] {
    group helpers;
    const auto help = [&](void (*f)(process&)) {
      helpers.spawn(task_options(place::nowhere()).name(text("communicate")),
                    [this, f] { f(*this); });
    };
    help([](process& p) { p.feed(); });
    help([](process& p) {
      if (p.my_.err) p.my_.errors += p.my_.err.read_all();
    });
    if (my_.out) my_.output += my_.out.read_all();
    helpers.join();
    wait();
  });
  if (!in_time) throw_late(text("communicate"));
  return {std::exchange(my_.output, {}), std::exchange(my_.errors, {}),
          *my_.status};
}

}  // namespace BAO_ABI
}  // namespace bao

// VI. Optional

// =============================================================================
// bao/virtual_time.hpp - tests that sleep take no time, and replay
//
//     bao::virtual_time clock;  // as long as it lives, on this thread
//     bao::sleep(24h);          // returns at once; bao::now() is a day later
//
// When every task waits and nothing is ready outside, the clock jumps to the
// next timer. What is ready outside comes first, and helper threads that are at
// work are waited for: they take no time on this clock. Nobody else outside is
// waited for while a timer is set: a peer in another process is always late.
//
// A program may be wrong, and yet right as long as its tasks run in the order
// in which they became ready. With a seed they run in another one, and so ring
// the timers that are due at once; the same seed gives the same order again:
//
//     for (std::uint64_t seed = 0; seed < 200; ++seed) {
//       bao::virtual_time clock(seed);
//       test();                          // print the seed when it fails
//     }
//
// What depends on other threads or processes is not replayed. To make system
// calls fail, derive from this class, and override them.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// None of its members suspends.
class virtual_time : public system_calls {
 public:
  // From now on this thread's clock is ours. It shows the same time as before.
  // When it goes, the time is that outside again: whoever waits still, waits
  // until the virtual time that was set.
  [[nodiscard]] virtual_time()
      : before_(std::exchange(sys, this)), now_(before_->now()) {}
  // The same, and the order of what happens at once depends on `seed`.
  [[nodiscard]] explicit virtual_time(std::uint64_t seed) : virtual_time() {
    seeded_ = true;
    state_ = seed;
    this_scheduler().shuffle(random());
  }
  virtual_time(const virtual_time&) = delete;
  virtual ~virtual_time() {
    sys = before_;
    if (scheduler* const s = tasks_here())
      s->shuffle(before_->chooses() ? before_->choose(std::size_t(-1)) : 0);
  }

  // Lets time pass as if the running task had computed for so long. Throws
  // std::invalid_argument when it would go back.
  void advance(std::chrono::nanoseconds by) {
    if (by.count() < 0) throw std::invalid_argument("advance: time goes on");
    now_ += by.count();
  }

  // The next number of those that the seed stands for, by SplitMix64 (Steele,
  // Lea and Flood, 2014): for what else a test has to choose.
  std::uint64_t random() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  nanoseconds now() override { return now_; }
  nanoseconds may_sleep(nanoseconds until, bool jobs) override {
    return jobs && until > now_ ? -1 : 0;
  }
  void slept_until(nanoseconds until) override {
    if (until > now_) now_ = until;
  }
  bool chooses() override { return seeded_; }
  std::size_t choose(std::size_t n) override { return random() % n; }

 private:
  system_calls* before_;
  nanoseconds now_;
  bool seeded_ = false;
  std::uint64_t state_ = 0;
};

}  // namespace BAO_ABI
}  // namespace bao

// =============================================================================
// bao/hook.hpp - libc's blocking calls, for tasks
//
// Functions with the names, the arguments and the errno of libc's, that suspend
// where libc's would block the thread. A program may call them by name;
// patch.hpp makes every library call them.
//
// Whether a descriptor blocks, and how long a socket's SO_RCVTIMEO is, is the
// kernel's to know: a table of ours would be wrong after the next dup(), fork()
// or fcntl() elsewhere. So none of it is remembered, and the flags of a
// descriptor stay what they are. Each call is made so that it cannot block;
// only when it would have is the kernel asked:
//
//     recv(MSG_DONTWAIT) --> data? --yes--> return it
//          ^                   no
//          |      O_NONBLOCK? --yes--> EAGAIN, as its owner wants
//          |                   no
//          '--- park until readable, or until SO_RCVTIMEO has passed
//
// A file that no poller can watch blocks, as ever. On threads without tasks, in
// callbacks of ended tasks and under patch_off, each function is libc's own,
// some ns later.
//
// The caller may be C, through which nothing can be thrown. So a kill makes a
// call fail with ECANCELED, and a limit that has passed with ETIMEDOUT; the
// exception itself is thrown at the task's next wait that is bao's. A signal
// whose handler has run does not end a call, as if all had SA_RESTART.

#if defined(__GLIBC__)
#include <limits.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <new>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {
namespace hook {

// --- what they share ---------------------------------------------------------

// This thread's tasks, to wait with; null when the call is to be libc's own.
inline scheduler* here() {
  scheduler* const s = tasks_here();
  if (s == nullptr) return nullptr;
  const task_block& me = s->running();
  return me.stage == task_state::running && me.unpatched == 0 ? s : nullptr;
}

inline int fail(int error) {
  errno = error;
  return -1;
}

// What call() returns, or failed(error) when it throws. What interrupts a task
// is never thrown here.
template <class Call, class Failed = int (*)(int)>
auto for_c(Call call, Failed failed = fail) -> decltype(call()) try {
  return call();
} catch (const std::system_error& e) {
  return failed(e.code().value());
} catch (const std::bad_alloc&) {
  return failed(ENOMEM);
}

inline bool is_non_blocking(int fd) {
  const int flags = original::fcntl(fd, F_GETFL, nullptr);
  return flags != -1 && (flags & O_NONBLOCK) != 0;
}

// Whether a call may be made; errno says why not. Suspends when the task is
// interrupted, and every so many calls: else a loop of calls that fail, or
// never wait, would keep the thread. But not for a descriptor that does not
// block: a signal handler writes to such, and nobody must run in its middle.
inline bool may_begin(scheduler& s, int fd = -1) {
  const int errno_before = errno;
  int error = s.interrupted_in_c();
  if (error != 0 || s.time_to_yield()) {
    if (fd != -1 && is_non_blocking(fd))
      error = 0;
    else
      s.yield_in_c();
  }
  errno = error != 0 ? error : errno_before;
  return error == 0;
}

// What poll() says right now; nothing where a signal interrupts it.
inline int poll_says(int fd, int events) {
  pollfd p{fd, static_cast<short>(events), 0};
  return original::poll(&p, 1, 0) == 1 ? p.revents : 0;
}
// Whether a call in this direction would not block now.
inline bool is_ready(int fd, readiness direction) {
  return poll_says(fd, direction == readable ? POLLIN : POLLOUT) != 0;
}

// Calls call() with O_NONBLOCK set. Others who use the same open file see that
// too: so this is for calls alone that take no flag such as MSG_DONTWAIT.
template <class Call>
auto without_blocking(int fd, Call call) -> decltype(call()) {
  const int flags = original::fcntl(fd, F_GETFL, nullptr);
  if (flags == -1 || (flags & O_NONBLOCK) != 0) return call();
  const auto set = [&](long to) {
    original::fcntl(fd, F_SETFL, reinterpret_cast<void*>(to));
  };
  set(flags | O_NONBLOCK);
  const auto result = call();
  const int error = errno;
  set(flags);
  errno = error;
  return result;
}

inline bool is_time(const timespec& t) {
  return t.tv_sec >= 0 && t.tv_nsec >= 0 && t.tv_nsec < 1000000000;
}
// At most 250 years, which nanoseconds can count.
inline clock::duration duration_of(const timespec& t) {
  constexpr nanoseconds most = 8000000000;
  const nanoseconds seconds = std::min<nanoseconds>(t.tv_sec, most);
  return clock::duration(seconds * 1000000000 + t.tv_nsec);
}
inline deadline in_time(const timespec* t) {
  return t == nullptr ? never : deadline(duration_of(*t));
}
inline deadline in_milliseconds(int ms) {
  return ms < 0 ? never : clock::duration(nanoseconds{ms} * 1000000);
}

inline int option_of(int fd, int which) {
  int value = 0;
  socklen_t size = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, which, &value, &size) == 0 ? value : -1;
}
inline bool is_stream_socket(int fd) {
  return option_of(fd, SO_TYPE) == SOCK_STREAM;
}
inline bool is_tcp(int fd) { return option_of(fd, SO_PROTOCOL) == IPPROTO_TCP; }
inline bool is_unix_socket(int fd) {
  return option_of(fd, SO_DOMAIN) == AF_UNIX;
}

// Until when a socket's own limit, SO_RCVTIMEO or SO_SNDTIMEO, lets a call wait
// that has begun at `begin`.
inline deadline limit_of(int fd, readiness direction,
                         clock::time_point begin = now()) {
  timeval t{};
  socklen_t size = sizeof t;
  const int which = direction == readable ? SO_RCVTIMEO : SO_SNDTIMEO;
  if (::getsockopt(fd, SOL_SOCKET, which, &t, &size) == -1 ||
      (t.tv_sec == 0 && t.tv_usec == 0))
    return never;
  return begin + duration_of({t.tv_sec, t.tv_usec * 1000});
}

// Suspends until it is time to try again where the kernel gives no word, or
// until `until`. Returns 0, ETIME when that has passed before, or what
// interrupts the task.
inline int pause(scheduler& s, growing_pause& pauses, deadline until = never) {
  if (until.passed()) return ETIME;
  const int error =
      s.park_in_c(std::min(until, deadline(pauses.next())), {"pausing"});
  return error == ETIME ? 0 : error;
}

// One call of C's about one descriptor, however many system calls it takes.
class call {
 public:
  // `asked` is how much a plain read asks for, else 0: one that gets less has
  // emptied a TCP socket, and the next one waits without trying.
  call(scheduler& s, int fd, readiness want, std::size_t asked = 0)
      : scheduler_(s), fd_(fd), want_(want), asked_(asked) {}
  call(const call&) = delete;

  // Calls attempt(), which does not block, until it does not fail with EAGAIN;
  // suspends in between. block() is the call itself, for what cannot be waited
  // for.
  template <class Attempt, class Block>
  ssize_t retry(Attempt attempt, Block block) {
    if (!may_begin(scheduler_, fd_)) return -1;
    growing_pause pauses;
    poller& p = scheduler_.poller();
    bool empty = asked_ != 0 && p.emptied(fd_) && !is_non_blocking(fd_);
    for (;; empty = false) {
      const ssize_t result = empty ? fail(EAGAIN) : attempt();
      if (result != -1) {
        if (result > 0 && static_cast<std::size_t>(result) < asked_)
          p.read_short(fd_, [&] { return is_tcp(fd_); });
        errno = errno_before_;
        return result;
      }
      if (errno != EAGAIN) return -1;
      // Asked before, where it was taken to be empty or the limit is known.
      if (!knows_limit_ && !empty && is_non_blocking(fd_)) return fail(EAGAIN);
      const int events = want_ == readable ? POLLIN | POLLRDHUP : POLLOUT;
      const int news = has_waited_ ? poll_says(fd_, events) : 0;
      // After shutdown(), only the blocking call tells a datagram socket's end.
      if ((news & POLLRDHUP) != 0) return block();
      has_waited_ = true;
      if (news == 0) pauses = growing_pause();
      switch (const int error =
                  news == 0 ? wait() : wait_without_word(pauses)) {
        case 0:
          break;
        case EPERM:
          return block();
        case ETIME:
          return fail(EAGAIN);
        default:
          return fail(error);
      }
    }
  }

  // The same for a socket: attempt(flags) is the call, with these in addition.
  template <class Attempt>
  ssize_t retry(Attempt attempt) {
    return retry([&] { return attempt(MSG_DONTWAIT); },
                 [&] { return attempt(0); });
  }

  // The same until `n` bytes are through: piece(done) is the call for the rest.
  // Less when that ends, or fails on the way.
  template <class Piece, class Block>
  ssize_t all(std::size_t n, Piece piece, Block block) {
    std::size_t done = 0;
    do {
      const ssize_t more = for_c([&] {
        return retry([&] { return piece(done); }, [&] { return block(done); });
      });
      if (more <= 0) {
        if (done == 0) return more;
        errno = errno_before_;
        break;
      }
      done += static_cast<std::size_t>(more);
      // Unix sockets give each piece that they take the whole time.
      if (began_ != not_yet && done < n && is_unix_socket(fd_))
        began_ = not_yet, knows_limit_ = false;
    } while (done < n);
    return static_cast<ssize_t>(done);
  }

  // Suspends until there may be news. Returns 0, ETIME when late, EPERM for
  // what is always ready, or another error. Most replies come within a
  // millisecond, so two system calls wait for that: to tell the poller anew
  // what it was told last time of this descriptor, and to ask for the socket's
  // own limit, which is at least a tick of the kernel's clock.
  int wait() {
    if (knows_limit_) return wait(until_);
    constexpr clock::duration a_millisecond(1000000);
    const int error = wait(began() + a_millisecond, false);
    if (error != ETIME) return error;
    scheduler_.poller().doubt(fd_);
    learn_limit();
    return 0;
  }
  // The same where poll() says ready and the call still finds nothing: an error
  // is kept for MSG_ERRQUEUE, or the unix socket at the other end has no room.
  int wait_without_word(growing_pause& pauses) {
    learn_limit();
    return pause(scheduler_, pauses, until_);
  }
  int wait(deadline until, bool anew = true) {
    const auto park = [&] {
      // Kept from one wait to the next: to leave wakes those who stay.
      if (!place_) get_in_line(place_, fd_, want_);
      if (place_->closed()) return EBADF;
      if (!place_->watch_again(anew)) return EPERM;
      const int error =
          scheduler_.park_in_c(until, {"waiting for descriptor", fd_});
      return place_->closed() ? EBADF : error;
    };
    return for_c(park, [](int error) { return error; });
  }

  // Suspends until it is ready, unless it does not block. Returns 0, or an
  // error. What is not open in this direction is ready: the call fails.
  int until_ready() {
    const int other_way = want_ == readable ? O_WRONLY : O_RDONLY;
    while (!is_ready(fd_, want_)) {
      const int flags = original::fcntl(fd_, F_GETFL, nullptr);
      if (flags == -1 || (flags & O_NONBLOCK) != 0 ||
          (flags & O_ACCMODE) == other_way)
        return 0;
      const int error = wait(never);
      if (error != 0) return error == EPERM ? 0 : error;
    }
    return 0;
  }

  bool has_waited() const { return has_waited_; }

 private:
  // When it first had to wait. It may have been woken for others since, any
  // number of times.
  clock::time_point began() {
    if (began_ == not_yet) began_ = now();
    return began_;
  }
  void learn_limit() {
    if (!knows_limit_) until_ = limit_of(fd_, want_, began());
    knows_limit_ = true;
  }

  scheduler& scheduler_;
  const int fd_;
  const readiness want_;
  const std::size_t asked_;
  const int errno_before_ = errno;
  bool has_waited_ = false;
  static constexpr clock::time_point not_yet = clock::time_point::min();
  clock::time_point began_ = not_yet;  // to wait
  bool knows_limit_ = false;
  deadline until_ = never;  // the socket's own limit, once it is known
  std::optional<place_in_line> place_;  // from the first wait on
};

// --- parts of messages -------------------------------------------------------

inline std::size_t bytes_of(const iovec* parts, std::size_t n) {
  std::size_t all = 0;
  for (std::size_t i = 0; i < n; ++i) all += parts[i].iov_len;
  return all;
}

// A message of these parts, which no call changes.
inline msghdr message_of(const iovec* parts, std::size_t n) {
  msghdr m{};
  m.msg_iov = const_cast<iovec*>(parts);
  m.msg_iovlen = n;
  return m;
}

// The parts that are left after so many bytes. Throws std::bad_alloc where it
// needs memory: for several, when the first has been begun.
class rest_of {
 public:
  rest_of(const iovec* parts, std::size_t n, std::size_t done)
      : parts_(parts), n_(n) {
    while (n_ > 0 && done >= parts_->iov_len) done -= (parts_++)->iov_len, --n_;
    if (n_ == 0 || done == 0) return;
    first_ = *parts_;
    first_.iov_base = static_cast<char*>(first_.iov_base) + done;
    first_.iov_len -= done;
    if (n_ > 1) {
      all_.assign(parts_, parts_ + n_);
      all_[0] = first_;
    }
    parts_ = n_ > 1 ? all_.data() : &first_;
  }
  rest_of(const rest_of&) = delete;

  const iovec* parts() const { return parts_; }
  int count() const { return static_cast<int>(n_); }
  msghdr message() const { return message_of(parts_, n_); }

 private:
  const iovec* parts_;
  std::size_t n_;
  iovec first_{};
  std::vector<iovec> all_;
};

// --- sockets -----------------------------------------------------------------

// Errors and urgent data are not waited for, by sockets that can have them.
inline bool never_waits(int fd, int flags) {
  return (flags & MSG_DONTWAIT) != 0 ||
         ((flags & MSG_ERRQUEUE) != 0 && !is_unix_socket(fd)) ||
         ((flags & MSG_OOB) != 0 && is_stream_socket(fd));
}

// Whether descriptors have come along, or would have, had there been room. A
// unix socket gives no bytes beyond them in the same call. Times and
// credentials come with all bytes and end nothing: so where those are asked
// for, a want of room says nothing.
inline bool has_descriptors(int fd, msghdr& m) {
  bool any = (m.msg_flags & MSG_CTRUNC) != 0 && is_unix_socket(fd) &&
             option_of(fd, SO_PASSCRED) == 0;
  for (cmsghdr* c = CMSG_FIRSTHDR(&m); c != nullptr; c = CMSG_NXTHDR(&m, c))
    any = any || (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS);
  return any;
}

inline ssize_t recvmsg(int fd, msghdr* message, int flags) {
  scheduler* const s = here();
  if (s == nullptr || message == nullptr || never_waits(fd, flags))
    return original::recvmsg(fd, message, flags);
  const bool wants_all = (flags & MSG_WAITALL) != 0;
  // Asked for only where it may count: see `until` below.
  const auto begin = wants_all ? now() : clock::time_point();
  const std::size_t control_room = message->msg_controllen;
  call receiving(*s, fd, readable);
  const auto receive = [&](msghdr* into) {
    return receiving.retry([&](int more_flags) {
      return original::recvmsg(fd, into, flags | more_flags);
    });
  };
  const ssize_t got = receive(message);
  if (got <= 0 || !wants_all) return got;
  auto done = static_cast<std::size_t>(got);
  const std::size_t all = bytes_of(message->msg_iov, message->msg_iovlen);
  if (done >= all || !is_stream_socket(fd)) return got;
  // MSG_WAITALL goes on until all is there, or the end: MSG_PEEK from the
  // beginning each time, else piece by piece. On unix sockets a peek takes what
  // there is.
  const bool looks = (flags & MSG_PEEK) != 0;
  if (looks && is_unix_socket(fd)) return got;
  return for_c([&]() -> ssize_t {
    const int errno_before = errno;
    const deadline until = looks ? limit_of(fd, readable, begin) : never;
    growing_pause pauses;
    while (done < all && !has_descriptors(fd, *message)) {
      const rest_of rest(message->msg_iov, message->msg_iovlen,
                         looks ? 0 : done);
      msghdr more = rest.message();
      more.msg_control = message->msg_control;
      more.msg_controllen = control_room;
      const ssize_t got_more = receive(&more);
      if (got_more <= 0) break;
      message->msg_controllen = more.msg_controllen;
      message->msg_flags |= more.msg_flags;
      const auto m = static_cast<std::size_t>(got_more);
      if (looks && m == done && pause(*s, pauses, until) != 0) break;
      done = looks ? m : done + m;
    }
    errno = errno_before;
    return static_cast<ssize_t>(done);
  });
}

inline ssize_t recvfrom(int fd, void* p, std::size_t n, int flags,
                        sockaddr* from, socklen_t* size) {
  scheduler* const s = here();
  if (s == nullptr || never_waits(fd, flags))
    return original::recvfrom(fd, p, n, flags, from, size);
  if ((flags & MSG_WAITALL) != 0 && (from == nullptr || size != nullptr)) {
    const iovec part{p, n};
    msghdr message = message_of(&part, 1);
    message.msg_name = from;
    if (from != nullptr) message.msg_namelen = *size;
    const ssize_t got = hook::recvmsg(fd, &message, flags);
    if (got != -1 && from != nullptr) *size = message.msg_namelen;
    return got;
  }
  return call(*s, fd, readable, flags == 0 ? n : 0).retry([&](int more_flags) {
    return original::recvfrom(fd, p, n, flags | more_flags, from, size);
  });
}

inline ssize_t recv(int fd, void* p, std::size_t n, int flags) {
  return hook::recvfrom(fd, p, n, flags, nullptr, nullptr);
}

// Calls send(flags), with flags to add to the caller's. As in the kernel, one
// that has waited for room fails with the socket's error, on unix sockets
// without SIGPIPE; and one that has sent some returns how much, without either.
template <class Send>
ssize_t try_to_send(const call& sending, int fd, std::size_t done, Send send) {
  bool quiet = done != 0;
  if (sending.has_waited()) {
    const int error = option_of(fd, SO_ERROR);
    if (error > 0) return fail(error);
    quiet = quiet || is_unix_socket(fd);
  }
  return send(MSG_DONTWAIT | (quiet ? MSG_NOSIGNAL : 0));
}

inline ssize_t sendmsg(int fd, const msghdr* message, int flags) {
  scheduler* const s = here();
  if (s == nullptr || message == nullptr || (flags & MSG_DONTWAIT) != 0)
    return original::sendmsg(fd, message, flags);
  const iovec* const parts = message->msg_iov;
  const std::size_t n = message->msg_iovlen;
  call sending(*s, fd, writable);
  return for_c([&] {
    return sending.all(
        bytes_of(parts, n),
        [&](std::size_t done) {
          const rest_of rest(parts, n, done);
          msghdr more = done == 0 ? *message : rest.message();
          more.msg_name = message->msg_name;
          more.msg_namelen = message->msg_namelen;
          return try_to_send(sending, fd, done, [&](int more_flags) {
            return original::sendmsg(fd, &more, flags | more_flags);
          });
        },
        [&](std::size_t) { return original::sendmsg(fd, message, flags); });
  });
}

inline ssize_t sendto(int fd, const void* p, std::size_t n, int flags,
                      const sockaddr* to, socklen_t size) {
  scheduler* const s = here();
  if (s == nullptr || (flags & MSG_DONTWAIT) != 0)
    return original::sendto(fd, p, n, flags, to, size);
  const auto rest = [&](std::size_t done, int more_flags) {
    return original::sendto(fd, static_cast<const char*>(p) + done, n - done,
                            flags | more_flags, to, size);
  };
  call sending(*s, fd, writable);
  return sending.all(
      n,
      [&](std::size_t done) {
        return try_to_send(sending, fd, done,
                           [&](int more) { return rest(done, more); });
      },
      [&](std::size_t done) { return rest(done, 0); });
}

inline ssize_t send(int fd, const void* p, std::size_t n, int flags) {
  return hook::sendto(fd, p, n, flags, nullptr, 0);
}

// Suspends until all have come; with MSG_WAITFORONE, until one has. As in the
// kernel, `limit` is looked at after each.
inline int recvmmsg(int fd, mmsghdr* messages, unsigned n, int flags,
                    timespec* limit) {
  scheduler* const s = here();
  if (s == nullptr || never_waits(fd, flags) || n == 0 ||
      (limit != nullptr && !is_time(*limit)))
    return original::recvmmsg(fd, messages, n, flags, limit);
  const deadline until = in_time(limit);
  const bool waits_for_one = (flags & MSG_WAITFORONE) != 0;
  const bool one_by_one = limit != nullptr || (flags & MSG_WAITALL) != 0;
  flags &= ~MSG_WAITFORONE;
  call receiving(*s, fd, readable);
  unsigned done = 0;
  while (done < n) {
    if (done != 0 && waits_for_one) flags |= MSG_DONTWAIT;
    ssize_t got = 0;
    if (one_by_one) {
      got = hook::recvmsg(fd, &messages[done].msg_hdr, flags);
      if (got != -1)
        messages[done].msg_len = static_cast<unsigned>(std::exchange(got, 1));
    } else {
      got = receiving.retry([&](int more) {
        return original::recvmmsg(fd, messages + done, n - done, flags | more,
                                  nullptr);
      });
    }
    if (got <= 0) return done != 0 ? static_cast<int>(done) : -1;
    done += static_cast<unsigned>(got);
    if (until.passed() || (waits_for_one && !one_by_one)) break;
  }
  return static_cast<int>(done);
}

inline int sendmmsg(int fd, mmsghdr* messages, unsigned n, int flags) {
  if (here() == nullptr || (flags & MSG_DONTWAIT) != 0)
    return original::sendmmsg(fd, messages, n, flags);
  n = std::min(n, unsigned{IOV_MAX});
  unsigned done = 0;
  for (; done < n; ++done) {
    const ssize_t sent = hook::sendmsg(fd, &messages[done].msg_hdr, flags);
    if (sent == -1) return done != 0 ? static_cast<int>(done) : -1;
    messages[done].msg_len = static_cast<unsigned>(sent);
  }
  return static_cast<int>(done);
}

inline int accept4(int fd, sockaddr* from, socklen_t* size, int flags) {
  scheduler* const s = here();
  if (s == nullptr || (flags & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) != 0)
    return original::accept4(fd, from, size, flags);
  const auto take = [&] { return original::accept4(fd, from, size, flags); };
  // Others who accept here see O_NONBLOCK, too: it is set as rarely as can be.
  const auto look_and_take = [&] {
    return !is_ready(fd, readable) && option_of(fd, SO_ACCEPTCONN) == 1
               ? fail(EAGAIN)
               : without_blocking(fd, take);
  };
  return static_cast<int>(call(*s, fd, readable).retry(look_and_take, take));
}

inline int accept(int fd, sockaddr* from, socklen_t* size) {
  return hook::accept4(fd, from, size, 0);
}

inline int connect(int fd, const sockaddr* to, socklen_t size) {
  scheduler* const s = here();
  if (s == nullptr || is_non_blocking(fd))
    return original::connect(fd, to, size);
  const int errno_before = errno;
  if (!may_begin(*s)) return -1;
  const deadline until = limit_of(fd, writable);
  growing_pause pauses;
  for (;;) {
    if (without_blocking(fd, [&] { return original::connect(fd, to, size); }) ==
        0) {
      errno = errno_before;
      return 0;
    }
    if (errno == EINPROGRESS || errno == EALREADY) break;
    // A unix socket whose listener has no room cannot be waited for.
    if (errno != EAGAIN || to->sa_family != AF_UNIX) return -1;
    if (const int error = pause(*s, pauses, until))
      return fail(error == ETIME ? EAGAIN : error);
  }
  const int when_late = errno;
  do {
    if (const int error = call(*s, fd, writable).wait(until))
      return fail(error == ETIME ? when_late : error);
  } while (!is_ready(fd, writable));
  // The same call once more returns how it has ended, and only then does the
  // socket count as connected, or may try again.
  if (original::connect(fd, to, size) == -1 && errno != EISCONN) return -1;
  errno = errno_before;
  return 0;
}

// --- files -------------------------------------------------------------------
//
// What is read or written here may be a socket after all. Pipes, eventfds and
// timerfds take RWF_NOWAIT. Named pipes and terminals do not: there the call is
// made when they are ready, and for no more than goes through then.

#if defined(BAO_ASAN)
constexpr bool may_take_flag = false;  // ASan does not know preadv2()
#else
constexpr bool may_take_flag = true;
#endif
inline mode_t kind_of(int fd) {
  struct stat is {};
  return ::fstat(fd, &is) == 0 ? is.st_mode : 0;
}
// With RWF_NOWAIT such a file would give what is in memory, and no more.
inline bool is_always_ready(mode_t kind) {
  return S_ISREG(kind) || S_ISBLK(kind);
}
// 0 also where libc is to say what is wrong with them.
inline std::size_t bytes_to_wait_for(const iovec* parts, int n) {
  return n <= 0 || n > IOV_MAX || parts == nullptr
             ? 0
             : bytes_of(parts, static_cast<std::size_t>(n));
}
inline bool takes_no_flag() { return errno == EOPNOTSUPP || errno == ENOSYS; }

inline ssize_t readv(int fd, const iovec* parts, int n) {
  scheduler* const s = here();
  const auto block = [&] { return original::readv(fd, parts, n); };
  const std::size_t all = s == nullptr ? 0 : bytes_to_wait_for(parts, n);
  if (all == 0) return block();
  msghdr message = message_of(parts, static_cast<std::size_t>(n));
  call reading(*s, fd, readable, all);
  bool is_socket = true, takes_flag = may_take_flag;
  mode_t kind = 0;
  return reading.retry(
      [&]() -> ssize_t {
        if (is_socket) {
          const ssize_t got = original::recvmsg(fd, &message, MSG_DONTWAIT);
          if (got != -1 || errno != ENOTSOCK) return got;
          is_socket = false;
          kind = kind_of(fd);
        }
        if (is_always_ready(kind)) return block();
        if (takes_flag) {
          const ssize_t got = original::preadv2(fd, parts, n, -1, RWF_NOWAIT);
          if (got != -1 || !takes_no_flag()) return got;
          takes_flag = false;
        }
        // One that never had a writer is at its end: poll() does not say so.
        if (S_ISFIFO(kind)) return without_blocking(fd, block);
        const int error = reading.until_ready();
        return error == 0 ? block() : fail(error);
      },
      block);
}

inline ssize_t read(int fd, void* p, std::size_t n) {
  const iovec part{p, n};
  return here() == nullptr || n == 0 || n > SSIZE_MAX
             ? original::read(fd, p, n)
             : hook::readv(fd, &part, 1);
}

inline ssize_t writev(int fd, const iovec* parts, int n) {
  scheduler* const s = here();
  const auto count = static_cast<std::size_t>(n);
  const std::size_t all = s == nullptr ? 0 : bytes_to_wait_for(parts, n);
  if (all == 0) return original::writev(fd, parts, n);
  call writing(*s, fd, writable);
  bool is_socket = true, takes_flag = may_take_flag;
  mode_t kind = 0;
  const auto piece = [&](std::size_t done) -> ssize_t {
    const rest_of rest(parts, count, done);
    if (is_socket) {
      const msghdr message = rest.message();
      const ssize_t sent = try_to_send(writing, fd, done, [&](int flags) {
        return original::sendmsg(fd, &message, flags);
      });
      if (sent != -1 || errno != ENOTSOCK) return sent;
      is_socket = false;
      kind = kind_of(fd);
    }
    // A file gets one try: the rest may raise SIGXFSZ, which ends programs.
    if (is_always_ready(kind))
      return done != 0 ? 0 : original::writev(fd, rest.parts(), rest.count());
    if (takes_flag) {
      const ssize_t put =
          original::pwritev2(fd, rest.parts(), rest.count(), -1, RWF_NOWAIT);
      if (put != -1 || !takes_no_flag()) return put;
      takes_flag = false;
    }
    // A terminal that is ready may yet have less room than that.
    if (const int error = writing.until_ready()) return fail(error);
    return without_blocking(
        fd, [&] { return original::writev(fd, rest.parts(), rest.count()); });
  };
  return for_c([&] {
    return writing.all(all, piece, [&](std::size_t done) {
      const rest_of rest(parts, count, done);
      return original::writev(fd, rest.parts(), rest.count());
    });
  });
}

inline ssize_t write(int fd, const void* p, std::size_t n) {
  const iovec part{const_cast<void*>(p), n};
  return here() == nullptr || n == 0 || n > SSIZE_MAX
             ? original::write(fd, p, n)
             : hook::writev(fd, &part, 1);
}

// What has a position is always ready.
using original::pread;
using original::preadv;
using original::pwrite;
using original::pwritev;

inline ssize_t preadv2(int fd, const iovec* parts, int n, off_t at, int flags) {
  return at == -1 && flags == 0 && here() != nullptr
             ? hook::readv(fd, parts, n)
             : original::preadv2(fd, parts, n, at, flags);
}
inline ssize_t pwritev2(int fd, const iovec* parts, int n, off_t at,
                        int flags) {
  return at == -1 && flags == 0 && here() != nullptr
             ? hook::writev(fd, parts, n)
             : original::pwritev2(fd, parts, n, at, flags);
}

inline ssize_t sendfile(int to, int from, off_t* at, std::size_t n) {
  scheduler* const s = here();
  if (s == nullptr || n == 0) return original::sendfile(to, from, at, n);
  const auto block = [&](std::size_t done) {
    return original::sendfile(to, from, at, n - done);
  };
  const bool until_all = is_stream_socket(to);
  return call(*s, to, writable)
      .all(
          until_all ? n : 0,
          [&](std::size_t done) {
            return without_blocking(to, [&] { return block(done); });
          },
          block);
}

// Either end may be what is not ready.
inline ssize_t splice(int from, loff_t* from_at, int to, loff_t* to_at,
                      std::size_t n, unsigned flags) {
  scheduler* const s = here();
  if (s == nullptr || (flags & SPLICE_F_NONBLOCK) != 0)
    return original::splice(from, from_at, to, to_at, n, flags);
  const int errno_before = errno;
  call reading(*s, from, readable), writing(*s, to, writable);
  if (!may_begin(*s)) return -1;
  growing_pause pauses;
  for (;;) {
    const ssize_t moved = without_blocking(from, [&] {
      return without_blocking(to, [&] {
        return original::splice(from, from_at, to, to_at, n,
                                flags | SPLICE_F_NONBLOCK);
      });
    });
    if (moved != -1) errno = errno_before;
    if (moved != -1 || errno != EAGAIN) return moved;
    int error = 0;
    if (!is_ready(from, readable))
      error = is_non_blocking(from) ? EAGAIN : reading.wait();
    else if (!is_ready(to, writable))
      error = is_non_blocking(to) ? EAGAIN : writing.wait();
    else
      error = pause(*s, pauses);
    if (error == ETIME) error = EAGAIN;
    if (error != 0 && error != EPERM) return fail(error);
  }
}

// --- descriptors that go -----------------------------------------------------

// The number is about to stand for nothing, or for another file: those of this
// thread who wait for it get EBADF.
inline void before_close(int fd) {
  scheduler* const s = tasks_here();
  if (s == nullptr || fd < 0 || static_cast<std::size_t>(fd) >= s->watches())
    return;
  descriptor_watch*& known = s->watch_of(fd);
  const bool waited_for = known != nullptr && !known->waiters.empty();
  if (!waited_for && (known != nullptr || !s->poller().lasts(fd))) return;
  // A child by vfork() is in its parent's memory, whose descriptor stays open.
  if (!s->is_in_its_process()) return;
  if (!waited_for) return s->poller().forget(fd);
  abandon(*s, *known, fd);
  known = nullptr;
}

inline int close(int fd) {
  before_close(fd);
  return original::close(fd);
}

inline int dup3(int fd, int number, int flags) {
  if (tasks_here() != nullptr && fd != number &&
      original::fcntl(fd, F_GETFD, nullptr) != -1)
    before_close(number);
  return original::dup3(fd, number, flags);
}
inline int dup2(int fd, int number) {
  return fd == number ? original::dup2(fd, number) : hook::dup3(fd, number, 0);
}

#if __GLIBC_PREREQ(2, 34)
inline int close_range(unsigned first, unsigned last, int flags) {
  constexpr int only_marks = CLOSE_RANGE_CLOEXEC;
  scheduler* const s = tasks_here();
  if (s != nullptr && (flags & only_marks) == 0)
    for (std::size_t fd = first; fd <= last && fd < s->watches(); ++fd)
      before_close(static_cast<int>(fd));
  return original::close_range(first, last, flags);
}
#endif

}  // namespace hook
}  // namespace BAO_ABI
}  // namespace bao
#endif

// =============================================================================
// bao/hook_wait.hpp - libc's other ways to wait
//
// For several descriptors at once, for a time, for a lock on a file, for a
// child to end. What hook.hpp says of its functions holds for these too.
//
// Where the kernel gives word, the task parks until the poller has it. Of some
// things there is none: a lock that another process holds, any of several
// children, urgent data. Those are asked for again and again: after 1 ms, then
// after twice as long each time, every 50 ms in the end. So such a wait may
// last 50 ms longer than libc's.

#if defined(__GLIBC__)
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {
namespace hook {

// --- several descriptors -----------------------------------------------------

// A wait with a mask lets in other signals meanwhile: here, those of them that
// are pending. True when a handler has run, which ends the wait.
inline bool let_in(const sigset_t* mask) {
  if (mask == nullptr) return false;
  sigset_t pending, before;
  bool any = false, handled = false;
  ::sigpending(&pending);
  for (int signal = 1; signal < NSIG; ++signal) {
    if (sigismember(&pending, signal) != 1 || sigismember(mask, signal) != 0)
      continue;
    any = true;
    struct sigaction how {};
    ::sigaction(signal, nullptr, &how);
    handled =
        handled || (how.sa_handler != SIG_DFL && how.sa_handler != SIG_IGN);
  }
  if (!any) return false;
  ::pthread_sigmask(SIG_SETMASK, mask, &before);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return handled;
}

// What a poller can be told of.
inline readiness watchable(int events) {
  readiness want;
  if (events & (POLLIN | POLLRDNORM)) want = want | readable;
  if (events & (POLLOUT | POLLWRNORM)) want = want | writable;
  return want;
}

using places_in_line = std::vector<std::optional<place_in_line>>;

// Has the task woken when there may be news of any of them. False when the
// poller does not tell all that is asked for, or cannot watch one: an epoll of
// an epoll of an epoll, say. Nor is one watched that has `revents`: its news,
// which nobody has asked for, would end each wait at once.
inline bool watch_all(places_in_line& places, const pollfd* fds) {
  bool all = true;
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (fds[i].fd < 0) continue;
    const readiness want =
        fds[i].revents == 0 ? watchable(fds[i].events) : readiness();
    constexpr int others = POLLPRI | POLLRDHUP | POLLRDBAND;
    all = all && want && (fds[i].events & others) == 0;
    if (!want) continue;
    if (!places[i]) get_in_line(places[i], fds[i].fd, want);
    try {
      places[i]->watch();
    } catch (const std::system_error&) {
      all = false;
    }
  }
  return all;
}

// Calls ask(), which does not block, until it finds something or `until`
// passes, and returns what it does. Suspends in between until there may be news
// of one of `fds`; where no word of it may come, for a while.
template <class Ask>
int ask_until(scheduler& s, const pollfd* fds, std::size_t n, deadline until,
              const sigset_t* mask, Ask ask) {
  const int errno_before = errno;
  if (!may_begin(s)) return -1;
  growing_pause pauses;
  places_in_line places;  // from the first wait on
  for (bool late = false;;) {
    const int found = ask();
    if (found != 0) {
      if (found > 0) errno = errno_before;
      return found;
    }
    if (late || until.passed()) break;
    if (let_in(mask)) return fail(EINTR);
    if (places.empty()) places = places_in_line(n);
    // Of a signal that the mask lets in there is no word either.
    const bool word = watch_all(places, fds) && mask == nullptr;
    const int error = s.park_in_c(
        word ? until : std::min(until, deadline(pauses.next())), {"polling"});
    late = error == ETIME && word;
    if (error != 0 && error != ETIME) return fail(error);
    for (const auto& place : places)
      if (place && place->closed()) return fail(EBADF);
  }
  errno = errno_before;
  return 0;
}

inline int poll_until(scheduler& s, pollfd* fds, nfds_t n, deadline until,
                      const sigset_t* mask) {
  return for_c([&] {
    return ask_until(s, fds, n, until, mask,
                     [&] { return original::poll(fds, n, 0); });
  });
}

inline int poll(pollfd* fds, nfds_t n, int ms) {
  scheduler* const s = here();
  if (s == nullptr || ms == 0) return original::poll(fds, n, ms);
  return poll_until(*s, fds, n, in_milliseconds(ms), nullptr);
}

inline int ppoll(pollfd* fds, nfds_t n, const timespec* limit,
                 const sigset_t* mask) {
  scheduler* const s = here();
  if (s == nullptr || (limit != nullptr && !is_time(*limit)))
    return original::ppoll(fds, n, limit, mask);
  return poll_until(*s, fds, n, in_time(limit), mask);
}

// A set of descriptors has as many bits as the caller says, not FD_SETSIZE; but
// at most as many as the kernel has room for descriptors now: that is meant by
// getdtablesize(), which may be a billion.
inline int bits_of_sets(int n) {
  if (n <= FD_SETSIZE) return n;
  std::FILE* const status = std::fopen("/proc/self/status", "re");
  if (status == nullptr) return n;
  char text[200];
  int room = n;
  while (std::fgets(text, sizeof text, status) != nullptr)
    if (std::sscanf(text, "FDSize: %d", &room) == 1) break;
  std::fclose(status);
  return std::min(n, room);
}

class copy_of_set {
 public:
  copy_of_set(fd_set* set, int n) : set_(reinterpret_cast<long*>(set)) {
    const std::size_t words = static_cast<std::size_t>(n + NFDBITS - 1) /
                              static_cast<std::size_t>(NFDBITS);
    if (set_ != nullptr) copy_.assign(set_, set_ + words);
  }
  bool has(int fd) const {
    return !copy_.empty() &&
           (copy_[static_cast<std::size_t>(fd / NFDBITS)] >> fd % NFDBITS & 1);
  }
  void restore() const { std::copy(copy_.begin(), copy_.end(), set_); }

 private:
  long* set_;
  std::vector<long> copy_;
};

inline int select_until(scheduler& s, int n, fd_set* in, fd_set* out,
                        fd_set* urgent, deadline until, const sigset_t* mask) {
  return for_c([&] {
    n = bits_of_sets(n);
    const copy_of_set reads(in, n), writes(out, n), urgents(urgent, n);
    std::vector<pollfd> fds;
    for (int fd = 0; fd < n; ++fd) {
      const int events = (reads.has(fd) ? POLLIN : 0) |
                         (writes.has(fd) ? POLLOUT : 0) |
                         (urgents.has(fd) ? POLLPRI : 0);
      if (events != 0) fds.push_back({fd, static_cast<short>(events), 0});
    }
    return ask_until(s, fds.data(), fds.size(), until, mask, [&] {
      reads.restore(), writes.restore(), urgents.restore();
      timeval at_once{};
      const int found = original::select(n, in, out, urgent, &at_once);
      // To a poller, a hang-up is news; to select(), it is no room to write.
      if (found == 0 && out != nullptr)
        original::poll(fds.data(), fds.size(), 0);
      return found;
    });
  });
}

// What is left of a time that began then.
inline timespec rest_of_time(clock::duration whole, clock::time_point begin) {
  return to_timespec(
      std::max<nanoseconds>(0, (whole - (now() - begin)).count()));
}

// The rest of the time goes back to the caller, as Linux does it.
inline int select(int n, fd_set* in, fd_set* out, fd_set* urgent,
                  timeval* limit) {
  scheduler* const s = here();
  // libc, too, looks at the lower 32 bits alone.
  const auto us = static_cast<std::int32_t>(limit ? limit->tv_usec : 0);
  if (s == nullptr || n < 0 ||
      (limit != nullptr && (limit->tv_sec < 0 || us < 0)))
    return original::select(n, in, out, urgent, limit);
  if (limit == nullptr)
    return select_until(*s, n, in, out, urgent, never, nullptr);
  const auto whole =
      duration_of({limit->tv_sec, 0}) + clock::duration(nanoseconds{us} * 1000);
  const auto begin = now();
  const int found = select_until(*s, n, in, out, urgent, whole, nullptr);
  const timespec rest = rest_of_time(whole, begin);
  limit->tv_sec = rest.tv_sec;
  limit->tv_usec = static_cast<suseconds_t>(rest.tv_nsec / 1000);
  return found;
}

inline int pselect(int n, fd_set* in, fd_set* out, fd_set* urgent,
                   const timespec* limit, const sigset_t* mask) {
  scheduler* const s = here();
  if (s == nullptr || n < 0 || (limit != nullptr && !is_time(*limit)))
    return original::pselect(n, in, out, urgent, limit, mask);
  return select_until(*s, n, in, out, urgent, in_time(limit), mask);
}

// An epoll is itself a descriptor, readable when it has something to report.
inline int epoll_pwait(int fd, epoll_event* events, int n, int ms,
                       const sigset_t* mask) {
  scheduler* const s = here();
  if (s == nullptr || ms == 0)
    return original::epoll_pwait(fd, events, n, ms, mask);
  return for_c([&] {
    const pollfd itself{fd, POLLIN, 0};
    return ask_until(*s, &itself, 1, in_milliseconds(ms), mask,
                     [&] { return original::epoll_wait(fd, events, n, 0); });
  });
}

inline int epoll_wait(int fd, epoll_event* events, int n, int ms) {
  return hook::epoll_pwait(fd, events, n, ms, nullptr);
}

// --- time --------------------------------------------------------------------

// Suspends until then, at least until the others have run. Returns 0, or the
// error of an interruption.
inline int sleep_until(scheduler& s, deadline until) {
  const int errno_before = errno;
  int error = 0;
  if (until.passed() && s.interrupted_in_c() == 0)
    s.yield_in_c();
  else
    error = s.park_in_c(until, {"sleeping"});
  errno = errno_before;
  return error == ETIME ? 0 : error;
}

// The same; whoever is interrupted is told what is left of the time.
inline int sleep_for(scheduler& s, const timespec& time, timespec* left) {
  const auto whole = duration_of(time);
  const auto begin = now();
  const int error = sleep_until(s, whole);
  if (error != 0 && left != nullptr) *left = rest_of_time(whole, begin);
  return error;
}

inline int clock_nanosleep(clockid_t clock, int flags, const timespec* time,
                           timespec* left) {
  scheduler* const s = here();
  timespec is{};
  if (s == nullptr || time == nullptr || !is_time(*time) ||
      (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC &&
       clock != CLOCK_BOOTTIME && clock != CLOCK_TAI) ||
      (flags & ~TIMER_ABSTIME) != 0 || ::clock_gettime(clock, &is) != 0)
    return original::clock_nanosleep(clock, flags, time, left);
  if (flags == 0) return sleep_for(*s, *time, left);
  // Deadlines go by bao's clock, which may be virtual: it gets the difference.
  return sleep_until(*s, duration_of(*time) - duration_of(is));
}

inline int nanosleep(const timespec* time, timespec* left) {
  scheduler* const s = here();
  if (s == nullptr || time == nullptr || !is_time(*time))
    return original::nanosleep(time, left);
  const int error = sleep_for(*s, *time, left);
  return error == 0 ? 0 : fail(error);
}

inline int usleep(useconds_t microseconds) {
  if (here() == nullptr) return original::usleep(microseconds);
  const timespec time = to_timespec(nanoseconds{microseconds} * 1000);
  return hook::nanosleep(&time, nullptr);
}

// Says that nothing is left when it is interrupted, too: C may try until then.
inline unsigned sleep(unsigned seconds) {
  if (here() == nullptr) return original::sleep(seconds);
  const timespec time{static_cast<time_t>(seconds), 0};
  hook::nanosleep(&time, nullptr);
  return 0;
}

// --- locks on files ----------------------------------------------------------

// Calls attempt(), which does not block, until it does not fail because another
// holds the lock; suspends in between.
template <class Attempt>
int until_unlocked(scheduler& s, Attempt attempt) {
  const int errno_before = errno;
  if (!may_begin(s)) return -1;
  growing_pause pauses;
  for (;;) {
    const int result = attempt();
    if (result != -1) errno = errno_before;
    if (result != -1 || (errno != EAGAIN && errno != EACCES)) return result;
    if (const int error = pause(s, pauses)) return fail(error);
  }
}

inline int flock(int fd, int operation) {
  scheduler* const s = here();
  if (s == nullptr || (operation & (LOCK_NB | LOCK_UN)) != 0)
    return original::flock(fd, operation);
  return until_unlocked(
      *s, [&] { return original::flock(fd, operation | LOCK_NB); });
}

inline int fcntl(int fd, int command, void* argument) {
  scheduler* const s = here();
  int attempt = 0;
  if (command == F_SETLKW) attempt = F_SETLK;
#if defined(F_OFD_SETLKW)
  if (command == F_OFD_SETLKW) attempt = F_OFD_SETLK;
#endif
  if (s == nullptr || attempt == 0)
    return original::fcntl(fd, command, argument);
  return until_unlocked(*s,
                        [&] { return original::fcntl(fd, attempt, argument); });
}

// --- processes ---------------------------------------------------------------

// A child that ends makes a descriptor readable; of any child of several, and
// of one that stops or goes on, there is no such word.
inline pid_t wait4(pid_t pid, int* status, int options, rusage* used) {
  scheduler* const s = here();
  if (s == nullptr || (options & WNOHANG) != 0)
    return original::wait4(pid, status, options, used);
  const int errno_before = errno;
  if (!may_begin(*s)) return -1;
  growing_pause pauses;
  descriptor end;
  const at_end forget([&] { before_close(end.fd()); });
  bool asked = false;
  for (;;) {
    const pid_t ended = original::wait4(pid, status, options | WNOHANG, used);
    if (ended > 0) errno = errno_before;
    if (ended != 0) return ended;
    if (pid > 0 && (options & (WUNTRACED | WCONTINUED)) == 0 &&
        !std::exchange(asked, true))
      end = watch_process(pid);
    int error =
        end ? call(*s, end.fd(), readable).wait(never) : pause(*s, pauses);
    if (error == EMFILE || error == ENOSPC || error == ENOMEM) {
      end.close();  // what cannot be watched is asked again and again
      error = 0;
    }
    if (error != 0) return fail(error);
  }
}

inline pid_t waitpid(pid_t pid, int* status, int options) {
  return hook::wait4(pid, status, options, nullptr);
}
inline pid_t wait(int* status) { return hook::waitpid(-1, status, 0); }
inline pid_t wait3(int* status, int options, rusage* used) {
  return hook::wait4(-1, status, options, used);
}

// Unlike libc's, it leaves SIGINT, SIGQUIT and SIGCHLD alone while the command
// runs, for the other tasks' sake. So a handler that waits for every child may
// take this one's end: ECHILD. An interruption kills the shell.
inline int system(const char* command) {
  scheduler* const s = here();
  if (s == nullptr || command == nullptr) return original::system(command);
  if (!may_begin(*s)) return -1;  // before any of the command runs
  const char* const arguments[] = {"sh", "-c", command, nullptr};
  pid_t shell = 0;
  if (::posix_spawn(&shell, "/bin/sh", nullptr, nullptr,
                    const_cast<char* const*>(arguments), environ) != 0)
    return 127 << 8;  // as if it had started, and not found the command
  int status = 0;
  if (hook::waitpid(shell, &status, 0) == -1) {
    const int error = errno;
    if (error != ECHILD) {  // else its number may be another's by now
      ::kill(shell, SIGKILL);
      original::waitpid(shell, nullptr, 0);
    }
    return fail(error);
  }
  return status;
}

}  // namespace hook
}  // namespace BAO_ABI
}  // namespace bao
#endif

// =============================================================================
// bao/hook_names.hpp - libc's look-ups of names
//
// A helper thread asks (look_up.hpp), and the answer is put where libc would
// have put it; numbers need no asking. Whoever is interrupted leaves, and gets
// EAI_SYSTEM or NETDB_INTERNAL with ECANCELED or ETIMEDOUT. What hook.hpp says
// of its functions holds for these too.

#if defined(__GLIBC__)
#include <arpa/inet.h>
#include <netdb.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {
namespace hook {

// Suspends until a question, made by new, is answered, for us or for others who
// ask the same: returns the one that is. Throws what for_c() catches.
inline std::shared_ptr<question> ask(question* made) {
  const int errno_before = errno;
  if (!may_begin(*here())) {
    delete made;
    throw_errno("resolver");
  }
  auto asked = question::ask(made);
  if (const int error = asked->wait_in_c()) throw_errno("resolver", error);
  errno = errno_before;
  return asked;
}

// For the two that say by a number of their own why they fail.
inline int resolver_failed(int error) {
  errno = error;
  return error == ENOMEM ? EAI_MEMORY : EAI_SYSTEM;
}

inline bool is_numeric(const char* host) {
  in6_addr any;
  return host == nullptr || ::inet_pton(AF_INET, host, &any) == 1 ||
         ::inet_pton(AF_INET6, host, &any) == 1;
}

// Each caller frees a list of its own, by freeaddrinfo(): for which an address
// is part of the same piece of memory, and a name is a piece by itself.
inline addrinfo* copy_of(const addrinfo* list) {
  addrinfo* first = nullptr;
  addrinfo** link = &first;
  for (; list != nullptr; list = list->ai_next) {
    auto* const made =
        static_cast<addrinfo*>(std::malloc(sizeof *list + list->ai_addrlen));
    char* const name =
        list->ai_canonname != nullptr ? ::strdup(list->ai_canonname) : nullptr;
    if (made == nullptr || (list->ai_canonname != nullptr && name == nullptr)) {
      std::free(made);
      if (first != nullptr) ::freeaddrinfo(first);
      return nullptr;
    }
    *made = *list;
    made->ai_addr = reinterpret_cast<sockaddr*>(made + 1);
    std::memcpy(made->ai_addr, list->ai_addr, list->ai_addrlen);
    made->ai_canonname = name;
    made->ai_next = nullptr;
    *link = made;
    link = &made->ai_next;
  }
  return first;
}

inline int getaddrinfo(const char* host, const char* service,
                       const addrinfo* hints, addrinfo** found) {
  if (here() == nullptr || is_numeric(host) ||
      (hints != nullptr && (hints->ai_flags & AI_NUMERICHOST) != 0))
    return original::getaddrinfo(host, service, hints, found);
  addrinfo usual{};  // what glibc takes without hints
  usual.ai_flags = AI_V4MAPPED | AI_ADDRCONFIG;
  const auto ask_libc = [&] {
    const auto asked =
        ask(new addresses_of(host, service != nullptr ? service : "",
                             hints != nullptr ? *hints : usual));
    const auto& a = static_cast<const addresses_of&>(*asked);
    if (a.result == EAI_SYSTEM) errno = a.error;
    if (a.result != 0) return a.result;
    *found = copy_of(a.list);
    return *found != nullptr ? 0 : EAI_MEMORY;
  };
  return for_c(ask_libc, resolver_failed);
}

struct name_of final : question {
  name_of(const std::string& its_address, int how)
      : question("getnameinfo " + std::to_string(how) + ' ' + its_address),
        address(its_address),
        flags(how) {}

  const std::string address;
  const int flags;
  int result = 0, error = 0;
  char host[NI_MAXHOST] = "", service[NI_MAXSERV] = "";

 private:
  void look_up() override {
    result =
        original::getnameinfo(reinterpret_cast<const sockaddr*>(address.data()),
                              static_cast<socklen_t>(address.size()), host,
                              sizeof host, service, sizeof service, flags);
    error = errno;
  }
};

// Whether there is room for the text, or nobody wants it.
inline bool give(char* to, socklen_t room, const char* text) {
  if (to == nullptr || room == 0) return true;
  if (std::strlen(text) >= room) return false;
  std::strcpy(to, text);
  return true;
}

inline int getnameinfo(const sockaddr* address, socklen_t size, char* host,
                       socklen_t host_size, char* service,
                       socklen_t service_size, int flags) {
  if (here() == nullptr || (flags & NI_NUMERICHOST) != 0 || host == nullptr ||
      host_size == 0 || address == nullptr)
    return original::getnameinfo(address, size, host, host_size, service,
                                 service_size, flags);
  const auto ask_libc = [&]() -> int {
    const auto asked = ask(new name_of(
        std::string(reinterpret_cast<const char*>(address), size), flags));
    const auto& a = static_cast<const name_of&>(*asked);
    if (a.result == EAI_SYSTEM) errno = a.error;
    if (a.result != 0) return a.result;
    const bool room =
        give(host, host_size, a.host) && give(service, service_size, a.service);
    return room ? 0 : EAI_OVERFLOW;
  };
  return for_c(ask_libc, resolver_failed);
}

// The older family. All that a hostent points to lies in one buffer; so it can
// be copied, pointers and all, from the helper's to the caller's.
struct host_of final : question {
  // Of a name, or of an address, in a buffer of n bytes.
  host_of(bool by_name, const std::string& name_or_address, int its_family,
          std::size_t n)
      : question((by_name ? "gethostbyname " : "gethostbyaddr ") +
                 std::to_string(its_family) + ' ' + std::to_string(n) + ' ' +
                 name_or_address),
        is_name(by_name),
        about(name_or_address),
        family(its_family),
        buffer(n) {}

  void copy_to(hostent& host, char* p) const {
    std::memcpy(p, buffer.data(), buffer.size());
    const auto moved = [&](char* at) { return p + (at - buffer.data()); };
    const auto moved_list = [&](char** list) {
      auto** const made =
          reinterpret_cast<char**>(moved(reinterpret_cast<char*>(list)));
      for (char** name = made; *name != nullptr; ++name) *name = moved(*name);
      return made;
    };
    host = *found;
    host.h_name = moved(found->h_name);
    host.h_aliases = moved_list(found->h_aliases);
    host.h_addr_list = moved_list(found->h_addr_list);
  }

  const bool is_name;
  const std::string about;
  const int family;
  std::vector<char> buffer;
  hostent room{}, *found = nullptr;
  int result = 0, host_error = 0, error = 0;

 private:
  void look_up() override {
    char* const p = buffer.data();
    const std::size_t n = buffer.size();
    result = is_name ? original::gethostbyname2_r(about.c_str(), family, &room,
                                                  p, n, &found, &host_error)
                     : original::gethostbyaddr_r(
                           about.data(), static_cast<socklen_t>(about.size()),
                           family, &room, p, n, &found, &host_error);
    error = errno;
  }
};

inline int find_host(bool by_name, std::string_view about, int family,
                     hostent* host, char* p, std::size_t n, hostent** found,
                     int* host_error) {
  *found = nullptr;
  const auto failed = [&](int error) {
    *host_error = NETDB_INTERNAL;
    return errno = error;
  };
  const auto ask_libc = [&] {
    const auto asked = ask(new host_of(by_name, std::string(about), family, n));
    const auto& a = static_cast<const host_of&>(*asked);
    *host_error = a.host_error;
    if (a.found != nullptr)
      a.copy_to(*host, p), *found = host;
    else
      errno = a.error;
    return a.result;
  };
  return for_c(ask_libc, failed);
}

inline int gethostbyname2_r(const char* name, int family, hostent* host,
                            char* p, std::size_t n, hostent** found,
                            int* error) {
  if (here() == nullptr || is_numeric(name))
    return original::gethostbyname2_r(name, family, host, p, n, found, error);
  return find_host(true, name, family, host, p, n, found, error);
}

inline int gethostbyname_r(const char* name, hostent* host, char* p,
                           std::size_t n, hostent** found, int* error) {
  return hook::gethostbyname2_r(name, AF_INET, host, p, n, found, error);
}

inline int gethostbyaddr_r(const void* address, socklen_t size, int family,
                           hostent* host, char* p, std::size_t n,
                           hostent** found, int* error) {
  if (here() == nullptr || address == nullptr)
    return original::gethostbyaddr_r(address, size, family, host, p, n, found,
                                     error);
  return find_host(false, {static_cast<const char*>(address), size}, family,
                   host, p, n, found, error);
}

// Those without _r give out memory of their own: here each task's.
struct host_of_task {
  hostent host{};
  std::vector<char> buffer;
};
inline task_local<host_of_task> found_host;

template <class Find>
hostent* find_host_of_task(Find find) {
  try {
    host_of_task& mine = *found_host;
    if (mine.buffer.empty()) mine.buffer.resize(1024);
    for (;;) {
      hostent* found = nullptr;
      const int result = find(&mine.host, mine.buffer.data(),
                              mine.buffer.size(), &found, &h_errno);
      if (result != ERANGE) return found;
      mine.buffer.resize(mine.buffer.size() * 2);
    }
  } catch (const std::bad_alloc&) {
    h_errno = NETDB_INTERNAL;
    errno = ENOMEM;
    return nullptr;
  }
}

inline hostent* gethostbyname2(const char* name, int family) {
  if (here() == nullptr) return original::gethostbyname2(name, family);
  return find_host_of_task([&](auto... rest) {
    return hook::gethostbyname2_r(name, family, rest...);
  });
}
inline hostent* gethostbyname(const char* name) {
  if (here() == nullptr) return original::gethostbyname(name);
  return hook::gethostbyname2(name, AF_INET);
}
inline hostent* gethostbyaddr(const void* address, socklen_t size, int family) {
  if (here() == nullptr) return original::gethostbyaddr(address, size, family);
  return find_host_of_task([&](auto... rest) {
    return hook::gethostbyaddr_r(address, size, family, rest...);
  });
}

}  // namespace hook
}  // namespace BAO_ABI
}  // namespace bao
#endif

// =============================================================================
// bao/hook_sync.hpp - mutexes and conditions of threads, for tasks
//
// A task that locks a std::mutex and then waits for a socket takes the lock
// along into its sleep. When another task of the thread wants it, the thread
// stands still in libc, and with it the one task that could unlock. So here a
// task never lets libc wait. It tries to lock, and when that fails it lies down
// in a parking lot, under the address of what it waits for. Whoever unlocks
// that, on any thread, looks whether somebody lies there:
//
//     one waits       counts itself, then tries to lock --> busy: parks
//                                                             |
//     one unlocks     unlocks, then looks at the count --> wakes the first
//
// Each writes before it reads. So, whatever the timing, the one finds the mutex
// free or the other sees the count: no wake-up is lost, and it takes no lock to
// learn that nobody waits. Linux's futexes are made like this, in the kernel.
//
// Nothing interrupts these waits, as hardly any caller looks at what they
// return: a kill or a limit has to wait for them. Timed ones end at their time.
// Outside of tasks and under patch_off, libc alone locks a mutex; for a
// condition, such threads stand in line with tasks.
//
// A lock and an unlock that meet nobody take 3 to 5 ns more than the 6 of libc.

#if defined(__GLIBC__) && defined(__LP64__)
#if __GLIBC_PREREQ(2, 30)
#define BAO_HAS_HOOK_SYNC 1
#endif
#endif

#if defined(BAO_HAS_HOOK_SYNC)
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {
namespace hook {

// --- the parking lot ---------------------------------------------------------

// Those who wait for things whose addresses hash alike, in their order. To find
// the first of one address is linear in them.
struct parking_line {
  thread_mutex mutex;  // all but the count is for its holder alone
  std::atomic<int> count{0};
  list<class sleeper> sleepers;
};

struct parking_lot {
  parking_line for_mutexes[64];
  parking_line for_conditions[64];  // where many may wait for long
  thread_mutex calls;               // may be locked after that of a line
};

// The process has one, made by the compiler and never destroyed: there are
// locks before main() and after it.
union lasting_parking_lot {
  constexpr lasting_parking_lot() : itself() {}
  ~lasting_parking_lot() {}
  parking_lot itself;
};
inline lasting_parking_lot the_parking_lot;
inline parking_lot& lot = the_parking_lot.itself;

inline std::size_t hash_of(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) * 0x9e3779b97f4a7c15u >> 58;
}
inline parking_line& line_of(const pthread_mutex_t* m) {
  return lot.for_mutexes[hash_of(m)];
}
inline parking_line& line_of(const pthread_cond_t* c) {
  return lot.for_conditions[hash_of(c)];
}

// How a thread is told that others have woken tasks of it. Each has one, which
// is sent again and again: so to wake needs no memory, and what arrives refers
// to nobody who has left meanwhile. Nor is it ever destroyed.
struct wake_up_call : message {
  class sleeper* first = nullptr;  // of those who are to be woken
  class sleeper** last = nullptr;
  bool on_its_way = false;
};
inline thread_local wake_up_call wake_up_call_of_thread;

// Until when, by a clock of the system's.
struct time_limit {
  clockid_t clock;
  const timespec* time;  // null: there is none

  bool is_valid() const {
    return (clock == CLOCK_REALTIME || clock == CLOCK_MONOTONIC) &&
           (time == nullptr ||
            (time->tv_nsec >= 0 && time->tv_nsec < 1000000000));
  }
  deadline from_now() const {
    timespec is{};
    if (time == nullptr || ::clock_gettime(clock, &is) != 0) return never;
    return duration_of(*time) - duration_of(is);
  }
};
inline constexpr time_limit no_limit{CLOCK_REALTIME, nullptr};

// One who waits, a task or a thread without. Lies on its stack, and stands in
// line from the beginning.
class sleeper : public list_node<sleeper> {
 public:
  template <class What>
  sleeper(const What* what, scheduler* home)
      : address_(what), home_(home), line_(line_of(what)) {
    if (home != nullptr) get_ready_for_calls();
    {
      const thread_lock hold(line_.mutex);
      line_.sleepers.push_back(*this);
      line_.count.fetch_add(1, std::memory_order_relaxed);
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);  // see unlock
  }
  sleeper(const sleeper&) = delete;
  ~sleeper() {
    if (!has_left_) leave_line();
    if (way_) {
      const thread_lock hold(lot.calls);
      if (called_) take_off_call();
    }
    errno = errno_before_;
  }

  // These three do not suspend; their callers hold the line's mutex.

  // The first who waits for something; null when there is none.
  template <class What>
  static sleeper* first_of(const What* what) {
    return first_of(line_of(what), what);
  }
  // From then on nobody else refers to this one, but for a call on its way.
  void step_out() {
    if (!in_list()) return;
    leave();
    line_.count.fetch_sub(1, std::memory_order_relaxed);
  }
  void wake() {
    woken_ = true;
    if (home_ == nullptr)
      original::pthread_cond_signal(&bell_);
    else if (home_ == tasks_here())
      home_->wake(*task_);
    else if (way_)
      call();
  }

  // Never suspends.
  bool is_first() const {
    const thread_lock hold(line_.mutex);
    return first_of(line_, address_) == this;
  }

  // Suspends the task until it is woken, perhaps for nothing, or `until` passes
  // (false).
  bool park(deadline until, const char* why) {
    const shield from_interruptions;
    home_->park_in_c(way_ ? until : std::min(until, deadline(pauses_.next())),
                     {why});
    return !until.passed();
  }

  // Suspends the task, or blocks the thread, until it is woken (true) or late,
  // and leaves the line.
  bool sleep(const time_limit& limit) {
    if (home_ == nullptr) {
      block(limit);
    } else {
      const deadline until = limit.from_now();
      bool late = false;
      while (!is_woken() && !late)
        late = !park(until, "waiting for pthread condition");
    }
    return leave_line();
  }
  bool leave_line() {
    const thread_lock hold(line_.mutex);
    step_out();
    has_left_ = true;
    return woken_;
  }

 private:
  static sleeper* first_of(parking_line& line, const void* address) {
    sleeper* s = line.sleepers.first();
    while (s != nullptr && s->address_ != address) s = line.sleepers.after(*s);
    return s;
  }
  bool is_woken() const {
    const thread_lock hold(line_.mutex);
    return woken_;
  }
  void block(const time_limit& limit) {
    const thread_lock hold(line_.mutex);
    pthread_mutex_t* const mutex = line_.mutex.native();
    int error = 0;
    while (!woken_ && error == 0)
      error = limit.time == nullptr
                  ? original::pthread_cond_wait(&bell_, mutex)
                  : original::pthread_cond_clockwait(&bell_, mutex, limit.clock,
                                                     limit.time);
  }

  // Where there is no memory for a mailbox of the thread, the task looks for
  // itself every now and then.
  void get_ready_for_calls() {
    try {
      way_ = remote(*home_);
    } catch (const std::bad_alloc&) {
    }
    task_ = &home_->running();
    call_ = &wake_up_call_of_thread;
    call_->arrive = [](message& m, scheduler* s) {
      const thread_lock hold(lot.calls);
      auto& arrived = static_cast<wake_up_call&>(m);
      arrived.on_its_way = false;
      while (sleeper* const one = arrived.first) {
        one->take_off_call();
        if (s != nullptr) s->wake(*one->task_);
      }
    };
  }
  void call() {
    const thread_lock hold(lot.calls);
    if (std::exchange(called_, true)) return;
    if (call_->first == nullptr) call_->last = &call_->first;
    *call_->last = this;
    call_->last = &next_called_;
    // A thread that has ended takes none; nor do its tasks run any more.
    if (!std::exchange(call_->on_its_way, true)) way_.put(*call_);
  }
  void take_off_call() {
    sleeper** link = &call_->first;
    while (*link != this) link = &(*link)->next_called_;
    *link = std::exchange(next_called_, nullptr);
    if (*link == nullptr) call_->last = link;
    called_ = false;
  }

  const void* const address_;
  scheduler* const home_;  // null: a thread waits
  parking_line& line_;
  bool woken_ = false;
  bool has_left_ = false;  // set by ourselves, and so read without the mutex
  const int errno_before_ = errno;

  pthread_cond_t bell_ = PTHREAD_COND_INITIALIZER;  // of a thread

  task_block* task_ = nullptr;
  remote way_;
  wake_up_call* call_ = nullptr;
  bool called_ = false;
  sleeper* next_called_ = nullptr;
  growing_pause pauses_;
};

// Whether somebody waits for it, or for what hashes alike.
template <class What>
bool may_be_wanted(const What* what) {
  return line_of(what).count.load(std::memory_order_relaxed) != 0;
}

// --- mutexes -----------------------------------------------------------------

// Whether tasks wait for it here. Left to libc, which blocks, are mutexes that
// other processes unlock, and those with priorities.
inline bool is_for_tasks(const pthread_mutex_t* m) {
  constexpr int robust = 16, inherits = 32, protects = 64, shared = 128;
  return (m->__data.__kind & (robust | inherits | protects | shared)) == 0;
}

// Some mutexes know their owner, a thread. The number of its task is noted in
// links that glibc uses for robust ones alone; 0 is the main task, or a thread
// without any. Only the owner writes it.
inline bool knows_owner(const pthread_mutex_t* m) {
  const int type = m->__data.__kind & 3;
  return type == PTHREAD_MUTEX_RECURSIVE || type == PTHREAD_MUTEX_ERRORCHECK;
}
inline bool is_noted(const pthread_mutex_t* m, const task_block& t) {
  return reinterpret_cast<unsigned long>(m->__data.__list.__next) == t.id;
}
inline bool is_held_by(const pthread_mutex_t* m, const task_block& t) {
  return knows_owner(m) && m->__data.__owner == ::gettid() && is_noted(m, t);
}
inline void note_owner(pthread_mutex_t* m) {
  if (!is_for_tasks(m) || !knows_owner(m) || m->__data.__count > 1) return;
  scheduler* const s = tasks_here();
  m->__data.__list.__next = reinterpret_cast<__pthread_internal_list*>(
      s == nullptr ? 0 : s->running().id);
}

// pthread_mutex_trylock() for a task: what another task of the thread holds is
// busy, even if it is recursive.
inline int try_to_lock(pthread_mutex_t* m, const task_block& me) {
  const int error = original::pthread_mutex_trylock(m);
  if (error != 0 || !knows_owner(m)) return error;
  if (m->__data.__count > 1 && !is_noted(m, me)) {
    original::pthread_mutex_unlock(m);
    return EBUSY;
  }
  note_owner(m);
  return 0;
}

// Wakes the first who waits for a mutex, which may have been destroyed.
inline void wake_next(const pthread_mutex_t* m) {
  if (!may_be_wanted(m)) return;
  const thread_lock hold(line_of(m).mutex);
  if (sleeper* const next = sleeper::first_of(m)) next->wake();
}

// Suspends until the mutex is ours, after all who were in line before, or the
// limit has passed.
inline int lock_until(scheduler& s, pthread_mutex_t* m,
                      const time_limit& limit) {
  const task_block& me = s.running();
  int error = EBUSY;
  if (!may_be_wanted(m) || is_held_by(m, me)) error = try_to_lock(m, me);
  if (error == EBUSY && is_held_by(m, me)) error = EDEADLK;
  if (error == EBUSY && !limit.is_valid()) error = EINVAL;
  if (error != EBUSY) return error;
  {
    const deadline until = limit.from_now();
    sleeper place(m, &s);
    for (bool late = false;;) {
      if (place.is_first()) error = try_to_lock(m, me);
      if (error != EBUSY || late) break;
      late = !place.park(until, "locking pthread mutex");
    }
  }
  // An unlock may have woken us, who go without: the next one is to try.
  if (error != 0) wake_next(m);
  return error == EBUSY ? ETIMEDOUT : error;
}

// One that a task can wait for, or null: then the call is to be libc's own.
inline scheduler* here_for(const pthread_mutex_t* m) {
  scheduler* const s = here();
  return s != nullptr && is_for_tasks(m) ? s : nullptr;
}

inline int locked_by_libc(pthread_mutex_t* m, int error) {
  if (error == 0) note_owner(m);
  return error;
}

inline int pthread_mutex_lock(pthread_mutex_t* m) {
  if (scheduler* const s = here_for(m)) return lock_until(*s, m, no_limit);
  return locked_by_libc(m, original::pthread_mutex_lock(m));
}

inline int pthread_mutex_clocklock(pthread_mutex_t* m, clockid_t clock,
                                   const timespec* until) {
  if (scheduler* const s = here_for(m))
    return lock_until(*s, m, {clock, until});
  return locked_by_libc(m, original::pthread_mutex_clocklock(m, clock, until));
}
inline int pthread_mutex_timedlock(pthread_mutex_t* m, const timespec* until) {
  return hook::pthread_mutex_clocklock(m, CLOCK_REALTIME, until);
}

// Suspends now and then: a loop of tries must not keep the thread from the task
// that could unlock.
inline int pthread_mutex_trylock(pthread_mutex_t* m) {
  scheduler* const s = here_for(m);
  if (s == nullptr)
    return locked_by_libc(m, original::pthread_mutex_trylock(m));
  const int error = try_to_lock(m, s->running());
  if (error == EBUSY && s->time_to_yield()) s->yield_in_c();
  return error;
}

// Never suspends. The two fences, this and a sleeper's, keep either side from
// reading before it has written.
inline int pthread_mutex_unlock(pthread_mutex_t* m) {
  const int error = original::pthread_mutex_unlock(m);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  wake_next(m);
  return error;
}

// --- conditions --------------------------------------------------------------

// Other processes signal this one.
inline bool is_shared(const pthread_cond_t* c) {
  return (__atomic_load_n(&c->__data.__wrefs, __ATOMIC_RELAXED) & 1) != 0;
}

// These three never suspend. Whoever is woken has left the line: the next
// signal is for another. libc is told, too, as threads may sleep there.
inline void wake_waiters(const pthread_cond_t* c, bool all) {
  if (!may_be_wanted(c)) return;
  const thread_lock hold(line_of(c).mutex);
  while (sleeper* const one = sleeper::first_of(c)) {
    one->step_out();
    one->wake();
    if (!all) return;
  }
}
inline int pthread_cond_signal(pthread_cond_t* c) {
  wake_waiters(c, false);
  return original::pthread_cond_signal(c);
}
inline int pthread_cond_broadcast(pthread_cond_t* c) {
  wake_waiters(c, true);
  return original::pthread_cond_broadcast(c);
}

// Suspends a task and blocks other threads, until there is a signal or the
// limit has passed. Threads, too, wait in the lot: libc would unlock the mutex
// by itself, and wake none of the tasks that want it.
inline int wait_for_signal(pthread_cond_t* c, pthread_mutex_t* m,
                           const time_limit& limit) {
  if (!limit.is_valid()) return EINVAL;
  sleeper place(c, here());
  if (const int error = hook::pthread_mutex_unlock(m)) return error;
  bool woken = false;
  try {
    woken = place.sleep(limit);
  } catch (...) {  // pthread_cancel(): a signal that was ours is for another
    const bool told = place.leave_line();
    hook::pthread_mutex_lock(m);
    if (told) hook::pthread_cond_signal(c);
    throw;
  }
  if (const int error = hook::pthread_mutex_lock(m)) return error;
  return woken ? 0 : ETIMEDOUT;
}

inline int pthread_cond_wait(pthread_cond_t* c, pthread_mutex_t* m) {
  if (!is_shared(c)) return wait_for_signal(c, m, no_limit);
  return locked_by_libc(m, original::pthread_cond_wait(c, m));
}
inline int pthread_cond_clockwait(pthread_cond_t* c, pthread_mutex_t* m,
                                  clockid_t clock, const timespec* until) {
  if (!is_shared(c)) return wait_for_signal(c, m, {clock, until});
  return locked_by_libc(m,
                        original::pthread_cond_clockwait(c, m, clock, until));
}
// By the clock that the condition was made for.
inline int pthread_cond_timedwait(pthread_cond_t* c, pthread_mutex_t* m,
                                  const timespec* until) {
  constexpr unsigned by_monotonic = 2;
  const unsigned flags = __atomic_load_n(&c->__data.__wrefs, __ATOMIC_RELAXED);
  return hook::pthread_cond_clockwait(
      c, m, (flags & by_monotonic) != 0 ? CLOCK_MONOTONIC : CLOCK_REALTIME,
      until);
}

// --- fork --------------------------------------------------------------------

// In the child. Those who wait are in the parent, and one of its threads may
// have held a mutex of the lot.
inline void clear_parking_lot() {
  new (&lot) parking_lot;
  wake_up_call_of_thread.first = nullptr;
  wake_up_call_of_thread.on_its_way = false;
}

}  // namespace hook
}  // namespace BAO_ABI
}  // namespace bao
#endif

// =============================================================================
// bao/patch.hpp - unmodified blocking libraries become cooperative
//
//     #include "bao.hpp"
//     BAO_PATCH_ALL();
//
// In one source file of a program, these lines define functions with the names
// of libc's blocking calls. The dynamic linker binds a name to the first
// definition in line, and the program comes before all libraries: so libcurl's
// poll(), libpq's recv(), std::ifstream's read() are from then on those of
// hook.hpp, and fifty of each run at a time on one thread.
//
//     curl_easy_perform() --> poll() --> hook::poll() --> other tasks run
//                                             |
//                                             '--> libc's, where none could
//
// BAO_PATCH_SYNC() does the same for the mutexes and conditions of threads.
//
// What libc calls itself is not seen: a FILE* blocks as ever, but for one that
// bao::fdopen() has made. Nor is anything of plugins loaded by RTLD_DEEPBIND;
// patch_status() tells what is live. A program that is linked statically says
// that it cannot be patched, and ends.
//
// It costs about 2 ns a call where there are no tasks.

#if defined(__GLIBC__)
#include <dlfcn.h>
#include <stdio.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// While one lives, the task that made it calls libc's own functions, which
// block the thread. On a thread that runs no tasks it changes nothing. Neither
// to make nor to destroy one suspends.
class patch_off {
 public:
  [[nodiscard]] patch_off() {
    scheduler* const s = tasks_here();
    if (s == nullptr) return;
    task_ = &s->running();
    ++task_->unpatched;
  }
  patch_off(const patch_off&) = delete;
  ~patch_off() {
    if (task_ != nullptr) --task_->unpatched;
  }

 private:
  task_block* task_ = nullptr;
};

// The names that BAO_PATCH_ALL() and BAO_PATCH_SYNC() have defined, if they are
// in the program.
struct patched_names {
  const char* const* first = nullptr;
  std::size_t count = 0;
};
inline patched_names patched, patched_locks;

struct patched_call {
  std::string name;
  bool live;  // whoever calls it by this name gets ours
};

// Never suspends. Looks up each name as the dynamic linker does for a library
// of this program, and says whether it finds what BAO_PATCH_ALL() or
// BAO_PATCH_SYNC() has defined; prints a table of that to `to` unless it is
// null. Empty if they are in no file of the program.
inline std::vector<patched_call> patch_status(std::FILE* to = stderr) {
  std::vector<patched_call> all;
  long live = 0;
  // To take the address of ours looks it up by its name, too, and so proves
  // nothing: what counts is the object in which it lies.
  const auto object_of = [](const void* p) {
    Dl_info where{};
    return p != nullptr && ::dladdr(p, &where) != 0 ? where.dli_fbase : nullptr;
  };
  for (const patched_names& some : {patched, patched_locks}) {
    const void* const ours = object_of(some.first);
    for (std::size_t i = 0; i < some.count; ++i) {
      const char* const name = some.first[i];
      all.push_back({name, object_of(::dlsym(RTLD_DEFAULT, name)) == ours});
      live += all.back().live;
    }
  }
  if (to == nullptr) return all;
  std::fprintf(to, "bao: %ld of %zu calls are patched\n", live, all.size());
  for (const patched_call& one : all)
    std::fprintf(
        to, "  %-24s %s\n", one.name.c_str(),
        one.live ? "live" : "not live: the linker finds another first");
  return all;
}

// Never suspends. A FILE* for a descriptor, as libc's fdopen() makes it; but
// reads and writes of it suspend where they have to wait. It owns the
// descriptor, and fileno() does not know it. For one task at a time: stdio's
// locks are for threads. Returns null, and sets errno, as fdopen() does.
inline std::FILE* fdopen(int fd, const char* mode) {
  const int flags = hook::original::fcntl(fd, F_GETFL, nullptr);
  if (flags == -1) return nullptr;
  const int access = flags & O_ACCMODE;
  const bool both = std::strchr(mode, '+') != nullptr;
  if ((access == O_WRONLY && (both || *mode == 'r')) ||
      (access == O_RDONLY && (both || *mode != 'r'))) {
    errno = EINVAL;
    return nullptr;
  }
  if (*mode == 'a' && (flags & O_APPEND) == 0 &&
      hook::original::fcntl(
          fd, F_SETFL, reinterpret_cast<void*>(long{flags | O_APPEND})) == -1)
    return nullptr;
  static constexpr auto number = [](void* cookie) {
    return static_cast<int>(reinterpret_cast<std::intptr_t>(cookie));
  };
  cookie_io_functions_t calls{};
  calls.read = [](void* cookie, char* p, std::size_t n) {
    return hook::read(number(cookie), p, n);
  };
  calls.write = [](void* cookie, const char* p, std::size_t n) {
    return std::max<ssize_t>(hook::write(number(cookie), p, n), 0);
  };
  calls.seek = [](void* cookie, off64_t* at, int from) {
    const off_t now = ::lseek(number(cookie), *at, from);
    if (now == -1) return -1;
    *at = now;
    return 0;
  };
  calls.close = [](void* cookie) { return hook::close(number(cookie)); };
  return ::fopencookie(reinterpret_cast<void*>(std::intptr_t{fd}), mode, calls);
}

namespace hook {

// A line to stderr, once, if there is a patch and nothing of it is live: else
// programs that it does not reach would just be slow.
inline void tell_if_dead() {
  for (const patched_call& one : patch_status(nullptr))
    if (one.live) return;
  std::fprintf(stderr,
               "bao: %s() has no effect: the linker finds other definitions "
               "first (a plugin? loaded with RTLD_DEEPBIND?)\n",
               patched.count != 0 ? "BAO_PATCH_ALL" : "BAO_PATCH_SYNC");
}

// Makes a pointer to libc's function of this name point to what comes behind
// ours; to `version` of it, unless that is null or missing.
template <class Call>
void find_original(Call& call, const char* name, const char* version,
                   const char* macro) {
  // ASan's checks come before libc, and have this name wherever they are.
  const std::string interceptor = std::string("__interceptor_") + name;
  void* next = ::dlsym(RTLD_DEFAULT, interceptor.c_str());
  if (next == nullptr && version != nullptr)
    next = ::dlvsym(RTLD_NEXT, name, version);
  if (next == nullptr) next = ::dlsym(RTLD_NEXT, name);
  if (next == nullptr) {
    std::fprintf(stderr,
                 "%s: there is no %s but ours: a program that is linked "
                 "statically cannot be patched\n",
                 macro, name);
    std::_Exit(1);
  }
  std::memcpy(&call.now, &next, sizeof next);
}

inline bool originals_found = false;

// Finds libc's own functions; called before any of ours does anything. If what
// it calls calls one of ours, an allocator's read(), say, that fails.
[[gnu::cold, gnu::noinline]] inline bool find_originals() {
  static bool searching = false;
  if (std::exchange(searching, true)) {
    errno = ENOSYS;
    return false;
  }
#define BAO_FIND(result, name, parameters, arguments) \
  find_original(original::name, #name, nullptr, "BAO_PATCH_ALL");
  BAO_LIBC(BAO_FIND)
#undef BAO_FIND
  return originals_found = true;
}

inline bool original_locks_found = false;

// The same for mutexes and conditions. There is but one thread yet: so locks
// that an allocator takes meanwhile succeed, and do nothing. On x86-64 glibc
// has conditions of another layout by the same names, from before 2.3.2.
[[gnu::cold, gnu::noinline]] inline bool find_original_locks() {
  static bool searching = false;
  if (std::exchange(searching, true)) return false;
#define BAO_FIND(result, name, parameters, arguments) \
  find_original(original::name, #name, "GLIBC_2.3.2", "BAO_PATCH_SYNC");
  BAO_LIBC_LOCKS(BAO_FIND)
#undef BAO_FIND
  return original_locks_found = true;
}

// What a call returns that fails.
template <class Result>
Result failure() {
  if constexpr (std::is_pointer_v<Result>)
    return nullptr;
  else
    return static_cast<Result>(-1);
}

// Called before main(), once libc's names are ours.
inline void begin_patch(const char* const* names, std::size_t n) {
  if (!originals_found) find_originals();
  patched = {names, n};
  before_first_task = tell_if_dead;
}

#if defined(BAO_HAS_HOOK_SYNC)
inline void begin_patch_of_locks(const char* const* names, std::size_t n) {
  if (!original_locks_found) find_original_locks();
  patched_locks = {names, n};
  before_first_task = tell_if_dead;
  ::pthread_atfork(nullptr, nullptr, clear_parking_lot);
}
#endif

// Under _FORTIFY_SOURCE, where a compiler knows how much room there is, it
// calls other functions, which end the program if that is not enough.
extern "C" [[noreturn]] void __chk_fail();
inline std::size_t within(std::size_t n, std::size_t room) {
  if (n > room) __chk_fail();
  return n;
}

}  // namespace hook
}  // namespace BAO_ABI
}  // namespace bao

// In one source file of a program, at namespace scope: defines libc's names.
#define BAO_PATCH_ALL()                                                      \
  BAO_LIBC(BAO_PATCH_CALL)                                                   \
  BAO_LIBC_ALIASES(BAO_PATCH_CALL_AS)                                        \
  namespace {                                                                \
  const char* const bao_patched_names[] = {                                  \
      BAO_LIBC(BAO_PATCH_NAME) BAO_LIBC_ALIASES(BAO_PATCH_NAME_AS)};         \
  [[gnu::constructor(101)]] void bao_patch() {                               \
    bao::hook::begin_patch(bao_patched_names, std::size(bao_patched_names)); \
  }                                                                          \
  }                                                                          \
  BAO_PATCH_IN_ONE_FILE(BAO_PATCH_ALL)
// A name that makes a second use an error.
#define BAO_PATCH_IN_ONE_FILE(macro)                \
  extern "C" __attribute__((visibility("default"))) \
  const char macro##_is_in_two_files[] {            \
    "only one of them may define it"                \
  }

// Visible to all. Weak, so that a program links statically with libc, too; but
// not beside a sanitizer, which defines the same names.
#if defined(BAO_ASAN) || defined(BAO_TSAN)
#define BAO_PATCH_LINKAGE visibility("default"), used
#else
#define BAO_PATCH_LINKAGE visibility("default"), used, weak
#endif
#define BAO_PATCH_CALL(result, name, parameters, arguments) \
  BAO_PATCH_CALL_AS(name, result, name, parameters, arguments)
// Bound to what the linker calls it: of the name itself, a header may have made
// a macro or an inline function.
#define BAO_PATCH_CALL_AS(symbol, result, name, parameters, arguments) \
  extern "C" __attribute__((BAO_PATCH_LINKAGE))                        \
  result bao_patched_##symbol parameters __asm__(#symbol);             \
  extern "C" result bao_patched_##symbol parameters {                  \
    return bao::hook::originals_found || bao::hook::find_originals()   \
               ? bao::hook::name arguments                             \
               : bao::hook::failure<result>();                         \
  }
#define BAO_PATCH_NAME(result, name, parameters, arguments) #name,
#define BAO_PATCH_NAME_AS(symbol, result, name, parameters, arguments) #symbol,

// The same for mutexes and conditions: beside BAO_PATCH_ALL(), or alone.
#if defined(BAO_TSAN)
#define BAO_PATCH_SYNC() \
  static_assert(false, "BAO_PATCH_SYNC: ThreadSanitizer watches locks itself")
#elif !defined(BAO_HAS_HOOK_SYNC)
#define BAO_PATCH_SYNC()                                                    \
  static_assert(false,                                                      \
                "BAO_PATCH_SYNC: this is for the GNU C library, from 2.30 " \
                "on, of 64 bits")
#else
#define BAO_PATCH_SYNC()                                                    \
  BAO_LIBC_LOCKS(BAO_PATCH_LOCK)                                            \
  namespace {                                                               \
  const char* const bao_patched_locks[] = {BAO_LIBC_LOCKS(BAO_PATCH_NAME)}; \
  [[gnu::constructor(101)]] void bao_patch_locks() {                        \
    bao::hook::begin_patch_of_locks(bao_patched_locks,                      \
                                    std::size(bao_patched_locks));          \
  }                                                                         \
  }                                                                         \
  BAO_PATCH_IN_ONE_FILE(BAO_PATCH_SYNC)
#endif
#define BAO_PATCH_LOCK(result, name, parameters, arguments)                    \
  extern "C" __attribute__((BAO_PATCH_LINKAGE))                                \
  result bao_patched_##name parameters __asm__(#name);                         \
  extern "C" result bao_patched_##name parameters {                            \
    return bao::hook::original_locks_found || bao::hook::find_original_locks() \
               ? bao::hook::name arguments                                     \
               : 0;                                                            \
  }

// Under other names: for large files, and with checks.
// clang-format off
#define BAO_LIBC_ALIASES(CALL)                                                 \
  CALL(__read_chk, ssize_t, read,                                              \
       (int fd, void* p, size_t n, size_t room),                               \
       (fd, p, bao::hook::within(n, room)))                                    \
  CALL(__pread_chk, ssize_t, pread,                                            \
       (int fd, void* p, size_t n, off_t at, size_t room),                     \
       (fd, p, bao::hook::within(n, room), at))                                \
  CALL(__recv_chk, ssize_t, recv,                                              \
       (int fd, void* p, size_t n, size_t room, int flags),                    \
       (fd, p, bao::hook::within(n, room), flags))                             \
  CALL(__recvfrom_chk, ssize_t, recvfrom,                                      \
       (int fd, void* p, size_t n, size_t room, int flags, sockaddr* from,     \
        socklen_t* size),                                                      \
       (fd, p, bao::hook::within(n, room), flags, from, size))                 \
  CALL(__poll_chk, int, poll,                                                  \
       (pollfd* fds, nfds_t n, int ms, size_t room),                           \
       (fds, bao::hook::within(n, room / sizeof *fds), ms))                    \
  CALL(__ppoll_chk, int, ppoll,                                                \
       (pollfd* fds, nfds_t n, const timespec* limit, const sigset_t* mask,    \
        size_t room),                                                          \
       (fds, bao::hook::within(n, room / sizeof *fds), limit, mask))           \
  BAO_LIBC_LARGE_FILES(CALL)

#if defined(__LP64__)
#define BAO_LIBC_LARGE_FILES(CALL)                                             \
  CALL(fcntl64, int, fcntl, (int fd, int command, void* argument),             \
       (fd, command, argument))                                                \
  CALL(pread64, ssize_t, pread, (int fd, void* p, size_t n, off_t at),         \
       (fd, p, n, at))                                                         \
  CALL(__pread64_chk, ssize_t, pread,                                          \
       (int fd, void* p, size_t n, off_t at, size_t room),                     \
       (fd, p, bao::hook::within(n, room), at))                                \
  CALL(pwrite64, ssize_t, pwrite,                                              \
       (int fd, const void* p, size_t n, off_t at), (fd, p, n, at))            \
  CALL(preadv64, ssize_t, preadv,                                              \
       (int fd, const iovec* parts, int n, off_t at), (fd, parts, n, at))      \
  CALL(pwritev64, ssize_t, pwritev,                                            \
       (int fd, const iovec* parts, int n, off_t at), (fd, parts, n, at))      \
  CALL(preadv64v2, ssize_t, preadv2,                                           \
       (int fd, const iovec* parts, int n, off_t at, int flags),               \
       (fd, parts, n, at, flags))                                              \
  CALL(pwritev64v2, ssize_t, pwritev2,                                         \
       (int fd, const iovec* parts, int n, off_t at, int flags),               \
       (fd, parts, n, at, flags))                                              \
  CALL(sendfile64, ssize_t, sendfile, (int to, int from, off_t* at, size_t n), \
       (to, from, at, n))
#else
#define BAO_LIBC_LARGE_FILES(CALL)
#endif
// clang-format on
#else
#define BAO_PATCH_ALL() \
  static_assert(false, "BAO_PATCH_ALL: this is for the GNU C library")
#define BAO_PATCH_SYNC() \
  static_assert(false, "BAO_PATCH_SYNC: this is for the GNU C library")
#endif

// =============================================================================
// bao/debug.hpp - ask who waits, and where
//
// The program can ask itself: report() writes a line for every task, with how
// much of its stack is in use, and where the C library can tell, the functions
// that it is in, with their names if it was linked with -rdynamic. report_on()
// has that done when a signal arrives, Ctrl-\ say. And gdb can be asked:
//
//     (gdb) bao tasks
//     Thread 1:
//       task 0 "main" is running
//       task 3 "reader" (main.cpp:4) is parked: reading descriptor 7, for 2.0 s
//     (gdb) bao task 3          its stack, those of its generators included
//     (gdb) bao tasks bt        all stacks; any other command does as well
//     (gdb) bao task 3 frame apply all -q info locals
//
// It works in a process and in a core file, optimised or not, of a program that
// was compiled with -g. The commands are a script that lies in the program. gdb
// reads it once ~/.config/gdb/gdbinit trusts the folder of the program:
//
//     add-auto-load-safe-path /home/harry/src
//
// A program that runs never sees the script: it lies where debug information
// does, 5 KB in all. From Linux 6.13 on, gdb's own `gcore` gives up at the
// first guard and so loses the stacks; the cores that the system writes have
// them.

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Never suspends. Writes what each task of this thread does, and where, and how
// far down it is on the stack that it stands on: a generator has another one.
// To tell that takes 2 KiB of the stack of a task that waits.
inline void report(std::FILE* to = stderr) {
  std::fputs(this_scheduler().report().c_str(), to);
}

// Never suspends. From now on, when this signal arrives, report() is written to
// stderr for each thread that has called this, as soon as its running task
// gives way; what the signal did before is replaced. Kill the task that is
// returned to end that. It keeps nobody waiting: join_all() goes by without it,
// and a deadlock is one all the same. A child process is to call this anew.
// Throws as wait_signal() does, which may have the signal as well.
inline task<> report_on(int signal, place at = place::here()) {
  signals.begin_to_handle(signal, "report_on");
  const std::atomic<unsigned>& arrived = signals.arrived[signal];
  auto serve = [seat = signal_seat("report_on"), &arrived,
                seen = arrived.load()]() mutable {
    int& idle_waits = this_scheduler().idle_waits;
    for (;; report()) {
      while (arrived == seen) {
        ++idle_waits;
        const at_end waited([&] { --idle_waits; });
        seat.wait(never);
      }
      seen = arrived;
    }
  };
  auto made = spawn(task_options(at).name("report"), std::move(serve));
  made.checked("report_on").background = true;
  return made;
}

}  // namespace BAO_ABI
}  // namespace bao

#if defined(__ELF__)

// clang-format off

// The linker makes one of all, however many files include this.
#define BAO_GDB_SCRIPT(...)                                             \
  __asm__(".pushsection .debug_gdb_scripts, \"MS\", %progbits, 1\n"      \
          ".byte 4\n"                                                   \
          ".ascii \"gdb.inlined-script.bao\\n\"\n"                       \
          ".ascii \"abi = 'bao::" BAO_STRING(BAO_ABI) "::'\\n\"\n"       \
          ".ascii " #__VA_ARGS__ "\n"                                   \
          ".byte 0\n"                                                   \
          ".popsection")

BAO_GDB_SCRIPT(
"import gdb, gdb.unwinder\n",

// Shows a flow that stands still as the caller of what its thread runs: so
// there is nothing to write, and nothing to put back.
"class Unwinder(gdb.unwinder.Unwinder):\n",
"  flow = None\n",
"  def __call__(self, frame):\n",
"    if not self.flow or frame.read_register('sp') != self.top: return None\n",
"    self.sp, self.pc = self.flow[0][1], frame.read_register('pc')\n",
"    info = frame.create_unwind_info(self)\n",
"    for name, value in self.flow: info.add_saved_register(name, value)\n",
"    return info\n",
"unwinder = Unwinder('bao')\n",
"gdb.unwinder.register_unwinder(None, unwinder, replace=True)\n",

// What lies there, without a look at its vtable: of a lambda's gdb warns.
"def at(pointer, kind='fiber'):\n",
"  kind = gdb.lookup_type(abi + kind)\n",
"  memory = gdb.selected_inferior().read_memory(int(pointer), kind.sizeof)\n",
"  return gdb.Value(bytes(memory), kind)\n",

"def variable(name): return gdb.lookup_global_symbol(abi + name)\n",

"def registers(flow):\n",
"  arch = gdb.newest_frame().architecture().name()\n",
"  names = 'sp x29 pc x19'\n",
"  if 'riscv' in arch: names = 'sp fp pc s1'\n",
"  if 'x86' in arch: names = 'rsp rbp rip rbx r12 r13 r14 r15'\n",
"  members = gdb.lookup_type(abi + 'context').fields()[1:]\n",
"  values = [flow[member.name] for member in members]\n",
"  if '_ucontext_' in abi:\n",
"    saved = values[0]['uc_mcontext']\n",
"    if 'x86' in arch:\n",
"      values = [saved['gregs'][i] for i in (15, 10, 16, 11, 4, 5, 6, 7)]\n",
"    else: values = saved['sp'], saved['regs'][29], saved['pc']\n",
"  return list(zip(names.split(), values))\n",

// Runs a command in a flow that stands still, or else in the one that runs.
"def run(command, flow):\n",
"  unwinder.top = gdb.newest_frame().read_register('sp')\n",
"  unwinder.flow = flow and registers(flow)\n",
"  gdb.invalidate_cached_frames()\n",
"  try:\n",
"    level, frame = 0, gdb.newest_frame()\n",
"    while flow and frame.pc() != int(unwinder.flow[2][1]):\n",
"      level, frame = level + 1, frame.older()\n",
"      if not frame: raise gdb.error('its stack cannot be read')\n",
"    frame.select()\n",
"    text = '\\n' + gdb.execute(command, to_string=True).rstrip()\n",
"    text = text[max(text.find('\\n#%d ' % level), 0):]\n",
"    print('    ' + text[1:].replace('\\n', '\\n    '))\n",
"  except gdb.error as error: print('    %s' % error)\n",
"  finally:\n",
"    unwinder.flow = None\n",
"    gdb.invalidate_cached_frames()\n",

// libstdc++'s strings begin with where the text is. What else they have, clang
// does not tell; and of libc++ no name is shown.
"def name_of(address):\n",
"  member = gdb.lookup_type(abi + 'task_block')['name']\n",
"  kind = gdb.lookup_type('char').pointer().pointer()\n",
"  text = gdb.Value(int(address) + member.bitpos // 8).cast(kind)\n",
"  try: return text.dereference().string()\n",
"  except (gdb.error, UnicodeError): return ''\n",

"def describe(task, name, now):\n",
"  state = str(task['stage']).split('::')[-1]\n",
"  text = '  task %d' % int(task['id'])\n",
"  if name: text += ' \"%s\"' % name\n",
"  file, line = task['file'].string(), int(task['line'])\n",
"  if line: text += ' (%s:%d)' % (file, line)\n",
"  if state == 'created': return text + ' has not started'\n",
"  if state != 'parked': return text + ' is ' + state\n",
"  wait = task['waits_for']\n",
"  text += ' is parked: ' + wait['what'].string()\n",
"  if wait['number'] != -1: text += ' %d' % int(wait['number'])\n",
"  return text + ', for %.1f s' % (int(now - task['waits_since']) / 1e9)\n",

"def show(task, runs, command):\n",
"  flow = task['parked_in']\n",
"  if runs: flow = variable('current_flow').value()\n",
"  if not command or not flow: return\n",
"  flow = at(flow)\n",
"  run(command, None if runs else flow)\n",
"  while True:\n",
"    lends = flow['lends']\n",
"    next = flow['killer'] if flow['killer'] and not lends else flow['link']\n",
"    if not next: return\n",
"    flow = at(next)\n",
"    if flow['leaf']: flow = at(flow['leaf'])\n",
"    print('   which was resumed by' if lends else '   whose parent is')\n",
"    run(command, flow)\n",

"def tasks(scheduler):\n",
"  kind = gdb.lookup_type(abi + 'task_block').pointer()\n",
"  yield scheduler['main_'].address\n",
"  end = scheduler['tasks_']['end_']\n",
"  node = end['next_']\n",
"  while node != end.address:\n",
"    yield node.cast(kind)\n",
"    node = node['next_']\n",

"def each(number, command):\n",
"  if not variable('current_thread'):\n",
"    raise gdb.GdbError('bao: this program was compiled without -g')\n",
"  was, found = gdb.selected_thread(), False\n",
"  if not was: raise gdb.GdbError('bao: the program does not run')\n",
"  frame = gdb.selected_frame()\n",
"  threads = [was] if number >= 0 else gdb.selected_inferior().threads()\n",
"  try:\n",
"    for thread in sorted(threads, key=lambda t: t.num):\n",
"      if not thread.is_stopped(): continue\n",
"      thread.switch()\n",
"      state = variable('current_thread').value()\n",
"      if not state or not state['tasks']: continue\n",
"      scheduler = state['tasks'].dereference()\n",
"      print('Thread %d:' % thread.num)\n",
"      for address in tasks(scheduler):\n",
"        task = at(address, 'task_block')\n",
"        if number >= 0 and number != task['id']: continue\n",
"        found = True\n",
"        print(describe(task, name_of(address), scheduler['now_']))\n",
"        show(task, address == scheduler['running_'], command)\n",
"  finally:\n",
"    was.switch()\n",
"    frame.select()\n",
"  if not found: raise gdb.GdbError('bao: no such task here')\n",

"class Tasks(gdb.Command):\n",
"  '''bao tasks [COMMAND]: lists all tasks; runs COMMAND in each.'''\n",
"  def invoke(self, command, tty): each(-1, command)\n",

"class Task(gdb.Command):\n",
"  '''bao task N [COMMAND]: COMMAND, or bt, in task N of this thread.'''\n",
"  def invoke(self, words, tty):\n",
"    number, space, command = words.partition(' ')\n",
"    if not number.isdigit(): raise gdb.GdbError(self.__doc__)\n",
"    each(int(number), command or 'bt')\n",

"gdb.Command('bao', gdb.COMMAND_STACK, prefix=True)\n",
"Tasks('bao tasks', gdb.COMMAND_STACK)\n",
"Task('bao task', gdb.COMMAND_STACK)\n"
);

// clang-format on
#undef BAO_GDB_SCRIPT
#endif

// =============================================================================
// bao/watchdog.hpp - who keeps the thread
//
// A task that computes for long, or blocks in a call that bao knows nothing of,
// holds up all the others. They cannot say so, for none of them runs: so
// another thread looks on.
//
//     bao::watchdog dog(100ms);  // this thread's, as long as it lives
//
//     bao: task 3 "parser" (server.cpp:4) keeps its thread, for 0.104 s so far
//         ./server(_Z5parseRKSs+0x2c) [0x55d0c8a0b1d2]
//
//     still the same turn?  --no--> all is well
//          | yes, as long as the limit
//          v
//     SIGURG: where are you?
//
// Turns are numbered, so a task that gives way is never taken for one that does
// not. But only the thread itself knows where it stands: so it is asked by a
// signal. SIGURG is one that programs hardly use and that is ignored by
// default. It is sent to those only who keep the thread too long: poll() and
// nanosleep() return early then, with EINTR.
//
// The price is some ns each time the thread looks around; a turn costs nothing.
// While the thread sleeps, so does the one that looks on.

#if defined(__GLIBC__) && defined(__x86_64__)
#include <ucontext.h>
#include <unwind.h>
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A task that keeps its thread.
struct stall {
  const char* task;               // task 3 "parser" (server.cpp:4)
  std::chrono::nanoseconds kept;  // so far, at least
  const trace& where;             // it is, with the handler on top
};

// None of its members suspends. One for a thread; it is destroyed there, and
// a child process has none. It measures real time, whatever virtual_time says.
class watchdog final : private onlooker {
 public:
  // From now on a task that keeps this thread for longer than `limit` is told
  // of before it has done so for twice that time, and again when it has for 2,
  // 4, 8 ... times as long: to stderr, or by tell(stall), which is called on
  // another thread, must not throw, and is waited for. Throws std::logic_error
  // when the thread has a watchdog, std::invalid_argument for a limit that is
  // not positive, and std::system_error when there can be no thread.
  [[nodiscard]] explicit watchdog(
      std::chrono::nanoseconds limit,
      std::function<void(const stall&)> tell = print);
  watchdog(const watchdog&) = delete;
  ~watchdog() {
    if (home_ == nullptr) return;
    if (home_ != tasks_here())
      die("a watchdog is destroyed on another thread than its own");
    ends();
  }

 private:
  static void print(const stall& s) {
    std::fprintf(stderr, "bao: %s keeps its thread, for %.3f s so far%s",
                 s.task, static_cast<double>(s.kept.count()) * 1e-9,
                 s.where.text().c_str());
  }

  // Told by the scheduler. Who wakes says so after the new turn has begun.
  void sleeps() noexcept override { asleep_ = true; }
  void awake() noexcept override {
    if (!asleep_.load(std::memory_order_relaxed)) return;
    asleep_ = false;
    if (dozes_) bell_.ring();
  }
  void ends() noexcept override;

  // On the other thread.
  void look_on();
  void rest(int milliseconds) {
    pollfd p{bell_.fd(), POLLIN, 0};
    ::poll(&p, 1, milliseconds);
    bell_.answer();
  }

  // On ours, in the handler of the signal.
  static void handle(int signal, siginfo_t* info, void* where);
  void look_closer(const void* where);
  [[gnu::no_sanitize_address]] static bool between_flows(const void* where);

  inline static struct sigaction before_ {};

  const std::function<void(const stall&)> tell_;
  nanoseconds limit_;
  scheduler* home_ = nullptr;
  pthread_t watched_, watching_;
  doorbell bell_;  // wakes the one that looks on
  std::atomic<bool> asleep_{false};
  std::atomic<bool> dozes_{false};  // the one that looks on, until we wake
  std::atomic<bool> ending_{false};

  // The turn that was met, and since when it is known to last.
  std::atomic<unsigned long> turn_{0};
  std::atomic<nanoseconds> since_{0};
  // What is to be told: the handler's until `told_` is false, then the other's.
  std::atomic<bool> told_{true};
  char task_[400];
  nanoseconds kept_ = 0;
  trace trace_;
};

inline watchdog::watchdog(std::chrono::nanoseconds limit,
                          std::function<void(const stall&)> tell)
    : tell_(std::move(tell)), limit_(limit.count()) {
  if (limit_ <= 0) throw std::invalid_argument("watchdog: no time is no limit");
  scheduler& s = this_scheduler();
  if (s.seen_by != nullptr)
    throw std::logic_error("watchdog: this thread has one already");
  static const int installed = [] {
    struct sigaction ours {};
    ours.sa_sigaction = handle;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&ours.sa_mask);
    return check(::sigaction(SIGURG, &ours, &before_), "sigaction: SIGURG");
  }();
  static_cast<void>(installed);
  sigset_t urgent;
  sigemptyset(&urgent);
  sigaddset(&urgent, SIGURG);
  ::pthread_sigmask(SIG_UNBLOCK, &urgent, nullptr);
  watched_ = ::pthread_self();
  home_ = &s;
  const auto body = [](void* dog) -> void* {
    static_cast<watchdog*>(dog)->look_on();
    return nullptr;
  };
  s.seen_by = this;
  if (const int failed = make_thread(watching_, body, this)) {
    s.seen_by = nullptr;
    throw_errno("pthread_create", failed);
  }
}

// Called by the destructor, and when the thread ends, whichever comes first. In
// a child process there is nobody to wait for.
inline void watchdog::ends() noexcept {
  if (home_->seen_by == this) {
    home_->seen_by = nullptr;
    ending_ = true;
    bell_.ring();
    ::pthread_join(watching_, nullptr);
  }
  home_ = nullptr;
}

inline void watchdog::look_on() {
  const int pause = to_milliseconds(limit_ / 4 + 1);
  nanoseconds ask_at = 0;
  for (;;) {
    rest(pause);
    if (ending_) return;
    const nanoseconds now = the_system.now();
    if (!told_) {
      tell_({task_, std::chrono::nanoseconds(kept_), trace_});
      ask_at = now + kept_;
      told_ = true;
    }
    const unsigned long turn = home_->turn();
    if (asleep_ || turn != turn_) {
      dozes_ = true;
      while (asleep_ && turn == home_->turn() && told_ && !ending_) rest(-1);
      dozes_ = false;
      turn_ = home_->turn();
      since_ = the_system.now();
      ask_at = since_ + limit_;
    } else if (now >= ask_at) {
      ask_at = now + limit_;
      ::pthread_kill(watched_, SIGURG);
    }
  }
}

inline void watchdog::handle(int signal, siginfo_t* info, void* where) {
  const int error = errno;
  scheduler* const s = tasks_here();
  if (s != nullptr && s->seen_by != nullptr)
    static_cast<watchdog*>(s->seen_by)->look_closer(where);
  if (before_.sa_flags & SA_SIGINFO)
    before_.sa_sigaction(signal, info, where);
  else if (before_.sa_handler != SIG_DFL && before_.sa_handler != SIG_IGN)
    before_.sa_handler(signal);
  errno = error;
}

// What it calls may be called in a handler; backtrace() too, since a trace has
// called it before.
inline void watchdog::look_closer(const void* where) {
  const task_block& t = home_->running();
  if (!told_ || t.stage != task_state::running || home_->turn() != turn_)
    return;
  const nanoseconds kept = the_system.now() - since_;
  if (kept < limit_) return;  // somebody else has sent the signal
  title_and_place(t, task_);
  trace_.depth = 0;
  if (!between_flows(where)) trace_.look(trace_);
  kept_ = kept;
  told_ = false;
  bell_.ring();
}

// In the middle of a switch the code is still that of one flow, and the stack
// that of the other: an unwinder would get lost. Where that cannot be ruled
// out, there is no trace.
inline bool watchdog::between_flows(const void* where) {
#if defined(__GLIBC__) && defined(__x86_64__)
  const auto& now = static_cast<const ucontext_t*>(where)->uc_mcontext.gregs;
  if (current_flow->empty()) return false;  // nobody has left it yet
#if defined(BAO_USE_UCONTEXT)
  const auto& then = current_flow->saved->uc_mcontext.gregs;
  const auto sp = reinterpret_cast<void*>(then[REG_RSP]);
  const auto ip = reinterpret_cast<void*>(then[REG_RIP]);
#else
  void* const sp = current_flow->sp;
  void* const ip = current_flow->ip;
#endif
  return reinterpret_cast<void*>(now[REG_RSP]) == sp &&
         ::_Unwind_FindEnclosingFunction(reinterpret_cast<void*>(
             now[REG_RIP])) != ::_Unwind_FindEnclosingFunction(ip);
#else
  static_cast<void>(where);
  return true;
#endif
}

}  // namespace BAO_ABI
}  // namespace bao

// Nothing private survives, but for what BAO_PATCH_ALL() and BAO_PATCH_SYNC()
// are made of.
#undef BAO_ABI
#undef BAO_ABI_POLLER
#undef BAO_ABI_SWITCH
#undef BAO_ABI_TOOL
#undef BAO_ASAN
#undef BAO_TSAN
#undef BAO_NAME
#undef BAO_PASTE
#undef BAO_QUOTE
#undef BAO_STRING

#endif  // BAO_HPP
