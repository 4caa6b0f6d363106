// bao/signal.hpp - wait for a signal
//
// A signal handler may do next to nothing. Ours counts the signal and rings a
// doorbell; a task that waits for it does the rest, like for any descriptor.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <initializer_list>

#include "bao/io.hpp"

namespace bao {
inline namespace BAO_ABI {

// What the process has received and nobody has taken yet, and whom to tell.
struct received_signals {
  static constexpr int most = 65;   // signal numbers
  static constexpr int seats = 16;  // tasks that wait at one time

  std::atomic<int> count[most] = {};
  std::atomic<const doorbell*> bells[seats] = {};
  std::atomic<bool> handled[most] = {};

  static void handle(int signal);
};

[[gnu::visibility("default")]] inline received_signals signals;

inline void received_signals::handle(int signal) {
  signals.count[signal].fetch_add(1);
  for (auto& bell : signals.bells)
    if (const doorbell* b = bell.load()) b->ring();
}

// Suspends until the process receives one of these signals, and returns which;
// 0 when `until` passes. From the first call on, they no longer do what they do
// by default: those that arrive while nobody waits are kept for the next call.
// Throws std::system_error, for SIGKILL say.
inline int wait_signal(std::initializer_list<int> which,
                       deadline until = never) {
  for (int n : which) {
    if (n <= 0 || n >= received_signals::most)
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
  doorbell bell;
  std::atomic<const doorbell*>* seat = nullptr;
  for (auto& s : signals.bells) {
    const doorbell* nobody = nullptr;
    if (!s.compare_exchange_strong(nobody, &bell)) continue;
    seat = &s;
    break;
  }
  if (seat == nullptr)
    throw std::runtime_error("wait_signal: 16 tasks wait for signals already");
  struct stand_up {
    std::atomic<const doorbell*>& seat;
    ~stand_up() { seat = nullptr; }
  } at_end{*seat};
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
