// time.cpp - one clock, deadlines
#include <doctest/doctest.h>

#include "bao.hpp"

#include <limits>
#include <type_traits>

using namespace std::literals;

TEST_CASE("a duration counts from when the deadline is made") {
  bao::virtual_time clock;
  const bao::deadline until = 5s;
  clock.advance(5s - 1ns);
  CHECK(!until.passed());
  clock.advance(1ns);
  CHECK(until.passed());
}

TEST_CASE("a point on bao's clock is a deadline") {
  bao::virtual_time clock;
  const bao::deadline until = bao::now() + 1s;
  CHECK(until.at() == bao::deadline(1s).at());
  CHECK(!until.passed());
  CHECK(bao::deadline(bao::now()).passed());
}

TEST_CASE("what is not positive has passed") {
  CHECK(bao::deadline(0s).passed());
  CHECK(bao::deadline(-1s).passed());
  CHECK(bao::deadline(-1.5s).passed());
  CHECK(bao::deadline(std::chrono::hours::min()).passed());
}

TEST_CASE("durations too long saturate to never") {
  bao::virtual_time clock;
  CHECK(bao::deadline(std::chrono::hours::max()).is_never());
  CHECK(bao::deadline(std::chrono::nanoseconds::max()).is_never());
  CHECK(bao::deadline(std::chrono::duration<double>(1e300)).is_never());
  CHECK(!bao::deadline(24h * 365 * 100).is_never());
  clock.advance(24h * 365);
  CHECK(!bao::deadline(24h * 365).passed());
}

TEST_CASE("never does not pass") {
  bao::virtual_time clock;
  clock.advance(24h * 365 * 100);
  CHECK(bao::never.is_never());
  CHECK(!bao::never.passed());
}

TEST_CASE("V24: fractions of a nanosecond are rounded up: never early") {
  using picoseconds = std::chrono::duration<long, std::pico>;
  bao::virtual_time clock;
  const bao::deadline until = picoseconds(1);
  CHECK(!until.passed());
  CHECK(until.at() == bao::deadline(1ns).at());
  CHECK(bao::deadline(1.5ns).at() == bao::deadline(2ns).at());
}

TEST_CASE("a number without a unit is no deadline") {
  CHECK(!std::is_convertible_v<int, bao::deadline>);
  CHECK(!std::is_convertible_v<double, bao::deadline>);
  CHECK(std::is_convertible_v<std::chrono::minutes, bao::deadline>);
}

TEST_CASE("calls that share a deadline take no longer than one") {
  bao::virtual_time clock;
  const auto start = bao::now();
  const bao::deadline until = 5s;
  bao::sleep(until);
  bao::sleep(until);
  CHECK(bao::now() - start == 5s);
}
