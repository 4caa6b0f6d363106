// echo_server.cpp - sends back whatever it is sent
//
//     ./echo_server                  on port 8080
//     ./echo_server 0 --upper        on any free port, and in capitals
//     listening on 127.0.0.1:40123
//
// Each connection is a task with a loop that reads and writes, as if it were
// alone in the world. Ctrl-C or SIGTERM stops the server.
#include "bao.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

const char* const usage =
    "usage: echo_server [PORT] [--upper]\n"
    "  PORT     0 to 65535, 8080 unless given; 0 picks one that is free\n"
    "  --upper  sends back capitals\n";

char upper(char c) { return 'a' <= c && c <= 'z' ? char(c - 'a' + 'A') : c; }

// One connection. Its task owns the stream, which is closed when the task ends.
void serve(bao::tcp_stream peer, bool in_capitals) {
  try {
    for (;;) {
      std::string text = peer.read_some();
      if (text.empty()) return;
      if (in_capitals)
        std::transform(text.begin(), text.end(), text.begin(), upper);
      peer.write_all(text);
    }
  } catch (const std::system_error&) {
    // A client that breaks off is no concern of the others.
  }
}

// A connection takes a descriptor, and the usual limit of 1024 is no more than
// a habit: the system lets us raise it.
void allow_many_descriptors() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

void run(const bao::address& where, bool in_capitals) {
  bao::tcp_listener door(where);
  bao::spawn([&door] {
    bao::wait_signal({SIGINT, SIGTERM});
    door.close();  // ends the loop below
  });
  bao::yield();  // from here on, signals are heard

  std::printf("listening on %s\n", door.local_address().to_string().c_str());
  std::fflush(stdout);  // for those who read it through a pipe

  int clients = 0;
  for (bao::tcp_stream& peer : door) {
    bao::spawn(serve, std::move(peer), in_capitals);
    ++clients;
  }
  std::printf("served %d clients\n", clients);
}

int main(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  const auto option = std::find(arguments.begin(), arguments.end(), "--upper");
  const bool in_capitals = option != arguments.end();
  if (in_capitals) arguments.erase(option);
  if (arguments.empty()) arguments.push_back("8080");

  try {
    if (arguments.size() > 1) throw std::invalid_argument("too many arguments");
    const auto where = bao::address::parse("127.0.0.1:" + arguments.front());
    allow_many_descriptors();
    run(where, in_capitals);
  } catch (const std::invalid_argument& e) {
    std::fprintf(stderr, "echo_server: %s\n%s", e.what(), usage);
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "echo_server: %s\n", e.what());
    return 1;
  }
}  // what is still connected ends here, with the tasks that own the streams
