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
//
// SPDX-License-Identifier: MIT
#pragma once

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "bao/error.hpp"
#include "bao/system.hpp"

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
