// bao/socket.hpp - addresses, TCP, UDP, unix sockets
//
//     bao::tcp_listener door("127.0.0.1:8080");
//     for (bao::tcp_stream& peer : door)
//       bao::spawn(serve, std::move(peer));
//
//     bao::tcp_stream peer = bao::connect("example.org:80", 5s);
//
// Sockets are non-blocking and close-on-exec from the start, TCP ones without
// Nagle's delay; listeners may reuse an address whose old connections linger.
// The addresses of a name are tried in turn: one that does not answer uses up
// the deadline. Beside the system calls this costs next to nothing, but to look
// up a name takes a helper thread.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "bao/channel.hpp"
#include "bao/look_up.hpp"
#include "bao/stream.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Where a socket is: an IPv4 or IPv6 address and a port, or a unix path. None
// of its members suspends.
class address {
 public:
  address() = default;
  address(const sockaddr* from, socklen_t n) : size_(n) {
    if (n > sizeof storage_) throw std::invalid_argument("address: too long");
    std::memcpy(&storage_, from, n);
  }

  // "127.0.0.1:80", "[::1]:80", ":80" (all of IPv4), "unix:/path", and
  // "unix:@name" outside of the file system. No names: see resolve(). Throws
  // std::invalid_argument.
  static address parse(std::string_view text);

  // What parse() takes.
  std::string to_string() const;
  // In host order; 0 for a unix path.
  int port() const;
  int family() const { return storage_.ss_family; }

  const sockaddr* data() const {
    return reinterpret_cast<const sockaddr*>(&storage_);
  }
  sockaddr* data() { return reinterpret_cast<sockaddr*>(&storage_); }
  socklen_t size() const { return size_; }
  socklen_t* size_to_fill() {
    size_ = sizeof storage_;
    return &size_;
  }

 private:
  // Empty unless the host is one in numbers, and there is a port.
  static address numeric(const std::string& host, std::optional<int> port);
  friend std::vector<address> resolve(const std::string&, const std::string&,
                                      deadline);

  sockaddr_storage storage_{};
  socklen_t size_ = 0;
};

// Asks by getsockname() or getpeername().
inline address ask_address(int fd, int (*call)(int, sockaddr*, socklen_t*),
                           const char* name) {
  address a;
  if (call(fd, a.data(), a.size_to_fill()) == -1)
    throw_errno(std::string(name) + ": descriptor " + std::to_string(fd));
  return a;
}
inline address local_address_of(int fd) {
  return ask_address(fd, ::getsockname, "getsockname");
}

// "host:port" in two; the host without brackets.
inline std::pair<std::string, std::string> split_host_port(
    std::string_view text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos)
    throw std::invalid_argument("address: no port in \"" + std::string(text) +
                                '"');
  std::string_view host = text.substr(0, colon);
  const bool brackets =
      host.size() >= 2 && host.front() == '[' && host.back() == ']';
  if (brackets) host = host.substr(1, host.size() - 2);
  if (brackets != (host.find(':') != std::string_view::npos) ||
      text.find('\0') != std::string_view::npos)
    throw std::invalid_argument("address: \"" + std::string(text) +
                                "\" is not host:port; IPv6 is [host]:port");
  return {std::string(host), std::string(text.substr(colon + 1))};
}

inline std::optional<int> parse_port(const std::string& text) {
  if (text.empty() || text.size() > 5) return std::nullopt;
  int port = 0;
  for (char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    port = port * 10 + (c - '0');
  }
  return port <= 65535 ? std::optional<int>(port) : std::nullopt;
}

inline address address::numeric(const std::string& host,
                                std::optional<int> port) {
  address a;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&a.storage_);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&a.storage_);
  if (!port) return a;
  if (::inet_pton(AF_INET, host.empty() ? "0.0.0.0" : host.c_str(),
                  &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<std::uint16_t>(*port));
    a.size_ = sizeof *v4;
  } else if (::inet_pton(AF_INET6, host.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<std::uint16_t>(*port));
    a.size_ = sizeof *v6;
  }
  return a;
}

inline address address::parse(std::string_view text) {
  if (text.substr(0, 5) != "unix:") {
    const auto [host, service] = split_host_port(text);
    const address found = numeric(host, parse_port(service));
    if (found.size() == 0)
      throw std::invalid_argument("address: \"" + std::string(text) +
                                  "\" is not a numeric address and port");
    return found;
  }
  const std::string_view path = text.substr(5);
  address a;
  auto* un = reinterpret_cast<sockaddr_un*>(&a.storage_);
  if (path.empty() || path.size() >= sizeof un->sun_path ||
      path.find('\0') != std::string_view::npos)
    throw std::invalid_argument(
        "address: \"" + std::string(text) + "\": a unix path has 1 to " +
        std::to_string(sizeof un->sun_path - 1) + " bytes");
  un->sun_family = AF_UNIX;
  std::memcpy(un->sun_path, path.data(), path.size());
  a.size_ =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  if (path.front() == '@') {  // abstract: a zero first, and none at the end
    un->sun_path[0] = '\0';
    --a.size_;
  }
  return a;
}

inline std::string address::to_string() const {
  char text[INET6_ADDRSTRLEN] = "";
  const std::string port_text = ':' + std::to_string(port());
  if (family() == AF_INET) {
    auto* v4 = reinterpret_cast<const sockaddr_in*>(&storage_);
    return ::inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text) + port_text;
  }
  if (family() == AF_INET6) {
    auto* v6 = reinterpret_cast<const sockaddr_in6*>(&storage_);
    ::inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
    return '[' + std::string(text) + ']' + port_text;
  }
  if (family() != AF_UNIX) return "";
  auto* un = reinterpret_cast<const sockaddr_un*>(&storage_);
  const std::size_t n = size_ - offsetof(sockaddr_un, sun_path);
  if (size_ <= offsetof(sockaddr_un, sun_path)) return "unix:";
  if (un->sun_path[0] == '\0')
    return "unix:@" + std::string(un->sun_path + 1, n - 1);
  return "unix:" + std::string(un->sun_path, ::strnlen(un->sun_path, n));
}

inline int address::port() const {
  if (family() == AF_INET)
    return ntohs(reinterpret_cast<const sockaddr_in*>(&storage_)->sin_port);
  if (family() == AF_INET6)
    return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_port);
  return 0;
}

// Suspends, `until` at the latest, while a helper thread asks the system for
// the stream addresses of a host and a service; numbers are answered at once.
// Throws std::runtime_error when there is none, std::system_error with
// timed_out when late, std::invalid_argument for an impossible port.
inline std::vector<address> resolve(const std::string& host,
                                    const std::string& service,
                                    deadline until = never) {
  const auto port = parse_port(service);
  if (!port && service.find_first_not_of("0123456789-+ ") == std::string::npos)
    throw std::invalid_argument("resolve: \"" + service + "\" is no port");
  const address known = address::numeric(host, port);
  if (known.size() != 0) return {known};
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  const auto asked = question::ask(new addresses_of(host, service, hints));
  const std::string what = "resolve: " + host + ':' + service;
  if (!asked->wait(until)) throw_late(what);
  const auto& found = static_cast<const addresses_of&>(*asked);
  if (found.result != 0)
    throw std::runtime_error(what + ": " + ::gai_strerror(found.result));
  std::vector<address> all;
  for (const addrinfo* a = found.list; a != nullptr; a = a->ai_next)
    all.emplace_back(a->ai_addr, a->ai_addrlen);
  return all;
}

// A new socket, non-blocking and close-on-exec.
inline int make_socket(int family, int type) {
#if defined(SOCK_NONBLOCK)
  const int flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
  const int fd = check(::socket(family, type | flags, 0), "socket");
#else
  const int fd = check(::socket(family, type, 0), "socket");
  ::fcntl(fd, F_SETFL, O_NONBLOCK);
  ::fcntl(fd, F_SETFD, FD_CLOEXEC);
#endif
  return fd;
}

inline void send_at_once(int fd) {  // no waiting for a fuller packet
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

// A connection: a stream that knows its two ends. To ask for them never
// suspends, and throws std::system_error.
class socket_stream : public stream {
 public:
  socket_stream() = default;
  using stream::stream;

  address peer_address() const {
    return ask_address(fd(), ::getpeername, "getpeername");
  }
  address local_address() const { return local_address_of(fd()); }
};

// Each owns the connected socket that it is made from.
class tcp_stream final : public socket_stream {
 public:
  tcp_stream() = default;
  explicit tcp_stream(int fd) : socket_stream(fd, kind::tcp_socket) {}
};
class unix_stream final : public socket_stream {
 public:
  unix_stream() = default;
  explicit unix_stream(int fd) : socket_stream(fd, kind::other_socket) {}
};

// A new socket, connected to `to`. Suspends until then, `until` at the latest;
// throws std::system_error.
inline int connect_socket(const address& to, deadline until) {
  const bool local = to.family() == AF_UNIX;
  descriptor d(make_socket(to.family(), SOCK_STREAM));
  const std::string what = "connect: " + to.to_string();
  if (!local) send_at_once(d.fd());
  int error = 0;
  growing_pause pause;
  for (;;) {
    if (sys->connect(d.fd(), to.data(), to.size()) == 0) return d.release();
    error = errno;
    // The queue of a unix listener is full, and nobody tells when it is not.
    if (!local || error != EAGAIN) break;
    if (until.passed()) throw_late(what);
    sleep(std::min(until, deadline(pause.next())));
  }
  if (error == EINPROGRESS || error == EINTR) {
    // Under way: the socket becomes writable when it has been decided.
    if (!wait_fd(d.fd(), writable, until)) throw_late(what);
    socklen_t n = sizeof error;
    check(::getsockopt(d.fd(), SOL_SOCKET, SO_ERROR, &error, &n), "getsockopt");
  }
  if (error != 0) throw_errno(what, error);
  return d.release();
}

// Suspends until connected by TCP, `until` at the latest. Throws
// std::system_error, timed_out when late; std::invalid_argument for unix.
inline tcp_stream connect(const address& to, deadline until = never) {
  if (to.family() == AF_UNIX)
    throw std::invalid_argument("connect: " + to.to_string() +
                                " is not for TCP: use connect_unix()");
  return tcp_stream(connect_socket(to, until));
}
// The same to "host:port", where each address of a name is tried in turn.
// Throws what the last one said, what resolve() throws, std::invalid_argument.
inline tcp_stream connect(std::string_view host_port, deadline until = never) {
  const auto [host, service] = split_host_port(host_port);
  const auto all = resolve(host, service, until);
  for (std::size_t i = 0; i + 1 < all.size(); ++i) {
    try {
      return connect(all[i], until);
    } catch (const std::system_error&) {
      if (until.passed()) throw;
    }
  }
  return connect(all.back(), until);
}

// Suspends until connected to a unix listener, at address::parse("unix:/path"),
// `until` at the latest. Throws std::system_error; std::invalid_argument for
// an address of another kind.
inline unix_stream connect_unix(const address& to, deadline until = never) {
  if (to.family() != AF_UNIX)
    throw std::invalid_argument("connect_unix: " + to.to_string() +
                                " is no unix path");
  return unix_stream(connect_socket(to, until));
}

// Never suspends. Two ends of a connection within the process. Throws
// std::system_error.
inline std::pair<unix_stream, unix_stream> socket_pair() {
  int ends[2];
  check(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
  for (int fd : ends) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  return {unix_stream(ends[0]), unix_stream(ends[1])};
}

// A socket at an address. None of its members suspends.
class bound_socket {
 public:
  int port() const { return local_address().port(); }
  address local_address() const { return local_address_of(fd()); }
  int fd() const { return descriptor_.fd(); }
  // Whoever waits for it gets EBADF. Connections not yet accepted are reset.
  void close() noexcept { descriptor_.close(); }

 protected:
  bound_socket(const address& at, int type, bool shared = false)
      : descriptor_(make_socket(at.family(), type)) {
    const bool tcp = type == SOCK_STREAM && at.family() != AF_UNIX;
    const int on = 1;
    if (tcp) ::setsockopt(fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (tcp && shared)
      ::setsockopt(fd(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (::bind(fd(), at.data(), at.size()) == -1)
      throw_errno("bind: " + at.to_string());
  }

  descriptor descriptor_;
};

// Takes connections at an address. Only accept() and a loop over it suspend.
template <class Stream>
class listener : public bound_socket {
 public:
  // At "host:port" in numbers, port 0 for any that is free; at "unix:/path".
  // Throws std::system_error, and std::invalid_argument for another kind of
  // address. The system queues up to `backlog` connections; it divides them
  // among all listeners at an address that share it.
  explicit listener(const address& at, int backlog = 1024, bool shared = false)
      : bound_socket(expected(at), SOCK_STREAM, shared) {
    if (::listen(fd(), backlog) == -1) throw_errno("listen: " + at.to_string());
  }
  explicit listener(std::string_view at, int backlog = 1024)
      : listener(address::parse(at), backlog) {}

  // Suspends until somebody connects. Throws std::system_error: timed_out when
  // late, EBADF when the listener is closed. Where the process has no
  // descriptor left, it says so once and tries again, until `until`.
  Stream accept(deadline until = never) {
    io_call accepting(descriptor_, readable, until, "accepting on descriptor");
    growing_pause pause(std::chrono::milliseconds(10), std::chrono::seconds(1));
    for (;;) {
      const int fd = accepting.retry([&] {
        int got;
        do {
          got = sys->accept(descriptor_.fd(), nullptr, nullptr, accept_flags);
        } while (got == -1 && given_up());
        return got == -1 && out_of_descriptors() ? none_left : got;
      });
      if (fd != none_left) {
        if constexpr (std::is_same_v<Stream, tcp_stream>) send_at_once(fd);
        return Stream(fd);
      }
      if (!std::exchange(complained_, true))
        std::fprintf(stderr, "bao: accept: %s (see ulimit -n); waiting\n",
                     std::strerror(errno));
      accepting.pause(pause.next());
    }
  }

  // For range-for: until it is closed; ++ suspends as accept() does. The
  // listener must outlive the loop.
  using iterator = input_iterator<listener, Stream>;
  iterator begin() { return iterator(*this); }
  iterator end() { return {}; }
  // Suspends like accept(); empty when the listener is closed.
  std::optional<Stream> next() {
    try {
      if (fd() != -1) return accept();
    } catch (const std::system_error& e) {
      if (e.code() != std::errc::bad_file_descriptor) throw;
    }
    return std::nullopt;
  }

 private:
#if defined(SOCK_NONBLOCK)
  static constexpr int accept_flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
#else
  static constexpr int accept_flags = 0;
#endif
  static constexpr int none_left = -2;

  static const address& expected(const address& at) {
    if ((at.family() == AF_UNIX) != std::is_same_v<Stream, unix_stream>)
      throw std::invalid_argument("listener: " + at.to_string() +
                                  " is an address of another kind");
    return at;
  }
  // Who was about to connect has gone again: no fault of ours.
  static bool given_up() {
    return errno == ECONNABORTED || errno == EPROTO || errno == EPERM ||
           errno == ENETDOWN || errno == EHOSTUNREACH || errno == ENETUNREACH ||
           errno == EHOSTDOWN || errno == ENOPROTOOPT || errno == EOPNOTSUPP;
  }
  static bool out_of_descriptors() {
    return errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
           errno == ENOMEM;
  }

  bool complained_ = false;
};

using tcp_listener = listener<tcp_stream>;
using unix_listener = listener<unix_stream>;

// Datagrams. Only send_to() and receive_from() suspend: while they have to
// wait, `until` at the latest. They throw std::system_error, timed_out when
// late.
class udp_socket : public bound_socket {
 public:
  // At "host:port" in numbers, port 0 for any that is free, or at "unix:/path".
  // Throws std::system_error, std::invalid_argument.
  explicit udp_socket(const address& at) : bound_socket(at, SOCK_DGRAM) {}
  explicit udp_socket(std::string_view at) : udp_socket(address::parse(at)) {}

  // Suspends until there is room, and sends one datagram.
  void send_to(std::string_view data, const address& to,
               deadline until = never) {
    iovec piece{const_cast<char*>(data.data()), data.size()};
    msghdr m{};
    m.msg_name = const_cast<sockaddr*>(to.data());
    m.msg_namelen = to.size();
    m.msg_iov = &piece;
    m.msg_iovlen = 1;
    io_call writing(descriptor_, writable, until, "writing descriptor");
    growing_pause pause;
    constexpr ssize_t full = -2;
    while (writing.retry([&] {
      const ssize_t put =
          sys->sendmsg(descriptor_.fd(), &m, MSG_DONTWAIT | MSG_NOSIGNAL);
      const bool again = put == -1 && errno == EAGAIN;
      return again && to.family() == AF_UNIX ? full : put;
    }) == full)
      writing.pause(pause.next());
  }

  struct datagram {
    std::string data;
    address from;
    bool truncated;  // it was longer than `limit`; the rest is lost
  };
  // Suspends until one arrives; keeps its first `limit` bytes.
  datagram receive_from(std::size_t limit = 65536, deadline until = never) {
    datagram d;
    d.data.resize(limit);
    iovec piece{d.data.data(), limit};
    msghdr m{};
    m.msg_iov = &piece;
    m.msg_iovlen = 1;
    io_call reading(descriptor_, readable, until, "reading descriptor");
    const ssize_t n = reading.retry([&] {
      m.msg_name = d.from.data();
      m.msg_namelen = *d.from.size_to_fill();
      return sys->recvmsg(descriptor_.fd(), &m, MSG_DONTWAIT);
    });
    *d.from.size_to_fill() = m.msg_namelen;
    d.truncated = (m.msg_flags & MSG_TRUNC) != 0;
    d.data.resize(static_cast<std::size_t>(n));
    return d;
  }
};

}  // namespace BAO_ABI
}  // namespace bao
