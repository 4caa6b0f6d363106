// Who waits, where: what a program says of its own tasks.
#include <doctest/doctest.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "bao.hpp"
#include "child.hpp"
#include "sanitized.hpp"

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

#if defined(__GLIBC__)
TEST_CASE("V90: a backtrace leaves out how bao waits, and looks") {
  bao::virtual_time clock;
  auto sleeper = bao::spawn(dig, 0);
  bao::yield();
  const std::string text = reported();
  INFO(text);
#ifndef SANITIZED  // whose own functions come first
  if (text.find("-rdynamic") == std::string::npos) {
    CHECK(text.find("(bao::trace::") == std::string::npos);
    CHECK(text.find("(bao::scheduler::") == std::string::npos);
  }
#endif
  CHECK(depth_of(text, "is parked: sleeping") >= 3);
  sleeper.kill();
}

TEST_CASE("V90: where there are no names, it is said once how to get them") {
  bao::trace where;
  where.places[0] = &where;  // no function
  where.depth = 1;
  const char* const how = "    (link with -rdynamic for names)\n";
  CHECK(where.text().find(how) != std::string::npos);
  where.stack_size = 1;  // not the main task's
  CHECK(where.text().find(how) == std::string::npos);
}
#endif

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

TEST_CASE("V90: a report says how much of its stack a task uses, and has") {
  bao::virtual_time clock;
  const auto used = [](const std::string& text, const char* name) {
    const std::size_t at = text.find(name);
    REQUIRE(at != std::string::npos);
    const std::string line = text.substr(at, text.find('\n', at) - at);
    INFO(line);
    const std::size_t on = line.find(", on ");
    REQUIRE(on != std::string::npos);
    CHECK(line.find(" of 64 KiB of stack") != std::string::npos);
    return std::stod(line.substr(on + 5));
  };
  const auto options = [](const char* name) {
    return bao::task_options().name(name).stack_size(64 * 1024);
  };
  auto shallow = bao::spawn(options("shallow"), [] { bao::sleep(1h); });
  auto deep = bao::spawn(options("deep"), [] {
    char room[20 * 1024];
    __asm__ volatile("" : : "r"(room) : "memory");
    bao::sleep(1h);
    __asm__ volatile("" : : "r"(room) : "memory");
  });
  bao::yield();
  auto fresh = bao::spawn(bao::task_options().name("fresh"), [] {});
  const std::string text = reported();
  const double little = used(text, "\"shallow\"");
  CHECK(little > 0);
  CHECK(used(text, "\"deep\"") < 64);
#ifndef SANITIZED  // they keep locals elsewhere
  CHECK(little < 16);
  CHECK(used(text, "\"deep\"") > 20);
#endif
  const std::size_t at = text.find("\"fresh\"");
  CHECK(text.find("KiB", at) == std::string::npos);  // it has none yet
  bao::kill_all(std::vector<bao::task<>>{shallow, deep});
}

TEST_CASE("V90: report_on has a signal answered by a report") {
  const ending child = in_a_child([] {
    bao::report_on(SIGQUIT);
    auto sleeper =
        bao::spawn(bao::task_options().name("sleeper"), [] { bao::sleep(1h); });
    bao::spawn([&] {
      bao::sleep(1ms);
      ::raise(SIGQUIT);
      bao::sleep(1ms);
      std::fprintf(stderr, "once more\n");
      ::raise(SIGQUIT);
      bao::sleep(1ms);
      sleeper.kill();
    });
    sleeper.join();
  });
  INFO(child.text);
  CHECK(child.code == 0);
  const std::size_t first = child.text.find("\"sleeper\"");
  CHECK(first < child.text.find("once more"));
  CHECK(child.text.find("\"sleeper\"", child.text.find("once more")) !=
        std::string::npos);
  CHECK(child.says("is parked: sleeping"));
}

TEST_CASE("V90: report_on: a task that keeps the thread is waited for") {
  const ending child = in_a_child([] {
    bao::report_on(SIGQUIT);
    bao::yield();
    ::raise(SIGQUIT);
    std::fprintf(stderr, "kept\n");
    for (int i = 0; i < 5000; ++i) bao::yield();  // and never sleeps
    std::fprintf(stderr, "over\n");
  });
  INFO(child.text);
  const std::size_t report = child.text.find("\"main\"");
  CHECK(child.text.find("kept") < report);
  CHECK(report < child.text.find("over"));
}

TEST_CASE(
    "V90: report_on: each thread that has asked reports, and only those") {
  const ending child = in_a_child([] {
    std::atomic<int> ready{0}, gone{0};
    const auto wait = [&](const char* name, bool asks) {
      bao::self().set_name(name);
      if (asks) bao::report_on(SIGQUIT);
      bao::yield();
      ++ready;
      bao::sleep(2s);
      ++gone;
    };
    std::thread a(wait, "one", true), b(wait, "two", true),
        c(wait, "three", false);
    while (ready < 3) ::usleep(1000);
    ::kill(::getpid(), SIGQUIT);
    a.join(), b.join(), c.join();
  });
  INFO(child.text);
  CHECK(child.code == 0);
  CHECK(child.says("\"one\" is parked"));
  CHECK(child.says("\"two\" is parked"));
  CHECK(!child.says("\"three\""));
}

TEST_CASE("V90: report_on keeps nobody waiting") {
  auto reporter = bao::report_on(SIGWINCH);
  SUBCASE("a deadlock is one all the same") {
    CHECK_THROWS_AS(bao::this_scheduler().park(bao::never, {"nothing"}),
                    bao::deadlock);
  }
  SUBCASE("even before it has begun to listen, and after") {
    bao::yield();
    auto stuck =
        bao::spawn([] { bao::this_scheduler().park(bao::never, {"nothing"}); });
    CHECK_THROWS_AS(stuck.join(), bao::deadlock);
    CHECK_THROWS_AS(stuck.join(), bao::deadlock);
    stuck.kill();
  }
  SUBCASE("join_all goes by without it") {
    bao::spawn([] { bao::sleep(1ms); });
    bao::join_all();
  }
  SUBCASE("other descriptors are waited for") {
    auto ends = bao::socket_pair();
    auto writer = bao::spawn([&] {
      bao::sleep(1ms);
      ends.second.write_all("x");
    });
    CHECK(ends.first.read_exactly(1) == "x");
    writer.join();
  }
  CHECK(reporter.kill(5s));
  CHECK(bao::this_scheduler().idle_waits == 0);
  CHECK(bao::this_scheduler().descriptor_waits == 0);
}

TEST_CASE("V90: report_on has a signal that others wait for as well") {
  const ending child = in_a_child([] {
    bao::report_on(SIGQUIT);
    auto waiter = bao::spawn([] { return bao::wait_signal({SIGQUIT}, 60s); });
    bao::yield();
    ::raise(SIGQUIT);
    CHECK(waiter.get() == SIGQUIT);
    bao::sleep(1ms);
  });
  INFO(child.text);
  CHECK(child.code == 0);
  CHECK(child.says("\"main\" is"));
}

TEST_CASE("V90: report_on refuses what cannot be caught") {
  CHECK_THROWS_AS(bao::report_on(SIGKILL), std::system_error);
}
