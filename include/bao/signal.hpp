// bao/signal.hpp - wait for a signal
//
// A signal handler may do next to nothing. Ours counts the signal and rings a
// doorbell; a task that waits for it does the rest, as for any descriptor. At
// most 16 tasks may wait at a time; each bell is a descriptor, and stays open.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <signal.h>

#include <atomic>
#include <cerrno>
#include <initializer_list>
#include <iterator>
#include <stdexcept>
#include <string>
#include <system_error>

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
  std::atomic<bool> handled[numbers] = {};
  seat seats[most_waiting];

  static void handle(int signal);

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
  for (seat& s : signals.seats)
    if (const doorbell* bell = s.bell.load()) bell->ring();
}

// Suspends until the process receives one of these signals, and returns which;
// 0 when `until` passes. From the first call on, a handler of ours stands in
// place of what they did before: those that arrive while nobody waits are kept
// for the next call. Throws std::system_error, for SIGKILL say,
// std::invalid_argument when none is named, and std::runtime_error when 16
// tasks wait already.
inline int wait_signal(std::initializer_list<int> which,
                       deadline until = never) {
  if (which.size() == 0)
    throw std::invalid_argument("wait_signal: no signal is named");
  for (int n : which) {
    if (n <= 0 || n >= received_signals::numbers)
      throw std::system_error(EINVAL, std::generic_category(),
                              "wait_signal: " + std::to_string(n));
    if (signals.handled[n].exchange(true)) continue;
    struct sigaction ours {};
    ours.sa_handler = received_signals::handle;
    ours.sa_flags = SA_RESTART;
    sigemptyset(&ours.sa_mask);
    if (::sigaction(n, &ours, nullptr) == -1) {
      signals.handled[n] = false;
      throw_errno("sigaction: signal " + std::to_string(n));
    }
  }
  received_signals::seat* seat = signals.seats;
  while (seat->taken.exchange(true))
    if (++seat == std::end(signals.seats))
      throw std::runtime_error(
          "wait_signal: 16 tasks wait for signals already");
  struct stand_up {
    std::atomic<bool>& taken;
    ~stand_up() { taken = false; }
  } at_end{seat->taken};
  if (seat->bell.load() == nullptr) seat->bell = new doorbell;
  const doorbell& bell = *seat->bell.load();
  for (;;) {
    for (int n : which) {
      int arrived = signals.count[n].load();
      while (arrived > 0)
        if (signals.count[n].compare_exchange_weak(arrived, arrived - 1))
          return n;
    }
    if (!wait_fd(bell.fd(), readable, until)) return 0;
    bell.answer();
  }
}

}  // namespace BAO_ABI
}  // namespace bao
