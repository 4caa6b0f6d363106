// system.cpp - the one seam through which the system is asked
#include <doctest/doctest.h>

#include "bao.hpp"

#include <thread>

TEST_CASE("the clock never goes back, and moves") {
  const bao::nanoseconds first = bao::the_system.now();
  bao::nanoseconds last = first;
  while (last == first) {
    const bao::nanoseconds next = bao::the_system.now();
    REQUIRE(next >= last);
    last = next;
  }
}

TEST_CASE("who may sleep until a time that has passed does not sleep") {
  const bao::nanoseconds now = bao::the_system.now();
  CHECK(bao::the_system.may_sleep(now - 1000, false) == 0);
  CHECK(bao::the_system.may_sleep(now + 60'000'000'000, false) > 0);
  CHECK(bao::the_system.may_sleep(now + 60'000'000'000, false) <=
        60'000'000'000);
}

TEST_CASE("whoever stands in the seam is asked, on this thread only") {
  struct : bao::system_calls {
    bao::nanoseconds now() override { return 42; }
  } stopped;
  bao::system_calls* const before = std::exchange(bao::sys, &stopped);
  const auto here = bao::now();
  auto there = here;
  std::thread([&] { there = bao::now(); }).join();
  bao::sys = before;
  CHECK(here.time_since_epoch().count() == 42);
  CHECK(there.time_since_epoch().count() != 42);
}
