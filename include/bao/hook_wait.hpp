// bao/hook_wait.hpp - libc's other ways to wait
//
// For several descriptors at once, for a time, for a lock on a file, for a
// child to end. What hook.hpp says of its functions holds for these too.
//
// Where the kernel gives word, the task parks until the poller has it. Of some
// things there is none: a lock that another process holds, any of several
// children, urgent data. Those are asked for again and again: after 1 ms, then
// after twice as long each time, every 50 ms in the end. So such a wait may
// last 50 ms longer than libc's.
//
// SPDX-License-Identifier: MIT
#pragma once

#include "bao/hook.hpp"

#if defined(__GLIBC__)
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "bao/process.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {
namespace hook {

// --- several descriptors -----------------------------------------------------

// A wait with a mask lets in other signals meanwhile: here, those of them that
// are pending. True when a handler has run, which ends the wait.
inline bool let_in(const sigset_t* mask) {
  if (mask == nullptr) return false;
  sigset_t pending, before;
  bool any = false, handled = false;
  ::sigpending(&pending);
  for (int signal = 1; signal < NSIG; ++signal) {
    if (sigismember(&pending, signal) != 1 || sigismember(mask, signal) != 0)
      continue;
    any = true;
    struct sigaction how {};
    ::sigaction(signal, nullptr, &how);
    handled =
        handled || (how.sa_handler != SIG_DFL && how.sa_handler != SIG_IGN);
  }
  if (!any) return false;
  ::pthread_sigmask(SIG_SETMASK, mask, &before);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return handled;
}

// What a poller can be told of.
inline readiness watchable(int events) {
  readiness want;
  if (events & (POLLIN | POLLRDNORM)) want = want | readable;
  if (events & (POLLOUT | POLLWRNORM)) want = want | writable;
  return want;
}

using places_in_line = std::vector<std::optional<place_in_line>>;

// Has the task woken when there may be news of any of them. False when the
// poller does not tell all that is asked for, or cannot watch one: an epoll of
// an epoll of an epoll, say. Nor is one watched that has `revents`: its news,
// which nobody has asked for, would end each wait at once.
inline bool watch_all(places_in_line& places, const pollfd* fds) {
  bool all = true;
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (fds[i].fd < 0) continue;
    const readiness want =
        fds[i].revents == 0 ? watchable(fds[i].events) : readiness();
    constexpr int others = POLLPRI | POLLRDHUP | POLLRDBAND;
    all = all && want && (fds[i].events & others) == 0;
    if (!want) continue;
    if (!places[i]) get_in_line(places[i], fds[i].fd, want);
    try {
      places[i]->watch();
    } catch (const std::system_error&) {
      all = false;
    }
  }
  return all;
}

// Calls ask(), which does not block, until it finds something or `until`
// passes, and returns what it does. Suspends in between until there may be news
// of one of `fds`; where no word of it may come, for a while.
template <class Ask>
int ask_until(scheduler& s, const pollfd* fds, std::size_t n, deadline until,
              const sigset_t* mask, Ask ask) {
  const int errno_before = errno;
  if (!may_begin(s)) return -1;
  growing_pause pauses;
  places_in_line places;  // from the first wait on
  for (bool late = false;;) {
    const int found = ask();
    if (found != 0) {
      if (found > 0) errno = errno_before;
      return found;
    }
    if (late || until.passed()) break;
    if (let_in(mask)) return fail(EINTR);
    if (places.empty()) places = places_in_line(n);
    // Of a signal that the mask lets in there is no word either.
    const bool word = watch_all(places, fds) && mask == nullptr;
    const int error = s.park_in_c(
        word ? until : std::min(until, deadline(pauses.next())), {"polling"});
    late = error == ETIME && word;
    if (error != 0 && error != ETIME) return fail(error);
    for (const auto& place : places)
      if (place && place->closed()) return fail(EBADF);
  }
  errno = errno_before;
  return 0;
}

inline int poll_until(scheduler& s, pollfd* fds, nfds_t n, deadline until,
                      const sigset_t* mask) {
  return for_c([&] {
    return ask_until(s, fds, n, until, mask,
                     [&] { return original::poll(fds, n, 0); });
  });
}

inline int poll(pollfd* fds, nfds_t n, int ms) {
  scheduler* const s = here();
  if (s == nullptr || ms == 0) return original::poll(fds, n, ms);
  return poll_until(*s, fds, n, in_milliseconds(ms), nullptr);
}

inline int ppoll(pollfd* fds, nfds_t n, const timespec* limit,
                 const sigset_t* mask) {
  scheduler* const s = here();
  if (s == nullptr || (limit != nullptr && !is_time(*limit)))
    return original::ppoll(fds, n, limit, mask);
  return poll_until(*s, fds, n, in_time(limit), mask);
}

// A set of descriptors has as many bits as the caller says, not FD_SETSIZE; but
// at most as many as the kernel has room for descriptors now: that is meant by
// getdtablesize(), which may be a billion.
inline int bits_of_sets(int n) {
  if (n <= FD_SETSIZE) return n;
  std::FILE* const status = std::fopen("/proc/self/status", "re");
  if (status == nullptr) return n;
  char text[200];
  int room = n;
  while (std::fgets(text, sizeof text, status) != nullptr)
    if (std::sscanf(text, "FDSize: %d", &room) == 1) break;
  std::fclose(status);
  return std::min(n, room);
}

class copy_of_set {
 public:
  copy_of_set(fd_set* set, int n) : set_(reinterpret_cast<long*>(set)) {
    const std::size_t words = static_cast<std::size_t>(n + NFDBITS - 1) /
                              static_cast<std::size_t>(NFDBITS);
    if (set_ != nullptr) copy_.assign(set_, set_ + words);
  }
  bool has(int fd) const {
    return !copy_.empty() &&
           (copy_[static_cast<std::size_t>(fd / NFDBITS)] >> fd % NFDBITS & 1);
  }
  void restore() const { std::copy(copy_.begin(), copy_.end(), set_); }

 private:
  long* set_;
  std::vector<long> copy_;
};

inline int select_until(scheduler& s, int n, fd_set* in, fd_set* out,
                        fd_set* urgent, deadline until, const sigset_t* mask) {
  return for_c([&] {
    n = bits_of_sets(n);
    const copy_of_set reads(in, n), writes(out, n), urgents(urgent, n);
    std::vector<pollfd> fds;
    for (int fd = 0; fd < n; ++fd) {
      const int events = (reads.has(fd) ? POLLIN : 0) |
                         (writes.has(fd) ? POLLOUT : 0) |
                         (urgents.has(fd) ? POLLPRI : 0);
      if (events != 0) fds.push_back({fd, static_cast<short>(events), 0});
    }
    return ask_until(s, fds.data(), fds.size(), until, mask, [&] {
      reads.restore(), writes.restore(), urgents.restore();
      timeval at_once{};
      const int found = original::select(n, in, out, urgent, &at_once);
      // To a poller, a hang-up is news; to select(), it is no room to write.
      if (found == 0 && out != nullptr)
        original::poll(fds.data(), fds.size(), 0);
      return found;
    });
  });
}

// What is left of a time that began then.
inline timespec rest_of_time(clock::duration whole, clock::time_point begin) {
  return to_timespec(
      std::max<nanoseconds>(0, (whole - (now() - begin)).count()));
}

// The rest of the time goes back to the caller, as Linux does it.
inline int select(int n, fd_set* in, fd_set* out, fd_set* urgent,
                  timeval* limit) {
  scheduler* const s = here();
  // libc, too, looks at the lower 32 bits alone.
  const auto us = static_cast<std::int32_t>(limit ? limit->tv_usec : 0);
  if (s == nullptr || n < 0 ||
      (limit != nullptr && (limit->tv_sec < 0 || us < 0)))
    return original::select(n, in, out, urgent, limit);
  if (limit == nullptr)
    return select_until(*s, n, in, out, urgent, never, nullptr);
  const auto whole =
      duration_of({limit->tv_sec, 0}) + clock::duration(nanoseconds{us} * 1000);
  const auto begin = now();
  const int found = select_until(*s, n, in, out, urgent, whole, nullptr);
  const timespec rest = rest_of_time(whole, begin);
  limit->tv_sec = rest.tv_sec;
  limit->tv_usec = static_cast<suseconds_t>(rest.tv_nsec / 1000);
  return found;
}

inline int pselect(int n, fd_set* in, fd_set* out, fd_set* urgent,
                   const timespec* limit, const sigset_t* mask) {
  scheduler* const s = here();
  if (s == nullptr || n < 0 || (limit != nullptr && !is_time(*limit)))
    return original::pselect(n, in, out, urgent, limit, mask);
  return select_until(*s, n, in, out, urgent, in_time(limit), mask);
}

// An epoll is itself a descriptor, readable when it has something to report.
inline int epoll_pwait(int fd, epoll_event* events, int n, int ms,
                       const sigset_t* mask) {
  scheduler* const s = here();
  if (s == nullptr || ms == 0)
    return original::epoll_pwait(fd, events, n, ms, mask);
  return for_c([&] {
    const pollfd itself{fd, POLLIN, 0};
    return ask_until(*s, &itself, 1, in_milliseconds(ms), mask,
                     [&] { return original::epoll_wait(fd, events, n, 0); });
  });
}

inline int epoll_wait(int fd, epoll_event* events, int n, int ms) {
  return hook::epoll_pwait(fd, events, n, ms, nullptr);
}

// --- time --------------------------------------------------------------------

// Suspends until then, at least until the others have run. Returns 0, or the
// error of an interruption.
inline int sleep_until(scheduler& s, deadline until) {
  const int errno_before = errno;
  int error = 0;
  if (until.passed() && s.interrupted_in_c() == 0)
    s.yield_in_c();
  else
    error = s.park_in_c(until, {"sleeping"});
  errno = errno_before;
  return error == ETIME ? 0 : error;
}

// The same; whoever is interrupted is told what is left of the time.
inline int sleep_for(scheduler& s, const timespec& time, timespec* left) {
  const auto whole = duration_of(time);
  const auto begin = now();
  const int error = sleep_until(s, whole);
  if (error != 0 && left != nullptr) *left = rest_of_time(whole, begin);
  return error;
}

inline int clock_nanosleep(clockid_t clock, int flags, const timespec* time,
                           timespec* left) {
  scheduler* const s = here();
  timespec is{};
  if (s == nullptr || time == nullptr || !is_time(*time) ||
      (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC &&
       clock != CLOCK_BOOTTIME && clock != CLOCK_TAI) ||
      (flags & ~TIMER_ABSTIME) != 0 || ::clock_gettime(clock, &is) != 0)
    return original::clock_nanosleep(clock, flags, time, left);
  if (flags == 0) return sleep_for(*s, *time, left);
  // Deadlines go by bao's clock, which may be virtual: it gets the difference.
  return sleep_until(*s, duration_of(*time) - duration_of(is));
}

inline int nanosleep(const timespec* time, timespec* left) {
  scheduler* const s = here();
  if (s == nullptr || time == nullptr || !is_time(*time))
    return original::nanosleep(time, left);
  const int error = sleep_for(*s, *time, left);
  return error == 0 ? 0 : fail(error);
}

inline int usleep(useconds_t microseconds) {
  if (here() == nullptr) return original::usleep(microseconds);
  const timespec time = to_timespec(nanoseconds{microseconds} * 1000);
  return hook::nanosleep(&time, nullptr);
}

// Says that nothing is left when it is interrupted, too: C may try until then.
inline unsigned sleep(unsigned seconds) {
  if (here() == nullptr) return original::sleep(seconds);
  const timespec time{static_cast<time_t>(seconds), 0};
  hook::nanosleep(&time, nullptr);
  return 0;
}

// --- locks on files ----------------------------------------------------------

// Calls attempt(), which does not block, until it does not fail because another
// holds the lock; suspends in between.
template <class Attempt>
int until_unlocked(scheduler& s, Attempt attempt) {
  const int errno_before = errno;
  if (!may_begin(s)) return -1;
  growing_pause pauses;
  for (;;) {
    const int result = attempt();
    if (result != -1) errno = errno_before;
    if (result != -1 || (errno != EAGAIN && errno != EACCES)) return result;
    if (const int error = pause(s, pauses)) return fail(error);
  }
}

inline int flock(int fd, int operation) {
  scheduler* const s = here();
  if (s == nullptr || (operation & (LOCK_NB | LOCK_UN)) != 0)
    return original::flock(fd, operation);
  return until_unlocked(
      *s, [&] { return original::flock(fd, operation | LOCK_NB); });
}

inline int fcntl(int fd, int command, void* argument) {
  scheduler* const s = here();
  int attempt = 0;
  if (command == F_SETLKW) attempt = F_SETLK;
#if defined(F_OFD_SETLKW)
  if (command == F_OFD_SETLKW) attempt = F_OFD_SETLK;
#endif
  if (s == nullptr || attempt == 0)
    return original::fcntl(fd, command, argument);
  return until_unlocked(*s,
                        [&] { return original::fcntl(fd, attempt, argument); });
}

// --- processes ---------------------------------------------------------------

// A child that ends makes a descriptor readable; of any child of several, and
// of one that stops or goes on, there is no such word.
inline pid_t wait4(pid_t pid, int* status, int options, rusage* used) {
  scheduler* const s = here();
  if (s == nullptr || (options & WNOHANG) != 0)
    return original::wait4(pid, status, options, used);
  const int errno_before = errno;
  if (!may_begin(*s)) return -1;
  growing_pause pauses;
  descriptor end;
  const at_end forget([&] { before_close(end.fd()); });
  bool asked = false;
  for (;;) {
    const pid_t ended = original::wait4(pid, status, options | WNOHANG, used);
    if (ended > 0) errno = errno_before;
    if (ended != 0) return ended;
    if (pid > 0 && (options & (WUNTRACED | WCONTINUED)) == 0 &&
        !std::exchange(asked, true))
      end = watch_process(pid);
    int error =
        end ? call(*s, end.fd(), readable).wait(never) : pause(*s, pauses);
    if (error == EMFILE || error == ENOSPC || error == ENOMEM) {
      end.close();  // what cannot be watched is asked again and again
      error = 0;
    }
    if (error != 0) return fail(error);
  }
}

inline pid_t waitpid(pid_t pid, int* status, int options) {
  return hook::wait4(pid, status, options, nullptr);
}
inline pid_t wait(int* status) { return hook::waitpid(-1, status, 0); }
inline pid_t wait3(int* status, int options, rusage* used) {
  return hook::wait4(-1, status, options, used);
}

// Unlike libc's, it leaves SIGINT, SIGQUIT and SIGCHLD alone while the command
// runs, for the other tasks' sake. So a handler that waits for every child may
// take this one's end: ECHILD. An interruption kills the shell.
inline int system(const char* command) {
  scheduler* const s = here();
  if (s == nullptr || command == nullptr) return original::system(command);
  if (!may_begin(*s)) return -1;  // before any of the command runs
  const char* const arguments[] = {"sh", "-c", command, nullptr};
  pid_t shell = 0;
  if (::posix_spawn(&shell, "/bin/sh", nullptr, nullptr,
                    const_cast<char* const*>(arguments), environ) != 0)
    return 127 << 8;  // as if it had started, and not found the command
  int status = 0;
  if (hook::waitpid(shell, &status, 0) == -1) {
    const int error = errno;
    if (error != ECHILD) {  // else its number may be another's by now
      ::kill(shell, SIGKILL);
      original::waitpid(shell, nullptr, 0);
    }
    return fail(error);
  }
  return status;
}

}  // namespace hook
}  // namespace BAO_ABI
}  // namespace bao
#endif
