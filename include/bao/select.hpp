// bao/select.hpp - whatever comes first
//
//     bao::select(bao::on(orders, [&](auto order) { take(*order); }),
//                 bao::on_send(ready, dish, [&] { next_dish(); }),
//                 bao::on(fd, bao::readable, [&] { read_more(); }),
//                 bao::after(5s, [&] { wipe_the_counter(); }));
//
// Exactly one of the cases is taken, and its function called. If several are
// ready it is any of them, by lot, so that none starves. A case that is not
// taken loses nothing: what it would have received stays in the channel, what
// it would have sent with us.
//
// First all are tried in turn, then the task stands in every line at once, and
// leaves them all when it has been woken. The time goes with the number of
// cases: people wait for two or three.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "bao/channel.hpp"
#include "bao/io.hpp"
#include "bao/sync.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// One thing that a task may wait for, beside others.
class select_case {
 public:
  select_case() = default;
  select_case(const select_case&) = delete;

  // Takes it, if it is ready.
  virtual bool take() { return false; }
  // Has the task woken when it may be. Called before each wait.
  virtual void stand_in_line(scheduler&) {}
  // Whoever woke us has given it to us.
  virtual bool given() const { return false; }
  virtual void leave() {}
  virtual void act() = 0;

  // When it is taken because nothing else is.
  deadline last_resort = never;

 protected:
  ~select_case() = default;

  // Functions may take what the case has to tell, or nothing.
  template <class F, class What>
  static void tell(F& f, What&& what) {
    static_assert(std::is_invocable_v<F&, What&&> || std::is_invocable_v<F&>,
                  "select: a function takes what the case has to tell by "
                  "value, or nothing");
    if constexpr (std::is_invocable_v<F&, What&&>)
      f(std::forward<What>(what));
    else
      f();
  }
};

// One that stands in a line of waiting tasks. The line may go meanwhile, and
// with it what it belongs to: then nothing of that is touched.
class case_in_line : public select_case {
 public:
  bool take() final {
    const bool line_is_gone = stood_ && !place_.woken && !place_.in_list();
    if (line_is_gone) return false;
    line_.enter("select");
    return take_from_line();
  }
  void stand_in_line(scheduler&) final {
    if (std::exchange(stood_, true)) return;
    place_.offer = offer();
    line_.push_back(place_);
  }
  bool given() const final { return place_.woken; }
  void leave() final { place_.leave(); }

 protected:
  explicit case_in_line(wait_queue& line) : line_(line) {}
  ~case_in_line() = default;

  virtual bool take_from_line() = 0;
  virtual void* offer() { return nullptr; }

  wait_queue& line_;
  waiter place_{this_scheduler().running()};
  bool stood_ = false;
};

// --- the cases ---------------------------------------------------------------

template <class T, class Order, class F>
class receive_case final : public case_in_line {
 public:
  receive_case(channel<T, Order>& from, F f)
      : case_in_line(from.receivers_), from_(from), function_(std::move(f)) {}

  void act() override { tell(function_, std::move(got_)); }

 private:
  bool take_from_line() override { return from_.take(got_) || from_.closed(); }
  void* offer() override { return &got_; }

  channel<T, Order>& from_;
  F function_;
  std::optional<T> got_;
};

template <class T, class Order, class F>
class send_case final : public case_in_line {
 public:
  send_case(channel<T, Order>& to, T&& value, F f)
      : case_in_line(to.senders_),
        to_(to),
        value_(value),
        function_(std::move(f)) {}
  send_case(channel<T, Order>& to, const T& value, F f)
      : case_in_line(to.senders_),
        to_(to),
        copy_(value),
        value_(*copy_),
        function_(std::move(f)) {}

  void act() override {
    if (given() && place_.offer == nullptr) to_.throw_closed("select");
    function_();
  }

 private:
  bool take_from_line() override { return to_.put(value_, "select"); }
  void* offer() override { return &value_; }

  channel<T, Order>& to_;
  std::optional<T> copy_;
  T& value_;
  F function_;
};

template <class F>
class event_case final : public case_in_line {
 public:
  event_case(event& e, F f)
      : case_in_line(e.waiters()), event_(e), function_(std::move(f)) {}

  void act() override { function_(); }

 private:
  bool take_from_line() override { return event_.is_set(); }

  event& event_;
  F function_;
};

template <class R, class F>
class task_case final : public select_case {
 public:
  task_case(task<R> t, F f) : task_(std::move(t)), function_(std::move(f)) {}

  bool take() override { return task_.done(); }
  void stand_in_line(scheduler& s) override {
    if (place_.in_list()) return;
    place_.waits = &s.running();
    task_.checked("select").watchers.push_back(place_);
  }
  void leave() override { place_.leave(); }
  void act() override { tell(function_, task_); }

 private:
  task<R> task_;
  F function_;
  joiner place_;
};

template <class F>
class descriptor_case final : public select_case {
 public:
  descriptor_case(int fd, readiness want, F f)
      : fd_(fd), want_(want), function_(std::move(f)) {
    if (!(want & (readable | writable)))
      throw std::invalid_argument("select: neither direction wanted");
  }

  bool take() override {
    if (place_) place_->expect_open("waiting for descriptor");
    ready_ = poll_now(fd_, want_, "select");
    return static_cast<bool>(ready_);
  }
  void stand_in_line(scheduler&) override {
    if (!place_) get_in_line(place_, fd_, want_);
    place_->watch();
  }
  void leave() override { place_.reset(); }
  void act() override { tell(function_, ready_); }

 private:
  int fd_;
  readiness want_, ready_;
  F function_;
  std::optional<place_in_line> place_;
};

template <class F>
class time_case final : public select_case {
 public:
  time_case(deadline until, F f) : function_(std::move(f)) {
    last_resort = until;
  }
  void act() override { function_(); }

 private:
  F function_;
};

// What to select from. None of these suspends. A channel's function is given
// what was received, an optional that is empty when the channel is closed; a
// task's the task, a descriptor's what it is ready for; all may take nothing.

template <class T, class Order, class F>
receive_case<T, Order, F> on(channel<T, Order>& from, F f) {
  return {from, std::move(f)};
}
// With std::move(), the value is moved from if this case is taken.
template <class T, class Order, class F>
send_case<T, Order, F> on_send(channel<T, Order>& to,
                               typename channel<T, Order>::value_type&& value,
                               F f) {
  return {to, std::move(value), std::move(f)};
}
template <class T, class Order, class F>
send_case<T, Order, F> on_send(
    channel<T, Order>& to, const typename channel<T, Order>::value_type& value,
    F f) {
  return {to, value, std::move(f)};
}
template <class F>
event_case<F> on(event& e, F f) {
  return {e, std::move(f)};
}
template <class R, class F>
task_case<R, F> on(task<R> ended, F f) {
  return {std::move(ended), std::move(f)};
}
template <class F>
descriptor_case<F> on(int fd, readiness want, F f) {
  return {fd, want, std::move(f)};
}
// Taken when none of the others is ready until then.
template <class F>
time_case<F> after(deadline until, F f) {
  return {until, std::move(f)};
}
// Taken when none of the others is ready.
template <class F>
time_case<F> otherwise(F f) {
  return {clock::duration{0}, std::move(f)};
}

// --- select ------------------------------------------------------------------

inline select_case& take_any(select_case** cases, std::size_t n) {
  scheduler& s = this_scheduler();
  const std::size_t lot = s.draw_lot() % n;
  const auto taken = [&]() -> select_case* {
    for (std::size_t i = 0; i < n; ++i)
      if (cases[i]->given()) return cases[i];
    for (std::size_t i = 0; i < n; ++i)
      if (cases[(lot + i) % n]->take()) return cases[(lot + i) % n];
    return nullptr;
  };
  const at_end leave([&] {
    for (std::size_t i = 0; i < n; ++i) cases[i]->leave();
  });
  if (s.time_to_yield()) {
    // In line, so that none is touched that goes meanwhile.
    for (std::size_t i = 0; i < n; ++i) cases[i]->stand_in_line(s);
    s.yield();
  }
  if (select_case* const ready = taken()) return *ready;

  select_case* last = cases[0];
  for (std::size_t i = 1; i < n; ++i)
    if (cases[i]->last_resort < last->last_resort) last = cases[i];
  const deadline until = last->last_resort;
  if (until.passed()) return *last;

  for (;;) {
    for (std::size_t i = 0; i < n; ++i) cases[i]->stand_in_line(s);
    const bool in_time = s.park(until, {"selecting"});
    if (select_case* const ready = taken()) return *ready;
    if (!in_time) return *last;
  }
}

// Suspends until one of the cases is ready, takes it, and calls its function;
// and now and then when it need not, to let others run, even with otherwise().
// Returns its number, from 0 on. Throws what the cases do: channel_closed to
// whoever would send, std::system_error for a descriptor; and what interrupts
// us.
template <class... Cases>
std::size_t select(Cases&&... cases) {
  static_assert(sizeof...(cases) > 0, "select: from what?");
  static_assert(!(std::is_lvalue_reference_v<Cases> || ...),
                "select: a case is good for one call: make it there");
  select_case* all[] = {&cases...};
  select_case& taken = take_any(all, sizeof...(cases));
  std::size_t number = 0;
  while (all[number] != &taken) ++number;
  taken.act();
  return number;
}

}  // namespace BAO_ABI
}  // namespace bao
