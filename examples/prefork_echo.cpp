// prefork_echo.cpp - processes x threads x tasks: the recipe for many cores
//
//     ./prefork_echo 8080 --processes 2 --threads 2
//     listening on 127.0.0.1:8080
//
// Tasks share a thread, and need no locks for it. To use more cores, have more
// threads, each with tasks of its own, or more processes, which share nothing:
// one that crashes takes no other along. All listen at the same address, and
// the system divides the connections. Ctrl-C or SIGTERM stops them all.
#include "bao.hpp"

#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

using namespace std::chrono_literals;

const char* const usage =
    "usage: prefork_echo [PORT] [--processes N] [--threads N]\n"
    "  PORT  0 to 65535, 8080 unless given; 0 picks one that is free\n"
    "  N     1 to 64, 2 unless given\n";

void echo(bao::tcp_stream& peer) {
  char buffer[16 * 1024];
  while (const std::size_t n = peer.read_some(buffer, sizeof buffer))
    peer.write_all(buffer, n);
}

// A socket that is bound and does not listen: it takes no connections, but the
// port stays ours whoever comes and goes.
bao::descriptor reserve(bao::address& where) {
  bao::descriptor d(bao::make_socket(where.family(), SOCK_STREAM));
  const int on = 1;
  ::setsockopt(d.fd(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
  bao::check(::bind(d.fd(), where.data(), where.size()), "bind");
  bao::check(::getsockname(d.fd(), where.data(), where.size_to_fill()),
             "getsockname");
  return d;
}

// What each process does. In a child there is no task but this one.
int serve(const bao::address& where, int threads, int listening) {
  try {
    bao::tcp_server server(where, echo,
                           bao::server_options().threads(threads).shared());
    bao::spawn([&] {
      bao::wait_signal({SIGINT, SIGTERM});
      server.stop(5s);
    });
    bao::stream(listening).write_all(".");
    server.serve();
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "prefork_echo: %s\n", e.what());
    return 1;
  }
}

int number(const std::string& text) {
  const int n = std::atoi(text.c_str());
  if (n < 1 || n > 64 || text != std::to_string(n))
    throw std::invalid_argument("not a number from 1 to 64: " + text);
  return n;
}

int main(int argc, char** argv) {
  std::string port = "8080";
  int processes = 2, threads = 2;
  try {
    for (int i = 1; i < argc; ++i) {
      const std::string word = argv[i];
      if (word == "--processes" && i + 1 < argc)
        processes = number(argv[++i]);
      else if (word == "--threads" && i + 1 < argc)
        threads = number(argv[++i]);
      else
        port = word;
    }
    bao::address where = bao::address::parse("127.0.0.1:" + port);
    const bao::descriptor ours = reserve(where);
    int ends[2];  // each child says there that it listens
    bao::check(::pipe(ends), "pipe");
    std::vector<pid_t> children;
    for (int i = 0; i < processes; ++i) {
      const pid_t child = bao::check(::fork(), "fork");
      if (child == 0) ::_exit(serve(where, threads, ends[1]));
      children.push_back(child);
    }
    ::close(ends[1]);
    bao::stream(ends[0]).read_exactly(children.size());
    std::printf("listening on %s\n", where.to_string().c_str());
    std::fflush(stdout);
    bao::wait_signal({SIGINT, SIGTERM});
    for (pid_t child : children) ::kill(child, SIGTERM);
    for (pid_t child : children) ::waitpid(child, nullptr, 0);
  } catch (const std::invalid_argument& e) {
    std::fprintf(stderr, "prefork_echo: %s\n%s", e.what(), usage);
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "prefork_echo: %s\n", e.what());
    return 1;
  }
}
