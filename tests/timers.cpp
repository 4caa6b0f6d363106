// timers.cpp - what is due next
#include <doctest/doctest.h>

#include "bao.hpp"

#include <deque>
#include <iterator>
#include <map>
#include <random>
#include <vector>

TEST_CASE("the first timer is the one that is due first") {
  bao::timer_heap heap;
  CHECK(heap.empty());
  CHECK(heap.first() == nullptr);
  bao::timer late, soon, later;
  heap.arm(late, 20);
  heap.arm(soon, 10);
  heap.arm(later, 30);
  for (bao::timer* expected : {&soon, &late, &later}) {
    REQUIRE(heap.first() == expected);
    heap.remove(*expected);
  }
  CHECK(heap.empty());
}

TEST_CASE("timers that are due at once come in the order they were armed") {
  bao::timer_heap heap;
  std::deque<bao::timer> timers(100);
  for (bao::timer& t : timers) heap.arm(t, 7);
  for (bao::timer& t : timers) {
    REQUIRE(heap.first() == &t);
    t.cancel();
  }
}

TEST_CASE("armed again, a timer is due at its new time, behind its equals") {
  bao::timer_heap heap;
  bao::timer a, b;
  heap.arm(a, 10);
  heap.arm(b, 20);
  heap.arm(a, 20);
  CHECK(a.due() == 20);
  CHECK(heap.first() == &b);
  b.cancel();
  CHECK(heap.first() == &a);
}

TEST_CASE("a timer that goes out of scope is not armed any more") {
  bao::timer_heap heap;
  bao::timer stays;
  heap.arm(stays, 20);
  {
    bao::timer goes;
    heap.arm(goes, 10);
    CHECK(goes.armed());
    CHECK(heap.first() == &goes);
  }
  CHECK(heap.first() == &stays);
  stays.cancel();
  stays.cancel();  // of one that is not armed: nothing happens
  CHECK(!stays.armed());
  CHECK(heap.empty());
}

TEST_CASE("the heap agrees with a multimap, whatever is done to both") {
  // A multimap keeps equal keys in the order in which they were inserted.
  std::mt19937 random(20240601);
  const auto below = [&](int n) {
    return static_cast<int>(random() % 1'000'000) % n;
  };
  bao::timer_heap heap;
  std::deque<bao::timer> timers(200);
  std::multimap<bao::nanoseconds, bao::timer*> model;
  const auto forget = [&](bao::timer& t) {
    for (auto i = model.begin(); i != model.end(); ++i)
      if (i->second == &t) return void(model.erase(i));
  };
  for (int step = 0; step < 20000; ++step) {
    bao::timer& t = timers[static_cast<std::size_t>(below(200))];
    switch (below(4)) {
      case 0:
      case 1: {
        const bao::nanoseconds due = below(50);
        forget(t);
        model.emplace(due, &t);
        heap.arm(t, due);
        break;
      }
      case 2:
        forget(t);
        t.cancel();
        break;
      case 3:
        if (!model.empty()) {
          model.erase(model.begin());
          heap.remove(*heap.first());
        }
    }
    REQUIRE(heap.empty() == model.empty());
    if (!model.empty()) REQUIRE(heap.first() == model.begin()->second);
  }
  while (!model.empty()) {
    REQUIRE(heap.first() == model.begin()->second);
    heap.first()->cancel();
    model.erase(model.begin());
  }
  CHECK(heap.empty());
}
