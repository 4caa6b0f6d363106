// bao/system.hpp - the one seam through which the system is asked
//
// The clock, and the calls by which a task moves bytes and makes connections,
// go through an object of this class: so a test can put another one there,
// whose hours pass in no time (virtual_time.hpp), or which fails when it is
// told to. The price is a virtual call, next to nothing beside a system call.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#include "bao/libc.hpp"

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
