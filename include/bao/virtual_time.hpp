// bao/virtual_time.hpp - tests that sleep take no time
//
//     bao::virtual_time clock;  // as long as it lives, on this thread
//     bao::sleep(24h);          // returns at once; bao::now() is a day later
//
// When every task waits and nothing is ready outside, the clock jumps to the
// next timer. What is ready outside comes first, and helper threads that are at
// work are waited for: they take no time on this clock. Nobody else outside is
// waited for while a timer is set: a peer in another process is always late.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <utility>

#include "bao/spawn.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// None of its members suspends.
class virtual_time final : public system_calls {
 public:
  // From now on this thread's clock is ours. It shows the same time as before.
  virtual_time() : before_(std::exchange(sys, this)), now_(before_->now()) {}
  virtual_time(const virtual_time&) = delete;
  ~virtual_time() { sys = before_; }

  nanoseconds now() override { return now_; }
  nanoseconds may_sleep(nanoseconds until, bool jobs) override {
    return jobs && until > now_ ? -1 : 0;
  }
  void slept_until(nanoseconds until) override {
    if (until > now_) now_ = until;
  }

  // Lets time pass as if the running task had computed for so long.
  void advance(std::chrono::nanoseconds by) { now_ += by.count(); }

 private:
  system_calls* before_;
  nanoseconds now_;
};

}  // namespace BAO_ABI
}  // namespace bao
