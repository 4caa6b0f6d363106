// bao/timers.hpp - what is due next
//
// Most timers are limits on something that happens in time: they are set, and
// taken back again. Hierarchical timing wheels (Varghese and Lauck, 1987) do
// either in a few instructions, however many timers there are.
//
// A time is a number of eleven digits in base 64, and each digit has a
// wheel of 64 slots. A timer lies in the wheel of the first digit in which its
// time and the present differ, in the slot for the digit that it has there:
//
//     the present   ... 3 17  5 60
//     timers due    ... 3 17  5 61    wheel 0, slot 61
//                   ... 3 17 22 40    wheel 1, slot 22
//                   ... 3 40  0  7    wheel 2, slot 40
//
// So what is in one wheel is due before all that is in the next. When the time
// of a slot comes, its timers go to lower wheels, and by and by to wheel 0,
// where those in one slot are due in the same nanosecond: a sleep of some
// milliseconds is moved three times. Nothing is sorted, and as timers are part
// of whoever waits, nothing is allocated, and arming one cannot fail.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "bao/list.hpp"
#include "bao/time.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

class timer : private list_node<timer> {
 public:
  bool armed() const { return in_list(); }
  nanoseconds due() const { return due_; }
  void cancel() { leave(); }

 private:
  friend class list<timer>;
  friend class timer_wheels;

  nanoseconds due_ = 0;
};

class timer_wheels {
 public:
  timer_wheels() = default;
  timer_wheels(const timer_wheels&) = delete;
  ~timer_wheels() { delete[] slots_; }

  void arm(timer& t, nanoseconds due) {
    t.due_ = due;
    put(t, chance_ != 0 && toss());
  }

  bool empty() { return first_slot().timers == nullptr; }

  // When to call take() next: when the first is due, or earlier if it would
  // take long to find that out. There must be one.
  nanoseconds next() {
    const slot first = first_slot();
    nanoseconds soonest = std::numeric_limits<nanoseconds>::max();
    int seen = 0;
    for (timer* t = first.timers->first(); t; t = first.timers->after(*t)) {
      if (++seen > 8) return first.begins;
      soonest = std::min(soonest, t->due_);
    }
    return soonest;
  }

  // Takes the first of those that are due by now; null: there is none.
  timer* take(nanoseconds now) {
    for (;;) {
      const slot first = first_slot();
      if (first.timers == nullptr || first.begins > now) break;
      present_ = first.begins;
      if (first.wheel == 0) {
        timer& t = first.timers->front();
        t.cancel();
        return &t;
      }
      while (!first.timers->empty()) put(first.timers->front());
    }
    present_ = std::max(present_, now);
    return nullptr;
  }

  // For another clock, which may show an earlier time. From now on `chance`,
  // the seed of a generator, decides which of two that are due at once comes
  // out first; 0: the one that was armed first.
  void restart(nanoseconds now, std::uint64_t chance) {
    chance_ = chance;
    if (now >= present_) return;
    list<timer> all;
    for (slot s = first_slot(); s.timers != nullptr; s = first_slot())
      while (!s.timers->empty()) all.push_back(s.timers->front());
    present_ = now;
    while (!all.empty()) put(all.front());
  }

 private:
  static constexpr unsigned wheels = 11;

  struct slot {
    list<timer>* timers;  // at least one; null: there is none at all
    unsigned wheel;
    nanoseconds begins;
  };

  // What is late counts as due now.
  void put(timer& t, bool before_its_equals = false) {
    const auto due = static_cast<std::uint64_t>(std::max(t.due_, present_));
    const std::uint64_t differs = due ^ static_cast<std::uint64_t>(present_);
    const auto highest =
        static_cast<unsigned>(63 - __builtin_clzll(differs | 1));
    const unsigned wheel = highest / 6;
    const std::uint64_t digit = due >> wheel * 6 & 63;
    used_[wheel] |= std::uint64_t{1} << digit;
    if (before_its_equals)
      slots_[wheel][digit].push_front(t);
    else
      slots_[wheel][digit].push_back(t);
  }

  slot first_slot() {
    for (unsigned wheel = 0; wheel < wheels; ++wheel)
      for (auto& used = used_[wheel]; used != 0; used &= used - 1) {
        const auto digit = static_cast<unsigned>(__builtin_ctzll(used));
        list<timer>& here = slots_[wheel][digit];
        if (here.empty()) continue;  // they have been cancelled
        // In two steps, as no shift may be by 66.
        const nanoseconds higher = present_ >> wheel * 6 >> 6 << 6;
        return {&here, wheel, (higher | digit) << wheel * 6};
      }
    return {};
  }

  // Knuth's linear congruential generator for MMIX.
  bool toss() {
    chance_ = chance_ * 6364136223846793005u + 1442695040888963407u;
    return chance_ >> 63 != 0;
  }

  nanoseconds present_ = 0;  // what was due before it has been taken
  std::uint64_t chance_ = 0;
  std::uint64_t used_[wheels] = {};  // a bit for each slot that may hold some
  // On the heap: of thread_local memory, 11 KiB would go to each thread of the
  // program, even one without tasks.
  list<timer> (*const slots_)[64] = new list<timer>[wheels][64];
};

}  // namespace BAO_ABI
}  // namespace bao
