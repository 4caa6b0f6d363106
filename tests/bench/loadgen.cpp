// loadgen.cpp - load for an echo server, and what the server pays for it
//
// A closed loop: every connection keeps one message in flight, and checks what
// comes back. The rate is bound by this program's core as well, so the figure
// to compare is the CPU time that the server spends on a request.
//
//     g++ -O2 -std=c++17 loadgen.cpp -o loadgen
//     ./loadgen HOST PORT CONNECTIONS BYTES SECONDS [SERVER_PID]
//
// It warms up for a tenth of SECONDS, measures for SECONDS and prints one line
// of JSON: requests while measuring and `total` with the warm-up, rate, p50 and
// p99 of the latency, CPU time a request of its own and, with SERVER_PID, of
// all the server's threads. HOST must be a loopback address, and every run is
// bounded: at most 10,000 connections, 64 KiB a message and 60 seconds; a
// server that is silent for a second ends it.
//
// SPDX-License-Identifier: MIT
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "bench.hpp"

namespace {

[[noreturn]] void fail(const char* what, int error) {
  std::printf("{\"error\":\"%s: %s\"}\n", what, std::strerror(error));
  std::exit(1);
}

int check(int result, const char* call) {
  if (result < 0) fail(call, errno);
  return result;
}

// CPU time of all threads of a process: the first word of each schedstat.
double cpu_ns_of(const std::string& pid) {
  const std::string threads = "/proc/" + pid + "/task";
  DIR* folder = opendir(threads.c_str());
  if (!folder) fail(threads.c_str(), errno);
  double sum = 0;
  while (const dirent* entry = readdir(folder)) {
    if (entry->d_name[0] == '.') continue;
    const std::string path = threads + "/" + entry->d_name + "/schedstat";
    std::FILE* file = std::fopen(path.c_str(), "r");
    if (!file) continue;
    double ns = 0;
    if (std::fscanf(file, "%lf", &ns) == 1) sum += ns;
    std::fclose(file);
  }
  closedir(folder);
  return sum;
}

// How often each latency occurred, in steps of 100 ns up to 100 ms.
class histogram {
 public:
  void add(double ns) {
    ++counts_[std::min(static_cast<std::size_t>(ns / 100), last)];
    ++total_;
  }

  std::uint64_t total() const { return total_; }

  double percentile_us(double share) const {
    const auto rank =
        static_cast<std::uint64_t>(share * static_cast<double>(total_));
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i <= last; ++i) {
      seen += counts_[i];
      if (seen > rank) return static_cast<double>(i) / 10;
    }
    return 0;
  }

 private:
  static constexpr std::size_t last = 1000000;
  std::vector<std::uint32_t> counts_ = std::vector<std::uint32_t>(last + 1);
  std::uint64_t total_ = 0;
};

struct connection {
  int fd;
  std::size_t received;
  double sent_at;
  std::uint64_t sequence;
};

class load {
 public:
  load(const sockaddr_in& server, std::size_t connections, std::size_t bytes)
      : message_(bytes, 'x'), piece_(bytes) {
    epoll_ = check(epoll_create1(0), "epoll_create1");
    for (std::size_t i = 0; i < connections; ++i) {
      connect_one(server);
      // In slices, so that a small backlog is enough.
      if (i % 64 == 63) usleep(2000);
    }
  }

  void start() {
    for (connection& peer : peers_) send(peer);
  }

  // Runs until `end`; latencies go to `result`. Returns how many were answered.
  std::uint64_t run_until(double end, histogram& result) {
    std::uint64_t answered = 0;
    epoll_event events[256];
    for (double now = 0; now < end;) {
      const int n = check(epoll_wait(epoll_, events, 256, 1000), "epoll_wait");
      if (n == 0) fail("no answer within a second", ETIMEDOUT);
      for (int i = 0; i < n; ++i) {
        connection& peer = peers_[events[i].data.u32];
        if (!receive(peer)) continue;
        now = bench::now_ns();
        result.add(now - peer.sent_at);
        ++answered;
        send(peer);
      }
    }
    return answered;
  }

 private:
  void connect_one(const sockaddr_in& server) {
    const int fd = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
    check(
        connect(fd, reinterpret_cast<const sockaddr*>(&server), sizeof server),
        "connect");
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    check(fcntl(fd, F_SETFL, O_NONBLOCK), "fcntl");
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u32 = static_cast<std::uint32_t>(peers_.size());
    check(epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
    peers_.push_back({fd, 0, 0, 0});
  }

  // Each message begins with its number, as much of it as fits.
  const char* message_of(const connection& peer) {
    std::memcpy(message_.data(), &peer.sequence,
                std::min(message_.size(), sizeof peer.sequence));
    return message_.data();
  }

  void send(connection& peer) {
    peer.received = 0;
    ++peer.sequence;
    peer.sent_at = bench::now_ns();
    const ssize_t sent =
        ::send(peer.fd, message_of(peer), message_.size(), MSG_NOSIGNAL);
    if (sent < 0) fail("send", errno);
    if (static_cast<std::size_t>(sent) < message_.size())
      fail("a message larger than the socket's buffer", EMSGSIZE);
  }

  // True when the answer is complete. Each piece is checked as it comes.
  bool receive(connection& peer) {
    const ssize_t got =
        recv(peer.fd, piece_.data(), message_.size() - peer.received, 0);
    if (got == 0) fail("the server closed", ECONNRESET);
    if (got < 0) {
      if (errno == EAGAIN) return false;
      fail("recv", errno);
    }
    const auto size = static_cast<std::size_t>(got);
    if (std::memcmp(piece_.data(), message_of(peer) + peer.received, size) != 0)
      fail("a wrong echo", EPROTO);
    peer.received += size;
    return peer.received == message_.size();
  }

  std::vector<char> message_;
  std::vector<char> piece_;
  std::vector<connection> peers_;
  int epoll_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    std::fputs(
        "usage: loadgen HOST PORT CONNECTIONS BYTES SECONDS [SERVER_PID]\n",
        stderr);
    return 2;
  }
  const int port = std::atoi(argv[2]);
  const int connections = std::atoi(argv[3]);
  const int bytes = std::atoi(argv[4]);
  const double seconds = std::atof(argv[5]);
  const std::string pid = argc > 6 ? argv[6] : "";
  sockaddr_in server{};
  server.sin_family = AF_INET;
  server.sin_port = htons(static_cast<std::uint16_t>(port));
  if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1 ||
      ntohl(server.sin_addr.s_addr) >> 24 != IN_LOOPBACKNET) {
    std::fputs("loadgen: HOST must be a loopback address, 127.0.0.1\n", stderr);
    return 2;
  }
  if (port < 1 || port > 65535 || connections < 1 || connections > 10000 ||
      bytes < 1 || bytes > 65536 || !(seconds > 0) || seconds > 60) {
    std::fputs("loadgen: out of range\n", stderr);
    return 2;
  }
  alarm(120);  // whatever happens

  load clients(server, static_cast<std::size_t>(connections),
               static_cast<std::size_t>(bytes));
  histogram ignored;
  histogram latency;
  clients.start();
  const std::uint64_t warmup =
      clients.run_until(bench::now_ns() + seconds * 1e8, ignored);

  const double server_cpu = pid.empty() ? 0 : cpu_ns_of(pid);
  const double own_cpu = bench::cpu_ns();
  const double start = bench::now_ns();
  clients.run_until(start + seconds * 1e9, latency);
  const double wall = bench::now_ns() - start;
  const double own_cpu_used = bench::cpu_ns() - own_cpu;
  const double server_cpu_used = pid.empty() ? 0 : cpu_ns_of(pid) - server_cpu;

  const auto requests = static_cast<double>(latency.total());
  std::printf(
      "{\"connections\":%d,\"bytes\":%d,\"requests\":%.0f,\"total\":%.0f,"
      "\"rate\":%.0f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"client_cpu_us\":%.3f",
      connections, bytes, requests, requests + static_cast<double>(warmup),
      requests / wall * 1e9, latency.percentile_us(0.5),
      latency.percentile_us(0.99), own_cpu_used / requests / 1e3);
  if (!pid.empty())
    std::printf(",\"server_cpu_us\":%.3f", server_cpu_used / requests / 1e3);
  std::puts("}");
}
