// bao/poller/select.hpp - the oldest: a bit for every descriptor
//
// Two sets of FD_SETSIZE bits, 1024 nearly everywhere, are copied into the
// kernel and out again at every wait. A descriptor that has no bit is refused:
// setting it would write past the end of the set.
//
// Of a hang-up it tells readers only, and writers of room or an error. So one
// who writes to a full unix socket waits on when its other end shuts both ways
// and stays open; the other two pollers tell him.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/select.h>
#include <time.h>

#include <cerrno>
#include <string>
#include <vector>

#include "bao/poller/readiness.hpp"

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
