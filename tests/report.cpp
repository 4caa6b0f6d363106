// report.cpp - who is stuck, and on what
#include <doctest/doctest.h>

#include "bao.hpp"
#include "checks.hpp"

#include <string>
#include <vector>

using namespace std::literals;

TEST_CASE("V21: a report names the task, where it was spawned, and its wait") {
  bao::virtual_time clock;
  auto t = bao::spawn([] { bao::sleep(1h); });
  const int line = __LINE__ - 1;
  t.set_name("reader");
  bao::yield();
  clock.advance(1200ms);
  const std::string text =
      bao::describe(t.checked("test"), bao::now().time_since_epoch().count());
  CHECK(says(text, "task " + std::to_string(t.id()) + " \"reader\""));
  CHECK(says(text, "report.cpp:" + std::to_string(line)));
  CHECK(says(text, "is parked: sleeping, for 1.2 s"));
  t.kill();
}

TEST_CASE("V21: the place is kept for every number of arguments up to two") {
  const auto tell = [](const auto& t) {
    return bao::describe(t.checked("test"), 0);
  };
  auto none = bao::spawn([] {});
  const int line = __LINE__ - 1;
  auto one = bao::spawn([](int) {}, 1);
  auto two = bao::spawn([](int, int) {}, 1, 2);
  auto options = bao::spawn(bao::task_options(), [] {});
  CHECK(says(tell(none), "report.cpp:" + std::to_string(line) + ")"));
  CHECK(says(tell(one), "report.cpp:" + std::to_string(line + 2) + ")"));
  CHECK(says(tell(two), "report.cpp:" + std::to_string(line + 3) + ")"));
  CHECK(says(tell(options), "report.cpp:" + std::to_string(line + 4) + ")"));
  bao::join_all();
}

TEST_CASE("a report says of each state what it is") {
  bao::virtual_time clock;
  const auto tell = [](const bao::task<>& t) {
    return bao::describe(t.checked("test"), 0);
  };
  auto later = bao::spawn_later(1s, [] {});
  CHECK(says(tell(later), "has not started"));
  bao::task<> t = bao::spawn([&] { CHECK(says(tell(t), "is running")); });
  CHECK(says(tell(t), "is ready"));
  t.join();
  CHECK(says(tell(t), "has ended"));
  later.join();
}

TEST_CASE("a report says which task is joined") {
  auto sleeper =
      bao::spawn([] { bao::this_scheduler().park(bao::never, {""}); });
  auto joiner = bao::spawn([&] { sleeper.join(); });
  bao::yield();
  CHECK(says(bao::describe(joiner.checked("test"), 0),
             "joining task " + std::to_string(sleeper.id())));
  sleeper.kill();
  joiner.join();
}

TEST_CASE("V42: the report of a deadlock has a line for each task") {
  const auto fish = [] { bao::this_scheduler().park(bao::never, {"fishing"}); };
  auto first = bao::spawn(fish);
  const int line = __LINE__ - 1;
  first.set_name("angler");
  auto second =
      bao::spawn(bao::task_options().name("friend"), [&] { first.join(); });
  std::string text;
  try {
    second.join();
  } catch (const bao::deadlock& d) {
    text = d.what();
  }
  CHECK(says(text, "\"main\""));
  CHECK(says(text, "\"angler\" (" __FILE__ ":" + std::to_string(line) +
                       ") is parked: fishing"));
  CHECK(says(text, "\"friend\""));
  CHECK(says(text, "joining task " + std::to_string(first.id())));
  CHECK(says(text, "joining task " + std::to_string(second.id())));
  CHECK(says(text, " of 256 KiB of stack\n"));
#if defined(__GLIBC__)
  CHECK(says(text, " of stack\n    "));  // the functions that it is in
#endif
  bao::kill_all(std::vector<bao::task<>>{first, second});
}
