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
