// seeds.hpp - a test in many orders
#pragma once

#include <doctest/doctest.h>

#include <cstdint>

#include "bao.hpp"

// Calls test() with tasks in the usual order, and under 200 seeds.
template <class Test>
void in_many_orders(Test test) {
  {
    bao::virtual_time clock;
    test();
  }
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    bao::virtual_time clock(seed);
    test();
    bao::join_all();
  }
}
