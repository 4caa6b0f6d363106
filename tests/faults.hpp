// faults.hpp - a system whose calls fail, by chance or when they are told to
#pragma once

#include <sys/socket.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>

#include "bao.hpp"

// Virtual time, where a limit of an hour is for what hangs: it passes after ten
// real seconds without news.
class faulty_system final : public bao::virtual_time {
 public:
  // One call in `odds` meets what it has to bear: it moves fewer bytes, or
  // fails and is to be tried again. None does if `odds` is 0.
  faulty_system(std::uint64_t seed, unsigned odds)
      : virtual_time(seed), odds_(odds) {}

  // The n-th call, from 1, fails so.
  void fail_at(std::size_t n, int error) {
    fatal_at_ = n;
    error_ = error;
  }
  // The name of the task that has met it, and what it did, in bao's words.
  const std::string& struck() const { return struck_; }
  const std::string& doing() const { return doing_; }
  // How many have met what they have to bear.
  int interrupted = 0, postponed = 0, shortened = 0, refused = 0;

  bao::nanoseconds may_sleep(bao::nanoseconds until, bool jobs) override {
    constexpr bao::nanoseconds second = 1'000'000'000;
    return until - now() > 600 * second ? 10 * second
                                        : virtual_time::may_sleep(until, jobs);
  }

  ssize_t read(int fd, void* p, std::size_t n) override {
    return fails(fd, "reading") ? -1 : virtual_time::read(fd, p, some(n));
  }
  ssize_t write(int fd, const void* p, std::size_t n) override {
    return fails(fd, "writing") ? -1 : virtual_time::write(fd, p, some(n));
  }
  // Of TCP a short read means that there is no more: it is told no such lie.
  ssize_t recv(int fd, void* p, std::size_t n, int flags) override {
    if (fails(fd, "reading")) return -1;
    sockaddr_storage at{};
    socklen_t size = sizeof at;
    ::getsockname(fd, reinterpret_cast<sockaddr*>(&at), &size);
    const std::size_t most = at.ss_family == AF_UNIX ? some(n) : n;
    return virtual_time::recv(fd, p, most, flags);
  }
  ssize_t send(int fd, const void* p, std::size_t n, int flags) override {
    return fails(fd, "writing") ? -1
                                : virtual_time::send(fd, p, some(n), flags);
  }
  ssize_t recvmsg(int fd, msghdr* m, int flags) override {
    return fails(fd, "reading") ? -1 : virtual_time::recvmsg(fd, m, flags);
  }
  ssize_t sendmsg(int fd, const msghdr* m, int flags) override {
    return fails(fd, "writing") ? -1 : virtual_time::sendmsg(fd, m, flags);
  }
  // Where memory is short a listener waits for better times.
  int accept(int fd, sockaddr* from, socklen_t* n, int flags) override {
    const bool bears_it = error_ == ENOMEM || error_ == ENOBUFS;
    if (!bears_it && is_fatal("accepting")) return -1;
    if (is_put_off(fd)) return -1;
    if (!strikes()) return virtual_time::accept(fd, from, n, flags);
    ++refused;
    errno = random() % 2 == 0 ? EMFILE : ECONNABORTED;
    return -1;
  }
  // One that is interrupted goes on by itself.
  int connect(int fd, const sockaddr* to, socklen_t n) override {
    if (is_fatal("connect")) return -1;
    const int result = virtual_time::connect(fd, to, n);
    if (!strikes()) return result;
    ++interrupted;
    errno = EINTR;
    return -1;
  }

 private:
  bool strikes() { return odds_ != 0 && random() % odds_ == 0; }
  std::size_t some(std::size_t n) {
    if (!strikes()) return n;
    ++shortened;
    return 1 + random() % n;
  }
  bool is_fatal(const char* what) {
    if (++calls_ != fatal_at_) return false;
    struck_ = bao::self().name();
    doing_ = what;
    errno = error_;
    return true;
  }
  bool fails(int fd, const char* what) {
    return is_fatal(what) || is_put_off(fd);
  }
  bool is_put_off(int fd) {
    if (!strikes()) return false;
    if (random() % 2 == 0) {
      ++interrupted;
      errno = EINTR;
      return true;
    }
    // A kernel that says this has news later: so the poller looks anew.
    bao::poller& poller = bao::this_scheduler().poller();
    poller.forget(fd);
    poller.watch_owned(fd, bao::readable | bao::writable);
    ++postponed;
    errno = EAGAIN;
    return true;
  }

  const unsigned odds_;
  std::size_t calls_ = 0, fatal_at_ = 0;
  int error_ = 0;
  std::string struck_, doing_;
};
