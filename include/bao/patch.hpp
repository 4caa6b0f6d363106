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
//
// SPDX-License-Identifier: MIT
#pragma once

#include "bao/hook.hpp"

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

#include "bao/hook_names.hpp"
#include "bao/hook_sync.hpp"
#include "bao/hook_wait.hpp"

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
