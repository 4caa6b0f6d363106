// echo_epoll.cpp - the limit: an echo server as a bare epoll loop
//
// No coroutines, no objects per request, one buffer for all: what the kernel
// itself takes for an echo. bao's own examples/echo_server is measured against
// it by `compare echo`.
//
//     lt     level-triggered: one read and one write per event
//     et     edge-triggered: reads until EAGAIN
//     short  edge-triggered: a read that did not fill the buffer counts as
//            drained (unless the peer has closed), so no read returns EAGAIN
//
//     g++ -O2 -std=c++17 echo_epoll.cpp -o echo_epoll
//     ./echo_epoll 0 short
//     listening on 127.0.0.1:40123
//
// Port 0 picks a free port. It serves 127.0.0.1 only, until it is killed.
//
// SPDX-License-Identifier: MIT
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace {

enum class style { level, edge, edge_short };

char buffer[16 * 1024];

int check(int result, const char* call) {
  if (result >= 0) return result;
  std::perror(call);
  std::exit(1);
}

int listen_on(std::uint16_t port) {
  const int fd =
      check(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(port);
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  check(bind(fd, reinterpret_cast<sockaddr*>(&at), size), "bind");
  check(listen(fd, 1024), "listen");
  check(getsockname(fd, reinterpret_cast<sockaddr*>(&at), &size),
        "getsockname");
  std::printf("listening on 127.0.0.1:%d\n", int{ntohs(at.sin_port)});
  std::fflush(stdout);
  return fd;
}

class server {
 public:
  server(std::uint16_t port, style how)
      : how_(how),
        listener_(listen_on(port)),
        epoll_(check(epoll_create1(0), "epoll_create1")) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = listener_;
    check(epoll_ctl(epoll_, EPOLL_CTL_ADD, listener_, &event), "epoll_ctl");
  }

  [[noreturn]] void run() {
    epoll_event events[256];
    for (;;) {
      const int n = epoll_wait(epoll_, events, 256, -1);
      for (int i = 0; i < n; ++i) {
        if (events[i].data.fd == listener_)
          accept_all();
        else
          serve(events[i].data.fd, events[i].events);
      }
    }
  }

 private:
  // What a client has still to be sent, because its socket was full.
  struct client {
    std::string pending;
  };

  void accept_all() {
    for (;;) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK);
      if (fd < 0) {
        if (errno == EAGAIN || errno == ECONNABORTED) return;
        check(fd, "accept4");
      }
      const int on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      const auto index = static_cast<std::size_t>(fd);
      if (clients_.size() <= index) clients_.resize(index + 1);
      clients_[index] = std::make_unique<client>();
      watch(fd, EPOLL_CTL_ADD,
            how_ == style::level ? EPOLLIN : EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    }
  }

  void serve(int fd, std::uint32_t ready) {
    client& peer = *clients_[static_cast<std::size_t>(fd)];
    if (!peer.pending.empty()) {
      if (!flush(fd, peer)) return;
      if (how_ == style::level) watch(fd, EPOLL_CTL_MOD, EPOLLIN);
    }
    for (;;) {
      const ssize_t got = read(fd, buffer, sizeof buffer);
      if (got < 0 && errno == EAGAIN) return;
      if (got <= 0) return drop(fd);
      ssize_t sent = write(fd, buffer, static_cast<std::size_t>(got));
      if (sent < 0) {
        if (errno != EAGAIN) return drop(fd);
        sent = 0;
      }
      if (sent < got) {
        peer.pending.assign(buffer + sent, buffer + got);
        if (how_ == style::level) watch(fd, EPOLL_CTL_MOD, EPOLLOUT);
        return;
      }
      if (how_ == style::level) return;
      if (how_ == style::edge_short && got < ssize_t{sizeof buffer} &&
          !(ready & EPOLLRDHUP))
        return;
    }
  }

  // False when the socket is full again, or gone.
  bool flush(int fd, client& peer) {
    while (!peer.pending.empty()) {
      const ssize_t sent = write(fd, peer.pending.data(), peer.pending.size());
      if (sent < 0) {
        if (errno != EAGAIN) drop(fd);
        return false;
      }
      peer.pending.erase(0, static_cast<std::size_t>(sent));
    }
    return true;
  }

  void drop(int fd) {
    close(fd);
    clients_[static_cast<std::size_t>(fd)].reset();
  }

  void watch(int fd, int operation, std::uint32_t what) {
    epoll_event event{};
    event.events = what;
    if (how_ != style::level) event.events |= EPOLLET;
    event.data.fd = fd;
    check(epoll_ctl(epoll_, operation, fd, &event), "epoll_ctl");
  }

  style how_;
  int listener_;
  int epoll_;
  std::vector<std::unique_ptr<client>> clients_;  // by descriptor
};

}  // namespace

int main(int argc, char** argv) {
  const int port = argc > 1 ? std::atoi(argv[1]) : 0;
  const std::string how = argc > 2 ? argv[2] : "short";
  if (port < 0 || port > 65535 ||
      (how != "lt" && how != "et" && how != "short")) {
    std::fputs("usage: echo_epoll [PORT [lt|et|short]]\n", stderr);
    return 2;
  }
  std::signal(SIGPIPE, SIG_IGN);
  server echo(static_cast<std::uint16_t>(port), how == "lt" ? style::level
                                                : how == "et"
                                                    ? style::edge
                                                    : style::edge_short);
  echo.run();
}
