// Who waits, where: what a program says of its own tasks.
#include <doctest/doctest.h>
#include <stdlib.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "bao.hpp"

using namespace std::literals;

namespace {

std::string reported() {
  char* text = nullptr;
  std::size_t size = 0;
  std::FILE* const to = ::open_memstream(&text, &size);
  REQUIRE(to != nullptr);
  bao::report(to);
  std::fclose(to);
  std::string all(text, size);
  ::free(text);
  return all;
}

// How many lines of a backtrace follow the line that holds `part`.
int depth_of(const std::string& report, const std::string& part) {
  const std::size_t at = report.find(part);
  if (at == std::string::npos) return -1;
  int depth = 0;
  for (std::size_t line = report.find('\n', at); line != std::string::npos;
       line = report.find('\n', line + 1), ++depth)
    if (report.compare(line + 1, 4, "    ") != 0) break;
  return depth;
}

[[gnu::noinline]] void dig(int depth) {
  if (depth == 0)
    bao::sleep(1h);
  else
    dig(depth - 1);
  __asm__ volatile("");  // no call is a jump
}

}  // namespace

TEST_CASE(
    "V90, S28: a report has every task, its state and what it waits for") {
  bao::virtual_time clock;
  auto sleeper = bao::spawn(bao::task_options().name("sleeper"), dig, 3);
  auto waiter =
      bao::spawn(bao::task_options().name("waiter"), [&] { sleeper.join(); });
  bao::yield();
  auto fresh = bao::spawn(bao::task_options().name("fresh"), [] {});
  const std::string text = reported();
  INFO(text);
  CHECK(text.find("\"main\" is running") != std::string::npos);
  CHECK(text.find("is parked: sleeping") != std::string::npos);
  CHECK(text.find("is parked: joining task " + std::to_string(sleeper.id())) !=
        std::string::npos);
  CHECK(text.find("\"fresh\" (") != std::string::npos);
  sleeper.kill();
  CHECK(reported().find("\"sleeper\"") == std::string::npos);
}

TEST_CASE("S18, V90: a report shows where each task stands on its stack") {
  bao::virtual_time clock;
  auto shallow = bao::spawn(bao::task_options().name("shallow"), dig, 0);
  auto deep = bao::spawn(bao::task_options().name("deep"), dig, 20);
  bao::yield();
  auto fresh = bao::spawn(bao::task_options().name("fresh"), [] {});
  const std::string text = reported();
  INFO(text);
  CHECK(depth_of(text, "\"fresh\"") == 0);  // it has no stack yet
#if defined(__GLIBC__)
  CHECK(depth_of(text, "\"shallow\"") >= 3);
  CHECK(depth_of(text, "\"deep\"") >= depth_of(text, "\"shallow\"") + 20);
  CHECK(depth_of(text, "\"main\"") >= 2);
#endif
  bao::kill_all(std::vector<bao::task<>>{shallow, deep});
}

TEST_CASE("V90: to be looked at disturbs no task") {
  int turns = 0;
  bool caught = false;
  auto busy = bao::spawn([&] {
    for (; turns < 5; ++turns) bao::yield();
  });
  auto handles = bao::spawn([&] {
    try {
      throw std::runtime_error("mine");
    } catch (const std::runtime_error&) {
      bao::yield();
      bao::yield();
      caught = std::current_exception() != nullptr;
    }
  });
  while (!busy.done() || !handles.done()) {
    const int before = turns;
    reported();
    CHECK(turns == before);  // nobody has run
    bao::yield();
  }
  CHECK(turns == 5);
  CHECK(caught);
}

TEST_CASE("V90: a task may report on itself and the others") {
  std::string text;
  auto asks =
      bao::spawn(bao::task_options().name("asks"), [&] { text = reported(); });
  asks.join();
  INFO(text);
  CHECK(text.find("\"asks\"") != std::string::npos);
  CHECK(text.find("\"main\"") != std::string::npos);
  CHECK(text.find("is parked: joining task") != std::string::npos);
}
