// bao/signal.hpp - wait for a signal, or have it handled
//
// A signal handler may do next to nothing. Ours counts the signal and rings a
// doorbell; a task that waits for it does the rest, as for any descriptor.
//
//     int which = bao::wait_signal({SIGINT, SIGTERM});
//     auto reload = bao::on_signal(SIGHUP, [] { read_settings(); });
//
// At most 16 tasks may wait at a time; each on_signal() has one. A doorbell
// costs a descriptor, and is kept for the next who waits.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <signal.h>

#include <atomic>
#include <cerrno>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "bao/io.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// What the process has received and nobody has taken yet, and whom to tell.
struct received_signals {
  // Who waits has a seat with a bell. The bell stays when they leave: a handler
  // may be about to ring it.
  struct seat {
    std::atomic<bool> taken{false};
    std::atomic<const doorbell*> bell{nullptr};
  };
  static constexpr int numbers = 65;
  static constexpr int most_waiting = 16;

  std::atomic<int> count[numbers] = {};
  std::atomic<unsigned> arrived[numbers] = {};  // ever, taken or not
  std::atomic<bool> handled[numbers] = {};
  seat seats[most_waiting];

  static void handle(int signal);

  // Puts that handler in place of what the signal did before.
  void begin_to_handle(int signal, const char* call) {
    if (signal <= 0 || signal >= numbers)
      throw_errno(std::string(call) + ": " + std::to_string(signal), EINVAL);
    if (handled[signal].exchange(true)) return;
    struct sigaction ours {};
    ours.sa_handler = handle;
    ours.sa_flags = SA_RESTART;
    sigemptyset(&ours.sa_mask);
    if (::sigaction(signal, &ours, nullptr) != -1) return;
    handled[signal] = false;
    throw_errno("sigaction: signal " + std::to_string(signal));
  }

  // Takes one that has arrived, if any has.
  bool take(int signal) {
    int left = count[signal].load();
    while (left > 0)
      if (count[signal].compare_exchange_weak(left, left - 1)) return true;
    return false;
  }

  // In a child process: those who wait are in the parent, and so are its bells
  // and what it has received.
  void start_over() {
    for (std::atomic<int>& n : count) n = 0;
    for (seat& s : seats) {
      s.taken = false;
      delete s.bell.exchange(nullptr);
    }
  }
};

inline received_signals signals;

inline void received_signals::handle(int signal) {
  signals.count[signal].fetch_add(1);
  signals.arrived[signal].fetch_add(1);
  for (seat& s : signals.seats)
    if (const doorbell* bell = s.bell.load()) bell->ring();
}

// A seat, for as long as it lives.
class signal_seat {
 public:
  // Throws std::runtime_error when there is none.
  explicit signal_seat(const char* call) : seat_(signals.seats) {
    while (seat_->taken.exchange(true))
      if (++seat_ == std::end(signals.seats))
        throw std::runtime_error(std::string(call) +
                                 ": 16 tasks wait for signals already");
    if (seat_->bell.load() != nullptr) return;
    try {
      seat_->bell = new doorbell;
    } catch (...) {
      seat_->taken = false;
      throw;
    }
  }
  signal_seat(signal_seat&& other) noexcept
      : seat_(std::exchange(other.seat_, nullptr)) {}
  ~signal_seat() {
    if (seat_ != nullptr) seat_->taken = false;
  }

  // Suspends until there may be news (true) or `until` passes (false).
  bool wait(deadline until) const {
    const doorbell& bell = *seat_->bell.load();
    if (!wait_fd(bell.fd(), readable, until)) return false;
    bell.answer();
    return true;
  }
  void ring() const noexcept {
    if (const doorbell* bell = seat_->bell.load()) bell->ring();
  }

 private:
  received_signals::seat* seat_;
};

// Suspends until the process receives one of these signals, and returns which;
// 0 when `until` passes. From the first call on, a handler of ours stands in
// place of what they did before: those that arrive while nobody waits are kept
// for the next call. Throws std::system_error, for SIGKILL say,
// std::invalid_argument when none is named, std::runtime_error when 16 tasks
// wait already, and what interrupts us.
inline int wait_signal(std::initializer_list<int> which,
                       deadline until = never) {
  if (which.size() == 0)
    throw std::invalid_argument("wait_signal: no signal is named");
  for (int n : which) signals.begin_to_handle(n, "wait_signal");
  const signal_seat here("wait_signal");
  for (;;) {
    for (int n : which)
      if (signals.take(n)) return n;
    if (!here.wait(until)) return 0;
  }
}

// Shared by a handler, the task that waits for it, and its calls.
struct signal_watch {
  const signal_seat seat{"on_signal"};
  std::atomic<bool> cancelled{false};
};

// What on_signal() returns: while it lives, the signal is looked after.
// Move-only. None of its members suspends, and it may be destroyed on any
// thread.
class signal_handler {
 public:
  signal_handler() = default;
  signal_handler(signal_handler&&) noexcept = default;
  signal_handler& operator=(signal_handler&& other) noexcept {
    cancel();
    watch_ = std::move(other.watch_);
    return *this;
  }
  ~signal_handler() { cancel(); }

  // No call begins any more; one that has begun goes on.
  void cancel() noexcept {
    if (watch_ == nullptr) return;
    watch_->cancelled = true;
    watch_->seat.ring();
    watch_ = nullptr;
  }
  explicit operator bool() const { return watch_ != nullptr; }

  // For on_signal().
  explicit signal_handler(std::shared_ptr<signal_watch> w)
      : watch_(std::move(w)) {}

 private:
  std::shared_ptr<signal_watch> watch_;
};

// Never suspends. Has f(), or f(signal), run as a task of this thread each time
// the signal arrives, for as long as what is returned lives. The signal is
// caught from now on, and for good, as by wait_signal(); several who look after
// the same one share what arrives.
//
// join_all() does not wait for a handler. But while one lives no wait is a
// deadlock, as its signal might end it. Throws as wait_signal() does. When the
// handler goes, its place among the 16 is free after the next turn.
template <class F>
[[nodiscard]] signal_handler on_signal(int signal, F f,
                                       place at = place::here()) {
  struct handler : signal_watch {
    explicit handler(F g) : call(std::move(g)) {}
    F call;
  };
  signals.begin_to_handle(signal, "on_signal");
  const auto on = std::make_shared<handler>(std::move(f));
  const auto call = [on, signal] {
    if (on->cancelled) return;
    if constexpr (std::is_invocable_v<F&, int>)
      on->call(signal);
    else
      static_cast<void>(signal), on->call();
  };
  task<> waits = spawn(task_options(at).name("on_signal"), [=] {
    while (!on->cancelled) {
      if (signals.take(signal))
        spawn(task_options(at).name("signal " + std::to_string(signal)), call);
      else
        on->seat.wait(never);
    }
  });
  waits.checked("on_signal").background = true;
  return signal_handler(on);
}

}  // namespace BAO_ABI
}  // namespace bao
