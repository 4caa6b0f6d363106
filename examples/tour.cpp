// tour.cpp - the whole idea in a few seconds
//
//     g++ -std=c++17 -O2 -pthread -Isingle_include examples/tour.cpp -o tour
//     ./tour
//
// Five stops, from a function that stops in the middle to a thousand
// connections. All of it is one thread, and nothing leaves this computer. If
// anything is not as promised, the program says so and ends with 1.
#include "bao.hpp"

#include <sys/resource.h>
#include <sys/select.h>

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

void expect(bool promise, const char* text) {
  if (!promise) throw std::runtime_error(text);
}

double seconds_since(bao::clock::time_point start) {
  return std::chrono::duration<double>(bao::now() - start).count();
}

// --- 1 -----------------------------------------------------------------------
// A generator hands out its results one at a time. This one never ends; it only
// goes as far as somebody asks.

bao::generator<int> fibonacci() {
  return [](auto& yield) {
    int a = 0, b = 1;
    for (;;) {
      yield(a);
      const int sum = a + b;
      a = b;
      b = sum;
    }
  };
}

void pipeline() {
  std::printf("1. Generators, joined like commands in a shell\n");

  const auto even = [](int n) { return n % 2 == 0; };
  const auto squared = [](int n) { return n * n; };
  const auto numbers = fibonacci() | bao::filter(even) | bao::map(squared) |
                       bao::take(5) | bao::to<std::vector>();

  std::printf("   the squares of the first even Fibonacci numbers:");
  for (int n : numbers) std::printf(" %d", n);
  std::printf("\n");
  expect(numbers == std::vector<int>{0, 4, 64, 1156, 20736},
         "the pipeline has miscalculated");
}

// --- 2 -----------------------------------------------------------------------
// Coroutines hand over to each other, and a value with it. Each stands where it
// has left off, with all its variables.

void ping_pong() {
  std::printf("2. Two coroutines that hand over to each other\n");

  bao::coroutine<int> ping, pong;
  ping = bao::coroutine<int>([&](int ball) {
    while (ball < 1'000'000) ball = pong.switch_to(ball + 1);
    return ball;
  });
  pong = bao::coroutine<int>([&](int ball) {
    for (;;) ball = ping.switch_to(ball + 1);
  });

  const auto start = bao::now();
  const int ball = ping.switch_to(0);
  std::printf("   the ball went to and fro %d times, %.0f ns each\n", ball,
              seconds_since(start) / ball * 1e9);
  expect(ball == 1'000'000, "the ball was lost");
}

// --- 3 -----------------------------------------------------------------------
// A task that sleeps keeps nobody else waiting.

void sleepers() {
  std::printf("3. A hundred tasks that sleep for half a second each\n");

  const auto start = bao::now();
  std::vector<bao::task<>> tasks;
  for (int i = 0; i < 100; ++i)
    tasks.push_back(bao::spawn([] { bao::sleep(500ms); }));
  bao::join_all(tasks);

  const double seconds = seconds_since(start);
  std::printf("   one by one: 50 s; together: %.2f s\n", seconds);
  expect(seconds >= 0.5, "somebody has woken too early");
  expect(seconds < 5, "they have not slept together");
}

// --- 4 -----------------------------------------------------------------------
// A task for each connection: a loop that reads and writes, and waits wherever
// it has to.

void serve(bao::tcp_listener door, void (*handler)(bao::tcp_stream)) {
  for (bao::tcp_stream& peer : door) bao::spawn(handler, std::move(peer));
}

void echo(bao::tcp_stream peer) {
  char buffer[4096];
  while (const std::size_t n = peer.read_some(buffer, sizeof buffer))
    peer.write_all(buffer, n);
}

constexpr int rounds = 10;

void talk(bao::tcp_stream peer, std::size_t client) {
  for (int round = 1; round <= rounds; ++round) {
    const std::string line =
        "client " + std::to_string(client) + ", round " + std::to_string(round);
    peer.write_all(line + '\n');
    expect(peer.read_line() == line, "an echo is wrong");
  }
}

// Both ends of a connection are ours: two descriptors a client.
int as_many_clients_as_allowed() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  getrlimit(RLIMIT_NOFILE, &limit);
  rlim_t descriptors = limit.rlim_cur;
#if defined(BAO_USE_SELECT)
  descriptors = std::min<rlim_t>(descriptors, FD_SETSIZE);
#endif
  const rlim_t others = 100;
  expect(descriptors > 2 * others, "hardly any descriptors (see ulimit -n)");
  return static_cast<int>(std::min<rlim_t>(1000, (descriptors - others) / 2));
}

void echo_server() {
  std::printf("4. An echo server and its clients\n");

  const int clients = as_many_clients_as_allowed();
  if (clients < 1000)
    std::printf("   (%d, as there are not descriptors for 1000)\n", clients);

  bao::tcp_listener door("127.0.0.1:0");  // at any port that is free
  const bao::address where = door.local_address();
  const auto server = bao::spawn(serve, std::move(door), echo);

  // First all of them connect, then all of them talk.
  const auto start = bao::now();
  std::vector<bao::tcp_stream> peers;
  for (int i = 0; i < clients; ++i) peers.push_back(bao::connect(where));
  std::vector<bao::task<>> talking;
  for (bao::tcp_stream& peer : peers)
    talking.push_back(bao::spawn(talk, std::move(peer), talking.size()));
  for (const auto& t : talking) t.get();  // throws what has gone wrong in it
  const double seconds = seconds_since(start);

  server.kill();
  std::printf("   %d clients at the same time, %d echoes: %.2f s\n", clients,
              clients * rounds, seconds);
}

// --- 5 -----------------------------------------------------------------------
// The reason for all this: most of the time a program waits for others. Here is
// a web server that takes 0.2 s for each page, and somebody who wants 20 pages.

void skip_header(bao::tcp_stream& peer) {  // which ends with an empty line
  while (const auto line = peer.read_line())
    if (line->empty()) return;
}

void send_page(bao::tcp_stream peer) {
  skip_header(peer);
  bao::sleep(200ms);
  peer.write_all("HTTP/1.0 200 OK\r\n\r\n<html>Eat more baozi.</html>");
}

std::size_t size_of_page(const bao::address& server, int page) {
  bao::tcp_stream peer = bao::connect(server);
  peer.write_all("GET /" + std::to_string(page) + " HTTP/1.0\r\n\r\n");
  skip_header(peer);
  return peer.read_all().size();
}

void crawl() {
  std::printf("5. Twenty pages of a web server that takes 0.2 s for each\n");

  bao::tcp_listener door("127.0.0.1:0");
  const bao::address where = door.local_address();
  const auto server = bao::spawn(serve, std::move(door), send_page);

  const auto start = bao::now();
  std::vector<bao::task<std::size_t>> pages;
  for (int i = 0; i < 20; ++i)
    pages.push_back(bao::spawn(size_of_page, where, i));
  std::size_t bytes = 0;
  for (const auto& page : pages) bytes += page.get();
  const double seconds = seconds_since(start);

  server.kill();
  std::printf("   one by one: 4 s; together: %.2f s for %zu bytes\n", seconds,
              bytes);
  expect(bytes == 20 * 28, "some page has the wrong size");
  expect(seconds < 2, "they were not fetched together");
}

int main() {
  const auto start = bao::now();
  try {
    bao::timeout limit(30s);  // on all that follows
    pipeline();
    ping_pong();
    sleepers();
    echo_server();
    crawl();
  } catch (const bao::timed_out&) {
    std::fprintf(stderr, "tour: not finished after 30 s\n");
    return 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "tour: %s\n", e.what());
    return 1;
  }
  std::printf("All in one thread, in %.1f s.\n", seconds_since(start));
}
