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
//
// SPDX-License-Identifier: MIT
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "bao/offload.hpp"

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
