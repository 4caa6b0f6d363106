// seeds.hpp - a test in many orders
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <type_traits>

#include "bao.hpp"

// Calls test(), or test(clock), with tasks in the usual order, and under 200
// seeds.
template <class Test>
void in_many_orders(Test test) {
  const auto run = [&]([[maybe_unused]] bao::virtual_time& clock) {
    if constexpr (std::is_invocable_v<Test, bao::virtual_time&>)
      test(clock);
    else
      test();
  };
  {
    bao::virtual_time clock;
    run(clock);
  }
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    bao::virtual_time clock(seed);
    run(clock);
    bao::join_all();
  }
}

// A test case that holds in any order: all of it is run in many, by `clock`.
#define TEST_CASE_SEEDS(name) \
  TEST_CASE_SEEDS_AS(DOCTEST_ANONYMOUS(in_any_order_), name)
#define TEST_CASE_SEEDS_AS(test, name)      \
  static void test(bao::virtual_time&);     \
  TEST_CASE(name) { in_many_orders(test); } \
  static void test([[maybe_unused]] bao::virtual_time& clock)
