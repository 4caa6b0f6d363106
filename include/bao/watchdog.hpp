// bao/watchdog.hpp - who keeps the thread
//
// A task that computes for long, or blocks in a call that bao knows nothing of,
// holds up all the others. They cannot say so, for none of them runs: so
// another thread looks on.
//
//     bao::watchdog dog(100ms);  // this thread's, as long as it lives
//
//     bao: task 3 "parser" (server.cpp:4) keeps its thread, for 0.104 s so far
//         ./server(_Z5parseRKSs+0x2c) [0x55d0c8a0b1d2]
//
//     still the same turn?  --no--> all is well
//          | yes, as long as the limit
//          v
//     SIGURG: where are you?
//
// Turns are numbered, so a task that gives way is never taken for one that does
// not. But only the thread itself knows where it stands: so it is asked by a
// signal. SIGURG is one that programs hardly use and that is ignored by
// default. It is sent to those only who keep the thread too long: poll() and
// nanosleep() return early then, with EINTR.
//
// The price is some ns each time the thread looks around; a turn costs nothing.
// While the thread sleeps, so does the one that looks on.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <poll.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <utility>

#include "bao/debug.hpp"
#include "bao/offload.hpp"

#if defined(__GLIBC__) && defined(__x86_64__)
#include <ucontext.h>
#include <unwind.h>
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A task that keeps its thread.
struct stall {
  const char* task;               // task 3 "parser" (server.cpp:4)
  std::chrono::nanoseconds kept;  // so far, at least
  const trace& where;             // it is, with the handler on top
};

// None of its members suspends. One for a thread; it is destroyed there, and
// a child process has none. It measures real time, whatever virtual_time says.
class watchdog final : private onlooker {
 public:
  // From now on a task that keeps this thread for longer than `limit` is told
  // of before it has done so for twice that time, and again when it has for 2,
  // 4, 8 ... times as long: to stderr, or by tell(stall), which is called on
  // another thread, must not throw, and is waited for. Throws std::logic_error
  // when the thread has a watchdog, std::invalid_argument for a limit that is
  // not positive, and std::system_error when there can be no thread.
  [[nodiscard]] explicit watchdog(
      std::chrono::nanoseconds limit,
      std::function<void(const stall&)> tell = print);
  watchdog(const watchdog&) = delete;
  ~watchdog() {
    if (home_ == nullptr) return;
    if (home_ != tasks_here())
      die("a watchdog is destroyed on another thread than its own");
    ends();
  }

 private:
  static void print(const stall& s) {
    std::fprintf(stderr, "bao: %s keeps its thread, for %.3f s so far%s",
                 s.task, static_cast<double>(s.kept.count()) * 1e-9,
                 s.where.text().c_str());
  }

  // Told by the scheduler. Who wakes says so after the new turn has begun.
  void sleeps() noexcept override { asleep_ = true; }
  void awake() noexcept override {
    if (!asleep_.load(std::memory_order_relaxed)) return;
    asleep_ = false;
    if (dozes_) bell_.ring();
  }
  void ends() noexcept override;

  // On the other thread.
  void look_on();
  void rest(int milliseconds) {
    pollfd p{bell_.fd(), POLLIN, 0};
    ::poll(&p, 1, milliseconds);
    bell_.answer();
  }

  // On ours, in the handler of the signal.
  static void handle(int signal, siginfo_t* info, void* where);
  void look_closer(const void* where);
  [[gnu::no_sanitize_address]] static bool between_flows(const void* where);

  inline static struct sigaction before_ {};

  const std::function<void(const stall&)> tell_;
  nanoseconds limit_;
  scheduler* home_ = nullptr;
  pthread_t watched_, watching_;
  doorbell bell_;  // wakes the one that looks on
  std::atomic<bool> asleep_{false};
  std::atomic<bool> dozes_{false};  // the one that looks on, until we wake
  std::atomic<bool> ending_{false};

  // The turn that was met, and since when it is known to last.
  std::atomic<unsigned long> turn_{0};
  std::atomic<nanoseconds> since_{0};
  // What is to be told: the handler's until `told_` is false, then the other's.
  std::atomic<bool> told_{true};
  char task_[400];
  nanoseconds kept_ = 0;
  trace trace_;
};

inline watchdog::watchdog(std::chrono::nanoseconds limit,
                          std::function<void(const stall&)> tell)
    : tell_(std::move(tell)), limit_(limit.count()) {
  if (limit_ <= 0) throw std::invalid_argument("watchdog: no time is no limit");
  scheduler& s = this_scheduler();
  if (s.seen_by != nullptr)
    throw std::logic_error("watchdog: this thread has one already");
  static const int installed = [] {
    struct sigaction ours {};
    ours.sa_sigaction = handle;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&ours.sa_mask);
    return check(::sigaction(SIGURG, &ours, &before_), "sigaction: SIGURG");
  }();
  static_cast<void>(installed);
  sigset_t urgent;
  sigemptyset(&urgent);
  sigaddset(&urgent, SIGURG);
  ::pthread_sigmask(SIG_UNBLOCK, &urgent, nullptr);
  watched_ = ::pthread_self();
  home_ = &s;
  const auto body = [](void* dog) -> void* {
    static_cast<watchdog*>(dog)->look_on();
    return nullptr;
  };
  s.seen_by = this;
  if (const int failed = make_thread(watching_, body, this)) {
    s.seen_by = nullptr;
    throw_errno("pthread_create", failed);
  }
}

// Called by the destructor, and when the thread ends, whichever comes first. In
// a child process there is nobody to wait for.
inline void watchdog::ends() noexcept {
  if (home_->seen_by == this) {
    home_->seen_by = nullptr;
    ending_ = true;
    bell_.ring();
    ::pthread_join(watching_, nullptr);
  }
  home_ = nullptr;
}

inline void watchdog::look_on() {
  const int pause = to_milliseconds(limit_ / 4 + 1);
  nanoseconds ask_at = 0;
  for (;;) {
    rest(pause);
    if (ending_) return;
    const nanoseconds now = the_system.now();
    if (!told_) {
      tell_({task_, std::chrono::nanoseconds(kept_), trace_});
      ask_at = now + kept_;
      told_ = true;
    }
    const unsigned long turn = home_->turn();
    if (asleep_ || turn != turn_) {
      dozes_ = true;
      while (asleep_ && turn == home_->turn() && told_ && !ending_) rest(-1);
      dozes_ = false;
      turn_ = home_->turn();
      since_ = the_system.now();
      ask_at = since_ + limit_;
    } else if (now >= ask_at) {
      ask_at = now + limit_;
      ::pthread_kill(watched_, SIGURG);
    }
  }
}

inline void watchdog::handle(int signal, siginfo_t* info, void* where) {
  const int error = errno;
  scheduler* const s = tasks_here();
  if (s != nullptr && s->seen_by != nullptr)
    static_cast<watchdog*>(s->seen_by)->look_closer(where);
  if (before_.sa_flags & SA_SIGINFO)
    before_.sa_sigaction(signal, info, where);
  else if (before_.sa_handler != SIG_DFL && before_.sa_handler != SIG_IGN)
    before_.sa_handler(signal);
  errno = error;
}

// What it calls may be called in a handler; backtrace() too, since a trace has
// called it before.
inline void watchdog::look_closer(const void* where) {
  const task_block& t = home_->running();
  if (!told_ || t.stage != task_state::running || home_->turn() != turn_)
    return;
  const nanoseconds kept = the_system.now() - since_;
  if (kept < limit_) return;  // somebody else has sent the signal
  title_and_place(t, task_);
  trace_.depth = 0;
  if (!between_flows(where)) trace_.look(trace_);
  kept_ = kept;
  told_ = false;
  bell_.ring();
}

// In the middle of a switch the code is still that of one flow, and the stack
// that of the other: an unwinder would get lost. Where that cannot be ruled
// out, there is no trace.
inline bool watchdog::between_flows(const void* where) {
#if defined(__GLIBC__) && defined(__x86_64__)
  const auto& now = static_cast<const ucontext_t*>(where)->uc_mcontext.gregs;
  if (current_flow->empty()) return false;  // nobody has left it yet
#if defined(BAO_USE_UCONTEXT)
  const auto& then = current_flow->saved->uc_mcontext.gregs;
  const auto sp = reinterpret_cast<void*>(then[REG_RSP]);
  const auto ip = reinterpret_cast<void*>(then[REG_RIP]);
#else
  void* const sp = current_flow->sp;
  void* const ip = current_flow->ip;
#endif
  return reinterpret_cast<void*>(now[REG_RSP]) == sp &&
         ::_Unwind_FindEnclosingFunction(reinterpret_cast<void*>(
             now[REG_RIP])) != ::_Unwind_FindEnclosingFunction(ip);
#else
  static_cast<void>(where);
  return true;
#endif
}

}  // namespace BAO_ABI
}  // namespace bao
