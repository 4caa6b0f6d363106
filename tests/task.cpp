// task.cpp - what is known of a task
#include <doctest/doctest.h>

#include "bao.hpp"
#include "seeds.hpp"

#include <optional>
#include <type_traits>

using namespace std::literals;

TEST_CASE_SEEDS("V7: a task goes from ready over running and parked to done") {
  bao::task_state inside{};
  bao::task<> t = bao::spawn([&] {
    inside = t.state();
    bao::sleep(1s);
  });
  CHECK((t.state() == bao::task_state::ready));
  bao::sleep(1us);
  CHECK((inside == bao::task_state::running));
  CHECK((t.state() == bao::task_state::parked));
  t.join();
  CHECK((t.state() == bao::task_state::done));
}

TEST_CASE_SEEDS(
    "V2: a task that is to start later is only created until then") {
  auto t = bao::spawn_later(1s, [] {});
  bao::yield();
  CHECK((t.state() == bao::task_state::created));
  bao::sleep(999ms);
  CHECK(!t.done());
  t.join();
  CHECK((t.state() == bao::task_state::done));
}

TEST_CASE("the running task is never done, nor is it only ready") {
  CHECK((bao::self().state() == bao::task_state::running));
  bao::yield();
  CHECK((bao::self().state() == bao::task_state::running));
}

TEST_CASE("limits may go in another order than they came") {
  bao::virtual_time clock;
  std::optional<bao::timeout> first(std::in_place, 3s);
  std::optional<bao::timeout> second(std::in_place, 1s);
  std::optional<bao::timeout> third(std::in_place, 2s);
  second.reset();
  bao::sleep(1500ms);  // the second would have struck
  first.reset();
  CHECK_THROWS_AS(bao::sleep(1s), bao::timed_out);
  CHECK(third->expired());
  third.reset();
  bao::sleep(10s);
}

TEST_CASE("a scope stays where it was opened") {
  CHECK(!std::is_copy_constructible_v<bao::timeout>);
  CHECK(!std::is_move_constructible_v<bao::timeout>);
  CHECK(!std::is_copy_constructible_v<bao::shield>);
  CHECK(!std::is_move_constructible_v<bao::shield>);
}
