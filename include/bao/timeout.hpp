// bao/timeout.hpp - a limit on a block of code
//
//     try {
//       bao::timeout limit(5s);             // on all that this block waits for
//       auto page = fetch(url);
//     } catch (const bao::timed_out&) { ... }
//
// A limit belongs to the flow that opens it. It strikes whatever that flow
// waits for, in however deep a call, and nobody else: not the consumer of a
// generator that has opened it and yields.
//
// The price is a timer to arm and take back, some tens of ns. A block that
// computes and never waits is not stopped.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <type_traits>
#include <utility>

#include "bao/spawn.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// None of its members suspends. Throws bao::timed_out where the flow waits,
// once, when `limit` has passed: at its next wait if it does not wait then. It
// must not outlive the flow that made it.
class timeout : public scope, private alarm {
 public:
  [[nodiscard]] explicit timeout(deadline limit) : scope(false) {
    ring = [](alarm& a, scheduler& s) {
      auto& self = static_cast<timeout&>(a);
      self.passed_ = self.expired_ = true;
      s.limit_passed(self);
    };
    start(limit);
  }
  ~timeout() { cancel(); }

  // Begins anew: until `limit`, a duration from now or a time.
  void start(deadline limit) {
    cancel();
    expired_ = false;
    scheduler& s = this_scheduler();
    if (limit.passed())
      ring(*this, s);
    else if (!limit.is_never())
      s.timers().arm(*this, limit.at());
  }
  // Nothing will be thrown any more.
  void cancel() {
    alarm::cancel();
    // In a generator that outlives the scheduler there is nobody to tell.
    if (std::exchange(passed_, false) && tasks_here() != nullptr)
      tasks_here()->limit_gone();
  }
  // It may still be thrown.
  bool pending() const { return armed() || passed_; }
  // It has passed, whether or not it was thrown.
  bool expired() const { return expired_; }

 private:
  bool expired_ = false;
};

// Suspends as f does. Returns the value that f() returns, or an empty optional
// when it took longer than `limit`; true or false where f returns nothing. A
// patched C library that is cut off returns, too: with an error of its own.
template <class F>
auto with_timeout(deadline limit, F&& f) {
  using R = std::decay_t<std::invoke_result_t<F&>>;
  using outcome = std::conditional_t<std::is_void_v<R>, bool, std::optional<R>>;
  timeout t(limit);
  try {
    if constexpr (std::is_void_v<R>) {
      f();
      return true;
    } else {
      return outcome(f());
    }
  } catch (const timed_out& e) {
    if (!e.is_for(t)) throw;
    return outcome();
  }
}

// While one lives, no kill, no error thrown in and no limit that was opened
// before it strikes the flow: for what has to be cleaned up in peace. Limits
// opened inside work. Neither to make nor to destroy one suspends.
class shield : public scope {
 public:
  [[nodiscard]] shield() : scope(true) {}
};

// Calls f() at the end of a block, however that is left. It must not throw.
template <class F>
class at_end {
 public:
  [[nodiscard]] explicit at_end(F f) : call_(std::move(f)) {}
  at_end(const at_end&) = delete;
  ~at_end() { call_(); }

 private:
  F call_;
};

}  // namespace BAO_ABI
}  // namespace bao
