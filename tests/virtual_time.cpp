// virtual_time.cpp - tests that sleep take no time
#include <doctest/doctest.h>

#include "bao.hpp"

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>

using namespace std::literals;

TEST_CASE("a clock that comes and goes leaves the other one as it was") {
  std::set<std::string> orders;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    bao::virtual_time outer(seed);
    { bao::virtual_time inner; }
    std::string order;
    for (char name = 'a'; name < 'e'; ++name)
      bao::spawn([&order, name] {
        bao::sleep(1s);
        order += name;
      });
    bao::join_all();
    orders.insert(order);
  }
  CHECK(orders.size() > 10);
}

TEST_CASE("time does not go back, and does not end") {
  bao::virtual_time clock;
  CHECK_THROWS_AS(clock.advance(-1ns), std::invalid_argument);
  bao::sleep(200 * 365 * 24h);
  CHECK(bao::deadline(200 * 365 * 24h).is_never());
}

TEST_CASE("a day passes at once, to the nanosecond") {
  const auto really = std::chrono::steady_clock::now();
  bao::virtual_time clock;
  const auto start = bao::now();
  bao::sleep(24h);
  CHECK(bao::now() - start == 24h);
  CHECK(std::chrono::steady_clock::now() - really < 1h);
}

TEST_CASE("nothing passes unless all wait, or somebody says so") {
  bao::virtual_time clock;
  const auto start = bao::now();
  for (int i = 0; i < 1000; ++i) bao::yield();
  CHECK(bao::now() == start);
  clock.advance(3s);
  CHECK(bao::now() - start == 3s);
}

TEST_CASE("sleepers wake in the order of their times") {
  bao::virtual_time clock;
  std::string order;
  auto late = bao::spawn([&] { bao::sleep(3h), order += 'c'; });
  auto soon = bao::spawn([&] { bao::sleep(1h), order += 'a'; });
  auto next = bao::spawn([&] { bao::sleep(2h), order += 'b'; });
  bao::join_all(late, soon, next);
  CHECK(order == "abc");
}

TEST_CASE("helper threads that are at work take no time on this clock") {
  bao::virtual_time clock;
  const auto start = bao::now();
  auto sleeper = bao::spawn([] { bao::sleep(1h); });
  bao::offload([] { ::usleep(10000); });
  CHECK(bao::now() == start);
  CHECK(!sleeper.done());
  sleeper.join();
  CHECK(bao::now() - start == 1h);
}

TEST_CASE("each thread has its own clock; when it goes, the real one is back") {
  const auto before = bao::now();
  {
    bao::virtual_time clock;
    clock.advance(1000h);
    auto elsewhere = bao::now();
    std::thread([&] { elsewhere = bao::now(); }).join();
    CHECK(elsewhere - before < 1h);
  }
  CHECK(bao::now() - before < 1h);
}

TEST_CASE("a timer that is due rings though a helper is at work") {
  bao::virtual_time clock;
  std::atomic<bool> rung{false};
  bao::spawn([&] {
    bao::sleep(1s);
    rung = true;
  });
  auto job = bao::spawn([&] {
    bao::offload([&] {
      while (!rung) ::usleep(100);
    });
  });
  bao::yield();
  clock.advance(2s);
  job.join();
  CHECK(rung);
}
