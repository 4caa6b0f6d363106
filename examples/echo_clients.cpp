// echo_clients.cpp - a thousand clients of an echo server, in one thread
//
//     ./echo_clients                                 on the server at port 8080
//     ./echo_clients 127.0.0.1 40123 1000 100        1000 clients, 100 rounds
//
// Every client is a task that sends a message, waits for the echo and compares,
// round after round. Then we see how fast it was.
#include "bao.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using namespace std::chrono_literals;

const char* const usage =
    "usage: echo_clients [HOST [PORT [CLIENTS [ROUNDS]]]]\n"
    "  127.0.0.1 8080 1000 100 unless given\n";

constexpr auto patience = 30s;  // for a connection, and for each answer

std::vector<bao::clock::duration> times;  // of all rounds of all clients

bao::tcp_stream connect_to(const bao::address& server) {
  return bao::connect(server, patience);
}

void talk(bao::tcp_stream peer, std::size_t client, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    // 64 bytes that nobody else sends.
    std::string message = "client " + std::to_string(client) + ", round " +
                          std::to_string(round) + ' ';
    message.resize(64, '.');

    const auto start = bao::now();
    const bao::deadline until = patience;
    peer.write_all(message, until);
    const std::string echo = peer.read_exactly(message.size(), until);
    times.push_back(bao::now() - start);

    if (echo != message)
      throw std::runtime_error("wrong echo: sent \"" + message +
                               "\", received \"" + echo + '"');
  }
}

void allow_many_descriptors() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

double in_ms(bao::clock::duration d) {
  return std::chrono::duration<double, std::milli>(d).count();
}

// Waits for all. If some have failed, says how many and throws an error of one.
template <class T>
void expect_success(const std::vector<bao::task<T>>& tasks) {
  bao::join_all(tasks);
  const auto failed = std::count_if(tasks.begin(), tasks.end(),
                                    [](const auto& t) { return !t.ok(); });
  if (failed == 0) return;
  std::fprintf(stderr, "echo_clients: %d of %zu clients have failed\n",
               static_cast<int>(failed), tasks.size());
  for (const auto& t : tasks) t.get();
}

void measure(const bao::address& server, int clients, int rounds) {
  // First all connect, then all talk.
  std::vector<bao::task<bao::tcp_stream>> connecting;
  for (int i = 0; i < clients; ++i)
    connecting.push_back(bao::spawn(connect_to, server));
  expect_success(connecting);

  const auto start = bao::now();
  std::vector<bao::task<>> talking;
  for (auto& connected : connecting)
    talking.push_back(
        bao::spawn(talk, std::move(connected.get()), talking.size(), rounds));
  expect_success(talking);
  const double seconds = in_ms(bao::now() - start) / 1000;

  std::sort(times.begin(), times.end());
  const std::size_t last = times.size() - 1;
  std::printf("%d clients, %d rounds each: %zu echoes in %.2f s\n", clients,
              rounds, times.size(), seconds);
  std::printf("%.0f requests per second\n",
              static_cast<double>(times.size()) / seconds);
  std::printf("p50 %.2f ms, p90 %.2f ms, p99 %.2f ms, max %.2f ms\n",
              in_ms(times[last / 2]), in_ms(times[last * 9 / 10]),
              in_ms(times[last * 99 / 100]), in_ms(times[last]));
}

// A whole number from `least` to `most`; throws std::invalid_argument.
int number(const std::string& text, int least, int most) {
  std::size_t used = 0;
  int n = least - 1;
  try {
    n = std::stoi(text, &used);
  } catch (const std::logic_error&) {
  }
  if (used != text.size() || n < least || n > most)
    throw std::invalid_argument('"' + text + "\" is not a number from " +
                                std::to_string(least) + " to " +
                                std::to_string(most));
  return n;
}

int main(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  const std::vector<std::string> defaults{"127.0.0.1", "8080", "1000", "100"};
  for (std::size_t i = arguments.size(); i < defaults.size(); ++i)
    arguments.push_back(defaults[i]);

  try {
    if (arguments.size() > 4) throw std::invalid_argument("too many arguments");
    number(arguments[1], 1, 65535);
    const int clients = number(arguments[2], 1, 1'000'000);
    const int rounds = number(arguments[3], 1, 1'000'000);

    allow_many_descriptors();
    const auto found = bao::resolve(arguments[0], arguments[1], patience);
    measure(found.front(), clients, rounds);
  } catch (const std::invalid_argument& e) {
    std::fprintf(stderr, "echo_clients: %s\n%s", e.what(), usage);
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "echo_clients: %s\n", e.what());
    return 1;
  }
}
