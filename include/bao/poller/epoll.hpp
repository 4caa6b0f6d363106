// bao/poller/epoll.hpp - Linux: the kernel keeps the list
//
// The kernel is told once who is of interest, and then answers in time that
// depends on how many are ready, not on how many there are.
//
// Owned descriptors are registered once, edge-triggered, in both directions:
// from then on waiting costs no system call but epoll_wait itself. A foreign
// one may be closed behind our back, and its number given to another file, of
// which the kernel does not tell us: so each watch registers it anew, for one
// report.
//
// An event names its descriptor and the generation that was watching it. A file
// that is closed here but lives on in a child or a duplicate still sends events
// under the old number; the generation shows that they are stale.
//
// SPDX-License-Identifier: MIT
#pragma once

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

#include "bao/poller/readiness.hpp"
#include "bao/stack.hpp"

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
    entry& e = entry_of(entries_, fd);
    ++e.generation;
    e.lasting = false;
    unsigned events = EPOLLONESHOT;
    if (want & readable) events |= EPOLLIN | EPOLLRDHUP;
    if (want & writable) events |= EPOLLOUT;
    if (control(EPOLL_CTL_MOD, fd, events, e.generation)) return true;
    if (errno == ENOENT && control(EPOLL_CTL_ADD, fd, events, e.generation))
      return true;
    return cannot_watch(fd);
  }

  bool watch_owned(int fd, readiness) {
    entry& e = entry_of(entries_, fd);
    if (e.lasting) return true;
    ++e.generation;
    const unsigned events =
        EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET;
    if (!control(EPOLL_CTL_ADD, fd, events, e.generation) &&
        !(errno == EEXIST && control(EPOLL_CTL_MOD, fd, events, e.generation)))
      return cannot_watch(fd);
    return e.lasting = true;
  }

  void forget(int fd) noexcept {
    if (static_cast<std::size_t>(fd) >= entries_.size()) return;
    entry& e = entry_of(entries_, fd);
    ++e.generation;
    if (std::exchange(e.lasting, false)) control(EPOLL_CTL_DEL, fd, 0, 0);
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
      } else if (entry_of(entries_, fd).generation == generation) {
        const unsigned e = events[i].events;
        readiness ready;
        if (e & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
          ready = ready | readable;
        if (e & (EPOLLOUT | EPOLLHUP | EPOLLERR)) ready = ready | writable;
        if (e & (EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
          ready = ready | uncertain;
        report(fd, ready);
      }
    }
  }

  void prepare(std::vector<pollfd>& fds) const {
    fds.push_back({epoll_, POLLIN, 0});
  }

  void wake() const noexcept { bell_.ring(); }

 private:
  struct entry {
    unsigned generation = 0;
    bool lasting = false;  // registered, and nobody closes it but through us
  };

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
