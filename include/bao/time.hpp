// bao/time.hpp - one clock, deadlines
//
// A call that may wait takes, last, a point in time until which it does. A
// duration is good for that as well, and becomes a point when the call is made:
// so three calls in a row that share a deadline take no longer than one.
//
//     bao::deadline until = 5s;
//     peer.write_all(question, until);
//     auto answer = peer.read_line(until);       // 5 s in all
//
// To make a point of a duration is to ask the clock, some tens of ns. Nothing
// in this chapter suspends.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <limits>

#include "bao/system.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// The clock that all waiting goes by: steady, in nanoseconds.
struct clock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<clock>;
  static constexpr bool is_steady = true;

  static time_point now() { return time_point(duration(sys->now())); }
};

inline clock::time_point now() { return clock::now(); }

// A point in time until which to wait: never early. A duration counts from when
// the deadline is made; one too long to be represented is `never`, and one that
// is not positive has passed.
class deadline {
 public:
  deadline(clock::duration from_now) {
    if (from_now.count() <= 0)
      at_ = passed_already;
    else if (__builtin_add_overflow(sys->now(), from_now.count(), &at_))
      at_ = forever;
  }
  template <class Rep, class Period>
  deadline(std::chrono::duration<Rep, Period> from_now)
      : deadline(rounded_up(from_now)) {}
  constexpr deadline(clock::time_point at)
      : at_(at.time_since_epoch().count()) {}

  constexpr bool is_never() const { return at_ == forever; }
  bool passed() const {
    return at_ != forever && (at_ == passed_already || at_ <= sys->now());
  }
  constexpr nanoseconds at() const { return at_; }
  constexpr bool operator<(deadline other) const { return at_ < other.at_; }

 private:
  static constexpr nanoseconds forever =
      std::numeric_limits<nanoseconds>::max();
  static constexpr nanoseconds passed_already =
      std::numeric_limits<nanoseconds>::min();

  template <class Duration>
  static clock::duration rounded_up(Duration d) {
    using seconds = std::chrono::duration<double>;
    constexpr double longest = 8e9;  // 250 years, which 64 bits hold
    if (d <= d.zero()) return clock::duration::zero();
    if (!(seconds(d).count() < longest)) return clock::duration::max();
    return std::chrono::ceil<clock::duration>(d);
  }

  nanoseconds at_;
};

inline constexpr deadline never{clock::time_point::max()};
inline constexpr deadline at_once{clock::time_point::min()};  // has passed

}  // namespace BAO_ABI
}  // namespace bao
