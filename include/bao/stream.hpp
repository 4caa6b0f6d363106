// bao/stream.hpp - bytes in and out of a descriptor
//
// Reading asks for as much as there is and keeps what was not wanted yet, so
// that a line, a delimiter or a count of bytes may come in pieces of any size.
// That takes one more copy, which read_some() into memory of yours saves.
//
// A stream changes no flag of its descriptor, which others may share: sockets
// are told with each call not to block, pipes and terminals are polled before
// each, and files are read and written by helper threads.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bao/io.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A socket, a pipe, a terminal or a file, which it owns. Move-only. What nobody
// reads is EPIPE to whoever writes, never a SIGPIPE.
//
// All that take an `until` suspend while they have to wait, until then at the
// latest (of a file: until the helper is through, however late); nothing else
// suspends. They throw what interrupts us, and std::system_error whose text
// names the call and the descriptor; its code is std::errc::timed_out when
// late. What was read before that is kept for the next read; where there is no
// memory to keep it, the stream is closed. One task may read while another one
// writes; several that read, or write, take turns in the order in which they
// came. It may be closed or destroyed under them, which is EBADF; it must not
// be moved.
class stream {
 public:
  stream() = default;
  // Owns `fd` from now on. Throws std::system_error when it is not open.
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
  // Gives the descriptor away. Throws std::logic_error when bytes that were
  // read ahead would be lost.
  int release() {
    if (ahead() != 0)
      throw std::logic_error("release: there are unread bytes in the buffer");
    return descriptor_.release();
  }

  // At least one byte, at most n: how many. 0 at the end.
  std::size_t read_some(void* p, std::size_t n, deadline until = never);
  // The same, at most `limit` bytes; "" at the end.
  std::string read_some(std::size_t limit = 64 * 1024, deadline until = never);

  // Exactly n bytes. Throws end_of_stream when there are fewer; those are kept.
  void read_exactly(void* p, std::size_t n, deadline until = never);
  std::string read_exactly(std::size_t n, deadline until = never);

  // A line without its \n or \r\n; empty at the end of the stream, which is not
  // an empty line. A last line may lack its end. Throws line_too_long after
  // `limit` bytes without one.
  std::optional<std::string> read_line(std::size_t limit,
                                       deadline until = never);
  std::optional<std::string> read_line(deadline until = never) {
    return read_line(64 * 1024, until);
  }

  // What comes before `delimiter`, which is dropped; empty at the end. Throws
  // line_too_long after `limit` bytes without one, end_of_stream when the end
  // comes in the middle, std::invalid_argument for a delimiter of no bytes.
  std::optional<std::string> read_until(std::string_view delimiter,
                                        std::size_t limit = 64 * 1024,
                                        deadline until = never);

  // Everything up to the end. Throws line_too_long after `limit` bytes.
  std::string read_all(std::size_t limit = SIZE_MAX, deadline until = never);

  // Writes at least one byte (none if n is 0): how many.
  std::size_t write_some(const void* p, std::size_t n, deadline until = never);

  // Writes all of it.
  void write_all(const void* p, std::size_t n, deadline until = never);
  void write_all(std::string_view text, deadline until = never) {
    write_all(text.data(), text.size(), until);
  }
  // Writes several pieces as if they were one.
  void writev(const std::vector<std::string_view>& pieces,
              deadline until = never);

  // The other end will read an end; we may still read. Throws
  // std::system_error.
  void shutdown_write() {
    if (::shutdown(fd(), SHUT_WR) == -1)
      descriptor_.fail("shutting down descriptor");
  }

 protected:
  enum class kind {
    tcp_socket,
    other_socket,
    pollable,
    terminal,
    non_blocking,
    file
  };
  stream(int fd, kind k) : descriptor_(fd), kind_(k) {}

  descriptor descriptor_;

 private:
  static kind kind_of(int fd);
  void swap(stream& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    std::swap(kind_, other.kind_);
    std::swap(buffer_, other.buffer_);
    std::swap(consumed_, other.consumed_);
  }
  std::size_t receive(io_call& reading, void* p, std::size_t n);
  std::size_t send(io_call& writing, const void* p, std::size_t n);
  std::size_t ahead() const { return buffer_.size() - consumed_; }
  bool read_ahead(io_call& reading);
  std::string take_ahead(std::size_t n);
  std::optional<std::string> take_until(io_call& reading,
                                        std::string_view delimiter,
                                        std::size_t limit);

  kind kind_ = kind::other_socket;
  std::string buffer_;  // read ahead, from consumed_ on
  std::size_t consumed_ = 0;
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
  if (::fcntl(fd, F_GETFL) & O_NONBLOCK) return kind::non_blocking;
  return ::isatty(fd) ? kind::terminal : kind::pollable;
}

// Reads from the kernel.
inline std::size_t stream::receive(io_call& reading, void* p, std::size_t n) {
  if (kind_ == kind::file)
    return static_cast<std::size_t>(reading.elsewhere(p, n));
  return static_cast<std::size_t>(reading.retry([&] {
    if (kind_ != kind::tcp_socket && kind_ != kind::other_socket) {
      if (kind_ == kind::non_blocking || poll_now(fd(), readable))
        return sys->read(fd(), p, n);
      errno = EAGAIN;
      return ssize_t{-1};
    }
    const ssize_t got = sys->recv(fd(), p, n, MSG_DONTWAIT);
    // Only TCP: where messages have bounds, more may lie behind them.
    if (got >= 0 && static_cast<std::size_t>(got) < n &&
        kind_ == kind::tcp_socket)
      descriptor_.drained(readable);
    return got;
  }));
}

// Adds what there is to the buffer. False at the end. What there is no memory
// for is lost: nobody shall read on as if it had not been.
//
// It is read into memory that all tasks of the thread share, as nothing comes
// between the arrival and the copy. A buffer on each reader's stack would cost
// a connection two pages, and be cold.
inline bool stream::read_ahead(io_call& reading) {
  constexpr std::size_t size = 16 * 1024;
  auto& shared = this_thread_state().scratch;
  std::unique_ptr<char[]> own;  // a helper thread fills it while others run
  auto& memory = kind_ == kind::file ? own : shared;
  if (memory == nullptr) memory.reset(new char[size]);
  char* const piece = memory.get();
  const std::size_t n = receive(reading, piece, size);
  try {
    buffer_.append(piece, n);
  } catch (...) {
    close();
    throw;
  }
  return n != 0;
}

inline std::string stream::take_ahead(std::size_t n) {
  // All of it can go as it is, unless little lies in much memory.
  if (consumed_ == 0 && n >= buffer_.size() &&
      buffer_.capacity() <= 2 * buffer_.size())
    return std::exchange(buffer_, {});
  std::string taken = buffer_.substr(consumed_, n);
  consumed_ += taken.size();
  if (consumed_ > buffer_.size() / 2) {
    buffer_.erase(0, consumed_);  // moves fewer bytes than were consumed
    consumed_ = 0;
    // An idle connection keeps a small buffer, and does not sit on a large one.
    if (buffer_.capacity() > 64 * 1024) buffer_.shrink_to_fit();
  }
  return taken;
}

// Each public call takes its turn, and keeps it until it is through.

inline std::size_t stream::read_some(void* p, std::size_t n, deadline until) {
  if (n == 0) return 0;
  io_call reading(descriptor_, readable, until, "reading descriptor");
  if (ahead() == 0) return receive(reading, p, n);
  const std::string taken = take_ahead(n);
  std::memcpy(p, taken.data(), taken.size());
  return taken.size();
}

inline std::string stream::read_some(std::size_t limit, deadline until) {
  if (limit == 0) return {};
  io_call reading(descriptor_, readable, until, "reading descriptor");
  if (ahead() == 0) read_ahead(reading);
  return take_ahead(limit);
}

inline std::string stream::read_exactly(std::size_t n, deadline until) {
  io_call reading(descriptor_, readable, until, "reading descriptor");
  while (ahead() < n)
    if (!read_ahead(reading))
      throw end_of_stream("read_exactly: the stream ended after " +
                          std::to_string(ahead()) + " of " + std::to_string(n) +
                          " bytes");
  return take_ahead(n);
}

inline void stream::read_exactly(void* p, std::size_t n, deadline until) {
  const std::string all = read_exactly(n, until);
  std::memcpy(p, all.data(), n);
}

// Empty where the stream ends before a delimiter: what there is stays.
inline std::optional<std::string> stream::take_until(io_call& reading,
                                                     std::string_view delimiter,
                                                     std::size_t limit) {
  if (delimiter.empty())
    throw std::invalid_argument("read_until: the delimiter is empty");
  std::size_t searched = 0;  // from consumed_ on
  for (;;) {
    const auto unread = std::string_view(buffer_).substr(consumed_);
    const std::size_t at = unread.find(delimiter, searched);
    if (at != std::string_view::npos && at <= limit) {
      std::string taken = take_ahead(at + delimiter.size());
      taken.resize(at);
      return taken;
    }
    searched = unread.size() < delimiter.size()
                   ? 0
                   : unread.size() - delimiter.size() + 1;
    if (searched > limit)
      throw line_too_long("read_line or read_until: no end within " +
                          std::to_string(limit) + " bytes");
    if (!read_ahead(reading)) return std::nullopt;
  }
}

inline std::optional<std::string> stream::read_until(std::string_view delimiter,
                                                     std::size_t limit,
                                                     deadline until) {
  io_call reading(descriptor_, readable, until, "reading descriptor");
  auto text = take_until(reading, delimiter, limit);
  if (!text && ahead() != 0)
    throw end_of_stream("read_until: the stream ended before the delimiter");
  return text;
}

inline std::optional<std::string> stream::read_line(std::size_t limit,
                                                    deadline until) {
  io_call reading(descriptor_, readable, until, "reading descriptor");
  auto line = take_until(reading, "\n", limit);
  if (!line && ahead() != 0) return take_ahead(ahead());
  if (line && !line->empty() && line->back() == '\r') line->pop_back();
  return line;
}

inline std::string stream::read_all(std::size_t limit, deadline until) {
  io_call reading(descriptor_, readable, until, "reading descriptor");
  do {
    if (ahead() > limit)
      throw line_too_long("read_all: more than " + std::to_string(limit) +
                          " bytes");
  } while (read_ahead(reading));
  return take_ahead(ahead());
}

// Writes to a pipe. One that nobody reads raises SIGPIPE, and no flag turns
// that off: so the signal is held back meanwhile, and taken away if it has
// come, at the price of two system calls.
inline ssize_t write_quietly(int fd, const void* p, std::size_t n) {
  sigset_t pipe, before, pending;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  ::pthread_sigmask(SIG_BLOCK, &pipe, &before);
  const ssize_t put = sys->write(fd, p, n);
  const int error = errno;
  // Who holds it back himself may want to see it.
  if (put == -1 && error == EPIPE && !sigismember(&before, SIGPIPE)) {
    int taken;
    ::sigpending(&pending);
    if (sigismember(&pending, SIGPIPE)) ::sigwait(&pipe, &taken);
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  errno = error;
  return put;
}

// So much is taken without blocking by a terminal that is writable: a few plain
// bytes, or one that it may turn into several, like the end of a line.
inline std::size_t taken_by_terminal(const void* p, std::size_t n) {
  const auto* const bytes = static_cast<const unsigned char*>(p);
  std::size_t plain = 0;
  while (plain < std::min(n, std::size_t{128}) && bytes[plain] >= ' ') ++plain;
  return std::max(plain, std::size_t{1});
}

inline std::size_t stream::send(io_call& writing, const void* p,
                                std::size_t n) {
  if (kind_ == kind::file)
    return static_cast<std::size_t>(writing.elsewhere(const_cast<void*>(p), n));
  return static_cast<std::size_t>(writing.retry([&] {
    if (kind_ == kind::tcp_socket || kind_ == kind::other_socket)
      return sys->send(fd(), p, n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (kind_ == kind::non_blocking) return write_quietly(fd(), p, n);
    // A pipe that is writable takes this much without blocking.
    const std::size_t most = kind_ == kind::terminal
                                 ? taken_by_terminal(p, n)
                                 : std::min(n, std::size_t{PIPE_BUF});
    if (poll_now(fd(), writable)) return write_quietly(fd(), p, most);
    errno = EAGAIN;
    return ssize_t{-1};
  }));
}

inline std::size_t stream::write_some(const void* p, std::size_t n,
                                      deadline until) {
  if (n == 0) return 0;
  io_call writing(descriptor_, writable, until, "writing descriptor");
  return send(writing, p, n);
}

inline void stream::write_all(const void* p, std::size_t n, deadline until) {
  if (n == 0) return;
  io_call writing(descriptor_, writable, until, "writing descriptor");
  const char* from = static_cast<const char*>(p);
  while (n > 0) {
    const std::size_t put = send(writing, from, n);
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
