// bao/virtual_time.hpp - tests that sleep take no time, and replay
//
//     bao::virtual_time clock;  // as long as it lives, on this thread
//     bao::sleep(24h);          // returns at once; bao::now() is a day later
//
// When every task waits and nothing is ready outside, the clock jumps to the
// next timer. What is ready outside comes first, and helper threads that are at
// work are waited for: they take no time on this clock. Nobody else outside is
// waited for while a timer is set: a peer in another process is always late.
//
// A program may be wrong, and yet right as long as its tasks run in the order
// in which they became ready. With a seed they run in another one, and so ring
// the timers that are due at once; the same seed gives the same order again:
//
//     for (std::uint64_t seed = 0; seed < 200; ++seed) {
//       bao::virtual_time clock(seed);
//       test();                          // print the seed when it fails
//     }
//
// What depends on other threads or processes is not replayed. To make system
// calls fail, derive from this class, and override them.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>

#include "bao/spawn.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// None of its members suspends.
class virtual_time : public system_calls {
 public:
  // From now on this thread's clock is ours. It shows the same time as before.
  // When it goes, the time is that outside again: whoever waits still, waits
  // until the virtual time that was set.
  [[nodiscard]] virtual_time()
      : before_(std::exchange(sys, this)), now_(before_->now()) {}
  // The same, and the order of what happens at once depends on `seed`.
  [[nodiscard]] explicit virtual_time(std::uint64_t seed) : virtual_time() {
    seeded_ = true;
    state_ = seed;
    this_scheduler().shuffle(random());
  }
  virtual_time(const virtual_time&) = delete;
  virtual ~virtual_time() {
    sys = before_;
    if (scheduler* const s = tasks_here())
      s->shuffle(before_->chooses() ? before_->choose(std::size_t(-1)) : 0);
  }

  // Lets time pass as if the running task had computed for so long. Throws
  // std::invalid_argument when it would go back.
  void advance(std::chrono::nanoseconds by) {
    if (by.count() < 0) throw std::invalid_argument("advance: time goes on");
    now_ += by.count();
  }

  // The next number of those that the seed stands for, by SplitMix64 (Steele,
  // Lea and Flood, 2014): for what else a test has to choose.
  std::uint64_t random() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  nanoseconds now() override { return now_; }
  nanoseconds may_sleep(nanoseconds until, bool jobs) override {
    return jobs && until > now_ ? -1 : 0;
  }
  void slept_until(nanoseconds until) override {
    if (until > now_) now_ = until;
  }
  bool chooses() override { return seeded_; }
  std::size_t choose(std::size_t n) override { return random() % n; }

 private:
  system_calls* before_;
  nanoseconds now_;
  bool seeded_ = false;
  std::uint64_t state_ = 0;
};

}  // namespace BAO_ABI
}  // namespace bao
