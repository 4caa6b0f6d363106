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
//
// SPDX-License-Identifier: MIT
#pragma once

#include "bao/libc.hpp"

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

#include "bao/io.hpp"

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
