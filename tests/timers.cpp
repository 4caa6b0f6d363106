// timers.cpp - what is due next
#include <doctest/doctest.h>

#include "bao.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <vector>

namespace {

constexpr bao::nanoseconds end_of_time =
    std::numeric_limits<bao::nanoseconds>::max();

}  // namespace

TEST_CASE("the first timer is the one that is due first") {
  bao::timer_wheels wheels;
  CHECK(wheels.empty());
  bao::timer late, soon, later;
  wheels.arm(late, 20);
  wheels.arm(soon, 10);
  wheels.arm(later, 3'000'000'000);
  CHECK(wheels.next() == 10);
  CHECK(wheels.take(9) == nullptr);
  CHECK(wheels.take(10) == &soon);
  CHECK(wheels.take(10) == nullptr);
  CHECK(wheels.next() == 20);
  CHECK(wheels.take(end_of_time) == &late);
  CHECK(!wheels.empty());
  CHECK(wheels.take(end_of_time) == &later);
  CHECK(!later.armed());
  CHECK(wheels.empty());
}

TEST_CASE("timers that are due at once come in the order they were armed") {
  // Near and far, and with the present moving on between two of them.
  for (const bao::nanoseconds due : {100LL, 5'000'000LL, 1LL << 60}) {
    bao::timer_wheels wheels;
    std::deque<bao::timer> timers(100);
    bao::nanoseconds now = 0;
    for (bao::timer& t : timers) {
      wheels.arm(t, due);
      now += (due - now) / 3;
      REQUIRE(wheels.take(now) == nullptr);
    }
    for (bao::timer& t : timers) REQUIRE(wheels.take(due) == &t);
  }
}

TEST_CASE("armed again, a timer is due at its new time, behind its equals") {
  bao::timer_wheels wheels;
  bao::timer a, b;
  wheels.arm(a, 10);
  wheels.arm(b, 20);
  wheels.arm(a, 20);
  CHECK(a.due() == 20);
  CHECK(wheels.take(15) == nullptr);
  CHECK(wheels.take(20) == &b);
  CHECK(wheels.take(20) == &a);
}

TEST_CASE("a timer that goes out of scope is not armed any more") {
  bao::timer_wheels wheels;
  bao::timer stays;
  wheels.arm(stays, 20);
  {
    bao::timer goes;
    wheels.arm(goes, 10);
    CHECK(goes.armed());
    CHECK(wheels.next() == 10);
  }
  CHECK(wheels.next() == 20);
  stays.cancel();
  stays.cancel();  // of one that is not armed: nothing happens
  CHECK(!stays.armed());
  CHECK(wheels.empty());
}

TEST_CASE(
    "what is late already is due, at the first and at the last of times") {
  bao::timer_wheels wheels;
  bao::timer early, late;
  CHECK(wheels.take(1000) == nullptr);
  wheels.arm(early, std::numeric_limits<bao::nanoseconds>::min());
  wheels.arm(late, end_of_time);
  CHECK(wheels.next() <= 1000);
  CHECK(wheels.take(1000) == &early);
  CHECK(wheels.take(end_of_time - 1) == nullptr);
  CHECK(wheels.next() == end_of_time);
  CHECK(wheels.take(end_of_time) == &late);
}

TEST_CASE("next() is exact for a few, and never late for many") {
  bao::timer_wheels wheels;
  std::deque<bao::timer> timers(1000);
  std::mt19937 random(1);
  for (bao::timer& t : timers)
    wheels.arm(t, 5'000'000'000 + static_cast<int>(random() % 1'000'000'000));
  bao::nanoseconds first = end_of_time;
  for (bao::timer& t : timers) first = std::min(first, t.due());
  int looks = 0;
  for (; wheels.next() < first; ++looks)
    REQUIRE(wheels.take(wheels.next()) == nullptr);
  CHECK(wheels.next() == first);
  CHECK(looks <= 10);
}

TEST_CASE("put back, a clock still has each timer at its time") {
  bao::timer_wheels wheels;
  bao::timer a, b, c;
  CHECK(wheels.take(1'000'000'000) == nullptr);
  wheels.arm(a, 2'000'000'000);
  wheels.arm(b, 1'000'000'001);
  wheels.restart(500, 0);
  wheels.arm(c, 600);
  CHECK(wheels.next() == 600);
  CHECK(wheels.take(599) == nullptr);
  CHECK(wheels.take(600) == &c);
  CHECK(wheels.take(1'500'000'000) == &b);
  CHECK(wheels.take(1'999'999'999) == nullptr);
  CHECK(wheels.take(2'000'000'000) == &a);

  // Put forward, it has them in their order.
  wheels.arm(a, 2'300'000'000);
  wheels.arm(b, 2'200'000'000);
  wheels.restart(3'000'000'000, 0);
  CHECK(wheels.take(3'000'000'000) == &b);
  CHECK(wheels.take(3'000'000'000) == &a);
}

TEST_CASE("by chance, of two that are due at once either may be first") {
  std::set<std::vector<std::ptrdiff_t>> orders;
  const auto order_by = [](std::uint64_t chance) {
    bao::timer_wheels wheels;
    wheels.restart(0, chance);
    std::deque<bao::timer> timers(2);
    for (bao::timer& t : timers) wheels.arm(t, 5'000'000);
    std::vector<std::ptrdiff_t> order;
    while (const bao::timer* const t = wheels.take(5'000'000))
      for (std::size_t i = 0; i < timers.size(); ++i)
        if (&timers[i] == t) order.push_back(static_cast<std::ptrdiff_t>(i));
    return order;
  };
  for (std::uint64_t chance = 1; chance <= 100; ++chance) {
    orders.insert(order_by(chance));
    REQUIRE(order_by(chance) == order_by(chance));
  }
  CHECK(orders.size() == 2);
}

TEST_CASE("the wheels agree with a multimap, whatever is done to both") {
  // A multimap keeps equal keys in the order in which they were inserted.
  std::mt19937_64 random(20240601);
  const auto below = [&](std::uint64_t n) {
    return static_cast<bao::nanoseconds>(random() % n);
  };
  // Times that differ in digits of all kinds, and many that are equal.
  const auto some_time_ahead = [&] {
    return below(std::uint64_t{2} << 3 * below(14));
  };
  bao::timer_wheels wheels;
  std::deque<bao::timer> timers(200);
  std::multimap<bao::nanoseconds, bao::timer*> model;
  bao::nanoseconds now = 0;
  const auto forget = [&](bao::timer& t) {
    for (auto i = model.begin(); i != model.end(); ++i)
      if (i->second == &t) return void(model.erase(i));
  };
  for (int step = 0; step < 50000; ++step) {
    bao::timer& t = timers[static_cast<std::size_t>(below(200))];
    switch (below(4)) {
      case 0:
      case 1: {
        const bao::nanoseconds due = now + some_time_ahead();
        forget(t);
        model.emplace(due, &t);
        wheels.arm(t, due);
        break;
      }
      case 2:
        forget(t);
        t.cancel();
        break;
      case 3:
        now += some_time_ahead();
        while (bao::timer* const taken = wheels.take(now)) {
          REQUIRE(!model.empty());
          REQUIRE(model.begin()->second == taken);
          REQUIRE(model.begin()->first <= now);
          model.erase(model.begin());
        }
        REQUIRE((model.empty() || model.begin()->first > now));
    }
    REQUIRE(wheels.empty() == model.empty());
    if (!model.empty()) REQUIRE(wheels.next() <= model.begin()->first);
    if (model.size() == 1) REQUIRE(wheels.next() == model.begin()->first);
  }
}
