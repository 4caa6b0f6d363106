// bao/io.hpp - own a descriptor, wait for it
//
// Every call here tries first, and only when the kernel has nothing (EAGAIN) does
// the task park until the poller reports the descriptor:
//
//     read --> data?  --yes--> return it
//      ^         no
//      |         v
//      '------ park until readable, or until the deadline
//
// Of a descriptor that bao owns it remembers whether it is ready. A stream that
// gave less than was asked for is empty, so the next read waits without trying:
// a request and its reply cost one read, one write and a share of one wait, as in
// a loop written by hand.
//
// Any number of tasks may wait for one descriptor. Each direction is served in
// the order of arrival; closing it wakes them all with EBADF.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <limits.h>
#include <poll.h>
#include <sys/stat.h>

#include <algorithm>
#include <string_view>

#include "bao/offload.hpp"

namespace bao {
inline namespace BAO_ABI {

// Readiness right now, by asking the kernel. Throws std::system_error for a
// descriptor that is not open. Never suspends.
inline readiness poll_now(int fd, readiness want) {
  if (fd < 0)
    throw std::system_error(EBADF, std::generic_category(),
                            "descriptor " + std::to_string(fd));
  pollfd p{fd, 0, 0};
  if (want & readable) p.events = static_cast<short>(p.events | POLLIN);
  if (want & writable) p.events = static_cast<short>(p.events | POLLOUT);
  while (::poll(&p, 1, 0) == -1)
    if (errno != EINTR) throw_errno("poll: descriptor " + std::to_string(fd));
  if (p.revents & POLLNVAL)
    throw std::system_error(EBADF, std::generic_category(),
                            "poll: descriptor " + std::to_string(fd));
  readiness got;
  if (p.revents & (POLLIN | POLLHUP | POLLERR)) got = got | readable;
  if (p.revents & (POLLOUT | POLLHUP | POLLERR)) got = got | writable;
  return got & want;
}

// A task's place in the line for one direction of a descriptor, from when it has
// to wait until its call is done. Who leaves something wakes the next one.
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
    self_.leave();
    wake_next(scheduler_, watch_, watch_.ready & self_.want);
    if (!watch_.owned && !watch_.closed && watch_.waiters.empty()) {
      scheduler_.poller().forget(fd_);
      scheduler_.watch_of(fd_) = nullptr;
    }
    if (--watch_.references == 0) delete &watch_;
  }

  // Wakes the first in line for each of these directions.
  static void wake_next(scheduler& s, descriptor_watch& w, readiness ready) {
    for (auto* one = w.waiters.first(); one != nullptr && ready;
         one = w.waiters.after(*one)) {
      if (!(one->want & ready)) continue;
      s.wake(*one->task);
      ready = ready.without(one->want);
    }
  }

  // Whether nobody is before us.
  bool our_turn() { return first() == &self_; }

  // Suspends until there may be news (true) or `until` passes (false).
  bool wait(deadline until, const char* what) {
    poller& p = scheduler_.poller();
    const bool watched = watch_.owned ? p.watch_owned(fd_, self_.want)
                                      : p.watch(fd_, wanted());
    if (!watched) return true;  // always ready
    ++scheduler_.descriptor_waits;
    struct at_end {
      int& waits;
      ~at_end() { --waits; }
    } count{scheduler_.descriptor_waits};
    const bool news = scheduler_.park(until, {what, fd_});
    if (watch_.closed)
      throw std::system_error(
          EBADF, std::generic_category(),
          std::string(what) + ' ' + std::to_string(fd_) +
              ": it was closed meanwhile");
    return news;
  }

 private:
  descriptor_waiter* first() {
    auto* w = watch_.waiters.first();
    while (w != nullptr && !(w->want & self_.want)) w = watch_.waiters.after(*w);
    return w;
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
};

// Suspends until any of `want` (readable | writable) holds for a descriptor,
// whoever owns it, and returns what does; empty when `until` passes. What cannot
// be waited for, a regular file, is ready. Throws std::system_error.
inline readiness wait_fd(int fd, readiness want, deadline until = never) {
  readiness ready = poll_now(fd, want);
  if (ready || until.passed()) return ready;
  scheduler& s = this_scheduler();
  descriptor_watch*& known = s.watch_of(fd);
  if (known == nullptr) known = new descriptor_watch;
  place_in_line here(s, fd, *known, want);
  do {
    if (!here.wait(until, "waiting for descriptor")) return {};
    ready = poll_now(fd, want);
  } while (!ready);
  return ready;
}

// Owns a descriptor and makes system calls that wait. Move-only; an empty one has
// the number -1. It belongs to the thread where it first had to wait: other
// threads get wrong_thread.
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

  // Wakes whoever waits for it, who get EBADF, and closes it. Never suspends.
  void close() noexcept {
    const int fd = std::exchange(fd_, -1);
    if (fd == -1) return;
    stop_watching(fd);
    ::close(fd);
  }

  // Gives it away: it stays open. Never suspends.
  int release() noexcept {
    const int fd = std::exchange(fd_, -1);
    if (fd != -1) stop_watching(fd);
    return fd;
  }

  // Calls call(), which returns -1 and sets errno like a system call, until it
  // does not return EAGAIN; suspends in between until `direction` is ready. One
  // who never has to wait gives way now and then: after the call, for meanwhile
  // this descriptor may be closed, and be gone. Throws std::system_error: what
  // the call meets, timed_out when `until` passes. `name` says who calls.
  template <class Call>
  auto retry(readiness direction, deadline until, const char* name, Call call) {
    if (watch_ == nullptr || ((watch_->ready & direction) &&
                              watch_->waiters.empty() && home_ == here())) {
      const auto result = call();
      if (result != -1) {
        if (scheduler* const s = here()) s->give_way(until);
        return result;
      }
      if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) fail(name);
      if (watch_ != nullptr && errno != EINTR)
        watch_->ready = watch_->ready.without(direction);
    }
    return wait_and_retry(direction, until, name, call);
  }

  // Somebody has left something that is not the kernel's for the next in line.
  void wake_next_reader() {
    if (watch_ != nullptr && home_ == here())
      place_in_line::wake_next(*home_, *watch_, readable);
  }

  // The last call has shown that there is nothing left in this direction, unless
  // the other end has hung up, of which there is news only once.
  void drained(readiness direction) {
    if (watch_ != nullptr && !(watch_->ready & hung_up))
      watch_->ready = watch_->ready.without(direction);
  }

  [[noreturn, gnu::cold]] void fail(const char* name) const {
    throw_errno(std::string(name) + ": descriptor " + std::to_string(fd_));
  }

 private:
  static scheduler* here() {
    return current_thread == nullptr ? nullptr : current_thread->tasks;
  }

  template <class Call>
  [[gnu::noinline]] auto wait_and_retry(readiness direction, deadline until,
                                        const char* name, Call call)
      -> decltype(call()) {
    scheduler& s = this_scheduler();
    watch_here(s);
    const int fd = fd_;
    descriptor_watch& w = *watch_;
    place_in_line line(s, fd, w, direction);
    for (bool late = false;; late = !line.wait(until, name)) {
      // Too late is not too late for what is there.
      if (line.our_turn() && (late || (w.ready & direction))) {
        const auto result = call();
        if (result != -1) return result;
        if (errno == EINTR) continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK) fail(name);
        w.ready = w.ready.without(direction);
      }
      if (late) {
        errno = ETIMEDOUT;
        fail(name);
      }
    }
  }

  void watch_here(scheduler& s) {
    if (watch_ == nullptr) {
      descriptor_watch*& known = s.watch_of(fd_);
      if (known != nullptr && known->owned) {  // closed behind our back
        abandon(s, *known, fd_);
        known = nullptr;
      }
      if (known == nullptr)
        known = new descriptor_watch;
      else
        wake_all(s, *known);  // who ask for themselves: they watch it anew
      watch_ = known;
      watch_->owned = true;
      ++watch_->references;
      home_ = &s;
    } else if (home_ != &s) {
      throw wrong_thread("descriptor " + std::to_string(fd_) +
                         ": another thread has waited for it");
    }
  }

  // Tells those who wait that it is closed, and the poller that it goes.
  static void abandon(scheduler& s, descriptor_watch& w, int fd) noexcept {
    w.closed = true;
    wake_all(s, w);
    s.poller().forget(fd);
  }
  static void wake_all(scheduler& s, descriptor_watch& w) noexcept {
    for (auto* one = w.waiters.first(); one != nullptr;
         one = w.waiters.after(*one))
      s.wake(*one->task);
  }

  void stop_watching(int fd) noexcept {
    descriptor_watch* const w = std::exchange(watch_, nullptr);
    if (w == nullptr || home_ != here()) return;
    if (home_->watch_of(fd) == w) {
      abandon(*home_, *w, fd);
      home_->watch_of(fd) = nullptr;
    }
    if (--w->references == 0) delete w;
  }

  int fd_ = -1;
  descriptor_watch* watch_ = nullptr;
  scheduler* home_ = nullptr;
};

// Bytes in and out of a descriptor: a socket, a pipe, a terminal, a file. It
// changes no flag of the descriptor, which others may share: sockets are asked
// not to block call by call, pipes and terminals before each call, and files are
// read and written by helper threads. Nothing ever raises SIGPIPE but writing to
// a pipe that nobody reads, as the kernel has no way to turn that off.
//
// All calls suspend while they have to wait, `until` at the latest, and throw
// std::system_error whose text names the call and the descriptor; its code is
// std::errc::timed_out when late. What was read before that is kept for the next
// read. One task may read while another one writes.
class stream {
 public:
  stream() = default;
  // Owns `fd` from now on.
  explicit stream(int fd) : descriptor_(fd), kind_(kind_of(fd)) {}
  stream(stream&& other) noexcept { swap(other); }
  stream& operator=(stream&& other) noexcept {
    stream taken(std::move(other));
    swap(taken);
    return *this;
  }

  int fd() const { return descriptor_.fd(); }
  explicit operator bool() const { return static_cast<bool>(descriptor_); }
  void close() noexcept { descriptor_.close(); }
  // Gives the descriptor away. Throws std::logic_error when bytes that were read
  // ahead would be lost.
  int release() {
    if (ahead() != 0)
      throw std::logic_error("release: there are unread bytes in the buffer");
    return descriptor_.release();
  }

  // At least one byte, at most n; 0 at the end.
  std::size_t read_some(void* p, std::size_t n, deadline until = never);
  // The same, "" at the end.
  std::string read_some(std::size_t limit = 64 * 1024, deadline until = never);

  // Exactly n bytes. Throws end_of_stream when there are fewer; those are kept.
  void read_exactly(void* p, std::size_t n, deadline until = never);
  std::string read_exactly(std::size_t n, deadline until = never);

  // A line without its \n or \r\n; empty at the end. A last line may lack its
  // end. Throws line_too_long after `limit` bytes without one.
  std::optional<std::string> read_line(std::size_t limit,
                                       deadline until = never);
  std::optional<std::string> read_line(deadline until = never) {
    return read_line(64 * 1024, until);
  }

  // What comes before `delimiter`, which is dropped; empty at the end. Throws
  // line_too_long, and end_of_stream when the end comes in the middle.
  std::optional<std::string> read_until(std::string_view delimiter,
                                        std::size_t limit = 64 * 1024,
                                        deadline until = never);

  // Everything up to the end. Throws line_too_long after `limit` bytes.
  std::string read_all(std::size_t limit = SIZE_MAX, deadline until = never);

  // At least one byte of it (0 of nothing): how much.
  std::size_t write_some(const void* p, std::size_t n, deadline until = never);

  // All of it.
  void write_all(const void* p, std::size_t n, deadline until = never);
  void write_all(std::string_view text, deadline until = never) {
    write_all(text.data(), text.size(), until);
  }
  // Several pieces at once.
  void writev(const std::vector<std::string_view>& pieces,
              deadline until = never);

  // The other end will read an end; we may still read.
  void shutdown_write() {
    if (::shutdown(fd(), SHUT_WR) == -1) descriptor_.fail("shutdown");
  }

 protected:
  enum class kind { tcp_socket, other_socket, pollable, non_blocking, file };
  stream(int fd, kind k) : descriptor_(fd), kind_(k) {}
  ~stream() = default;

  descriptor descriptor_;

 private:
  static kind kind_of(int fd);
  void swap(stream& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    std::swap(kind_, other.kind_);
    std::swap(buffer_, other.buffer_);
    std::swap(consumed_, other.consumed_);
    std::swap(taken_, other.taken_);
  }
  template <class Look>
  std::size_t receive(void* p, std::size_t n, deadline until, Look changed);
  std::size_t ahead() const { return buffer_.size() - consumed_; }
  bool read_ahead(deadline until);
  std::string take_ahead(std::size_t n);

  kind kind_ = kind::other_socket;
  std::string buffer_;  // read ahead, from consumed_ on
  std::size_t consumed_ = 0;
  std::uint64_t taken_ = 0;  // from the buffer so far, by all tasks
};

inline stream::kind stream::kind_of(int fd) {
  struct stat s;
  if (::fstat(fd, &s) == -1)
    throw_errno("stream: descriptor " + std::to_string(fd));
  if (S_ISREG(s.st_mode) || S_ISBLK(s.st_mode) || S_ISDIR(s.st_mode))
    return kind::file;
  if (S_ISSOCK(s.st_mode)) {
    sockaddr_storage at{};
    socklen_t n = sizeof at;
    ::getsockname(fd, reinterpret_cast<sockaddr*>(&at), &n);
    int type = 0;
    n = sizeof type;
    ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n);
    const bool tcp = type == SOCK_STREAM && at.ss_family != AF_UNIX;
    return tcp ? kind::tcp_socket : kind::other_socket;
  }
  return ::fcntl(fd, F_GETFL) & O_NONBLOCK ? kind::non_blocking : kind::pollable;
}

// A call that a helper thread makes on a file: on a duplicate, for the number may
// be closed, and be given to another file, before its turn comes.
template <class Call>
std::size_t call_on_file(int fd, const char* name, Call call) {
  const descriptor same(check(::fcntl(fd, F_DUPFD_CLOEXEC, 0), name));
  return static_cast<std::size_t>(
      offload([&] { return check(call(same.fd()), name); }));
}

// Reads from the kernel. While it waits, others may have changed the buffer: then
// it reads nothing.
template <class Look>
std::size_t stream::receive(void* p, std::size_t n, deadline until,
                            Look changed) {
  if (kind_ == kind::file)
    return call_on_file(fd(), "reading descriptor",
                        [=](int file) { return ::read(file, p, n); });
  return static_cast<std::size_t>(
      descriptor_.retry(readable, until, "reading descriptor", [&] {
        const int in = fd();
        if (changed()) return ssize_t{0};
        if (kind_ != kind::tcp_socket && kind_ != kind::other_socket) {
          if (kind_ == kind::non_blocking || poll_now(in, readable))
            return sys->read(in, p, n);
          errno = EAGAIN;
          return ssize_t{-1};
        }
        const ssize_t got = sys->recv(in, p, n, MSG_DONTWAIT);
        // Only TCP: where messages have bounds, more may lie behind them.
        if (got >= 0 && static_cast<std::size_t>(got) < n &&
            kind_ == kind::tcp_socket)
          descriptor_.drained(readable);
        return got;
      }));
}

inline std::size_t stream::read_some(void* p, std::size_t n, deadline until) {
  if (n == 0) return 0;
  if (ahead() == 0) {
    bool others = false;
    const std::size_t got =
        receive(p, n, until, [&] { return others = ahead() != 0; });
    if (!others) return got;
  }
  const std::string taken = take_ahead(std::min(n, ahead()));
  std::memcpy(p, taken.data(), taken.size());
  return taken.size();
}

inline std::string stream::read_some(std::size_t limit, deadline until) {
  if (ahead() == 0 && !read_ahead(until)) return {};
  return take_ahead(std::min(limit, ahead()));
}

// Adds what there is to the buffer. False at the end.
inline bool stream::read_ahead(deadline until) {
  if (consumed_ == buffer_.size()) buffer_.clear(), consumed_ = 0;
  char piece[16 * 1024];
  const std::size_t had = ahead();
  bool others = false;
  const std::size_t n =
      receive(piece, sizeof piece, until, [&] { return others = ahead() != had; });
  if (others) return true;
  buffer_.append(piece, n);
  return n != 0;
}

inline std::string stream::take_ahead(std::size_t n) {
  std::string taken = buffer_.substr(consumed_, n);
  consumed_ += n;
  taken_ += n;
  if (ahead() != 0) descriptor_.wake_next_reader();  // who waits for that
  if (consumed_ == buffer_.size()) {
    buffer_.clear();
    consumed_ = 0;
    // An idle connection keeps a small buffer, and does not sit on a large one.
    if (buffer_.capacity() > 64 * 1024) buffer_.shrink_to_fit();
  } else if (consumed_ > buffer_.size() / 2) {
    buffer_.erase(0, consumed_);  // linear, but each byte at most once
    consumed_ = 0;
  }
  return taken;
}

inline std::string stream::read_exactly(std::size_t n, deadline until) {
  while (ahead() < n)
    if (!read_ahead(until))
      throw end_of_stream("read_exactly: the stream ended after " +
                          std::to_string(ahead()) + " of " +
                          std::to_string(n) + " bytes");
  return take_ahead(n);
}

inline void stream::read_exactly(void* p, std::size_t n, deadline until) {
  const std::string all = read_exactly(n, until);
  std::memcpy(p, all.data(), n);
}

inline std::optional<std::string> stream::read_until(
    std::string_view delimiter, std::size_t limit, deadline until) {
  if (delimiter.empty())
    throw std::invalid_argument("read_until: the delimiter is empty");
  std::size_t searched = 0;  // from consumed_ on
  std::uint64_t taken_by_then = taken_;
  for (;;) {
    if (taken_by_then != taken_) searched = 0, taken_by_then = taken_;
    const auto unread = std::string_view(buffer_).substr(consumed_);
    const std::size_t at = unread.find(delimiter, searched);
    if (at != std::string_view::npos && at <= limit) {
      std::string taken = take_ahead(at + delimiter.size());
      taken.resize(at);
      return taken;
    }
    if (unread.size() >= delimiter.size() &&
        unread.size() - delimiter.size() >= limit)
      throw line_too_long("read_until: no delimiter within " +
                          std::to_string(limit) + " bytes");
    searched = unread.size() < delimiter.size()
                   ? 0
                   : unread.size() - delimiter.size() + 1;
    if (read_ahead(until)) continue;
    if (ahead() == 0) return std::nullopt;
    throw end_of_stream("read_until: the stream ended before the delimiter");
  }
}

inline std::optional<std::string> stream::read_line(std::size_t limit,
                                                    deadline until) {
  std::optional<std::string> line;
  try {
    line = read_until("\n", limit, until);
  } catch (const end_of_stream&) {
    return take_ahead(ahead());
  }
  if (line && !line->empty() && line->back() == '\r') line->pop_back();
  return line;
}

inline std::string stream::read_all(std::size_t limit, deadline until) {
  do {
    if (ahead() > limit)
      throw line_too_long("read_all: more than " + std::to_string(limit) +
                          " bytes");
  } while (read_ahead(until));
  return take_ahead(ahead());
}

inline std::size_t stream::write_some(const void* p, std::size_t n,
                                      deadline until) {
  if (n == 0) return 0;
  if (kind_ == kind::file)
    return call_on_file(fd(), "writing descriptor",
                        [=](int file) { return ::write(file, p, n); });
  return static_cast<std::size_t>(
      descriptor_.retry(writable, until, "writing descriptor", [&] {
        const int out = fd();
        if (kind_ == kind::tcp_socket || kind_ == kind::other_socket)
          return sys->send(out, p, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (kind_ == kind::non_blocking) return sys->write(out, p, n);
        // A pipe that is writable takes this much without blocking.
        if (poll_now(out, writable))
          return sys->write(out, p, std::min(n, std::size_t{PIPE_BUF}));
        errno = EAGAIN;
        return ssize_t{-1};
      }));
}

inline void stream::write_all(const void* p, std::size_t n, deadline until) {
  const char* from = static_cast<const char*>(p);
  while (n > 0) {
    const std::size_t put = write_some(from, n, until);
    from += put;
    n -= put;
  }
}

inline void stream::writev(const std::vector<std::string_view>& pieces,
                           deadline until) {
  std::string all;  // one copy costs less than many small packets
  for (std::string_view piece : pieces) all += piece;
  write_all(all, until);
}

}  // namespace BAO_ABI
}  // namespace bao
