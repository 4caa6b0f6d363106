// bao/poller/poll.hpp - anywhere: the list goes along with every question
//
// What is watched stands in an array that the kernel walks at every wait, so a
// wait takes longer the more there is. What is reported is taken out again.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <poll.h>
#include <time.h>

#include <cerrno>
#include <cstddef>
#include <vector>

#include "bao/poller/readiness.hpp"

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
