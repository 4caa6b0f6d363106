// bao/hook_sync.hpp - mutexes and conditions of threads, for tasks
//
// A task that locks a std::mutex and then waits for a socket takes the lock
// along into its sleep. When another task of the thread wants it, the thread
// stands still in libc, and with it the one task that could unlock. So here a
// task never lets libc wait. It tries to lock, and when that fails it lies down
// in a parking lot, under the address of what it waits for. Whoever unlocks
// that, on any thread, looks whether somebody lies there:
//
//     one waits       counts itself, then tries to lock --> busy: parks
//                                                             |
//     one unlocks     unlocks, then looks at the count --> wakes the first
//
// Each writes before it reads. So, whatever the timing, the one finds the mutex
// free or the other sees the count: no wake-up is lost, and it takes no lock to
// learn that nobody waits. Linux's futexes are made like this, in the kernel.
//
// Nothing interrupts these waits, as hardly any caller looks at what they
// return: a kill or a limit has to wait for them. Timed ones end at their time.
// Outside of tasks and under patch_off, libc alone locks a mutex; for a
// condition, such threads stand in line with tasks.
//
// A lock and an unlock that meet nobody take 3 to 5 ns more than the 6 of libc.
//
// SPDX-License-Identifier: MIT
#pragma once

#include "bao/hook.hpp"

#if defined(__GLIBC__) && defined(__LP64__)
#if __GLIBC_PREREQ(2, 30)
#define BAO_HAS_HOOK_SYNC 1
#endif
#endif

#if defined(BAO_HAS_HOOK_SYNC)
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#include "bao/remote.hpp"
#include "bao/timeout.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {
namespace hook {

// --- the parking lot ---------------------------------------------------------

// Those who wait for things whose addresses hash alike, in their order. To find
// the first of one address is linear in them.
struct parking_line {
  thread_mutex mutex;  // all but the count is for its holder alone
  std::atomic<int> count{0};
  list<class sleeper> sleepers;
};

struct parking_lot {
  parking_line for_mutexes[64];
  parking_line for_conditions[64];  // where many may wait for long
  thread_mutex calls;               // may be locked after that of a line
};

// The process has one, made by the compiler and never destroyed: there are
// locks before main() and after it.
union lasting_parking_lot {
  constexpr lasting_parking_lot() : itself() {}
  ~lasting_parking_lot() {}
  parking_lot itself;
};
inline lasting_parking_lot the_parking_lot;
inline parking_lot& lot = the_parking_lot.itself;

inline std::size_t hash_of(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) * 0x9e3779b97f4a7c15u >> 58;
}
inline parking_line& line_of(const pthread_mutex_t* m) {
  return lot.for_mutexes[hash_of(m)];
}
inline parking_line& line_of(const pthread_cond_t* c) {
  return lot.for_conditions[hash_of(c)];
}

// How a thread is told that others have woken tasks of it. Each has one, which
// is sent again and again: so to wake needs no memory, and what arrives refers
// to nobody who has left meanwhile. Nor is it ever destroyed.
struct wake_up_call : message {
  class sleeper* first = nullptr;  // of those who are to be woken
  class sleeper** last = nullptr;
  bool on_its_way = false;
};
inline thread_local wake_up_call wake_up_call_of_thread;

// Until when, by a clock of the system's.
struct time_limit {
  clockid_t clock;
  const timespec* time;  // null: there is none

  bool is_valid() const {
    return (clock == CLOCK_REALTIME || clock == CLOCK_MONOTONIC) &&
           (time == nullptr ||
            (time->tv_nsec >= 0 && time->tv_nsec < 1000000000));
  }
  deadline from_now() const {
    timespec is{};
    if (time == nullptr || ::clock_gettime(clock, &is) != 0) return never;
    return duration_of(*time) - duration_of(is);
  }
};
inline constexpr time_limit no_limit{CLOCK_REALTIME, nullptr};

// One who waits, a task or a thread without. Lies on its stack, and stands in
// line from the beginning.
class sleeper : public list_node<sleeper> {
 public:
  template <class What>
  sleeper(const What* what, scheduler* home)
      : address_(what), home_(home), line_(line_of(what)) {
    if (home != nullptr) get_ready_for_calls();
    {
      const thread_lock hold(line_.mutex);
      line_.sleepers.push_back(*this);
      line_.count.fetch_add(1, std::memory_order_relaxed);
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);  // see unlock
  }
  sleeper(const sleeper&) = delete;
  ~sleeper() {
    if (!has_left_) leave_line();
    if (way_) {
      const thread_lock hold(lot.calls);
      if (called_) take_off_call();
    }
    errno = errno_before_;
  }

  // These three do not suspend; their callers hold the line's mutex.

  // The first who waits for something; null when there is none.
  template <class What>
  static sleeper* first_of(const What* what) {
    return first_of(line_of(what), what);
  }
  // From then on nobody else refers to this one, but for a call on its way.
  void step_out() {
    if (!in_list()) return;
    leave();
    line_.count.fetch_sub(1, std::memory_order_relaxed);
  }
  void wake() {
    woken_ = true;
    if (home_ == nullptr)
      original::pthread_cond_signal(&bell_);
    else if (home_ == tasks_here())
      home_->wake(*task_);
    else if (way_)
      call();
  }

  // Never suspends.
  bool is_first() const {
    const thread_lock hold(line_.mutex);
    return first_of(line_, address_) == this;
  }

  // Suspends the task until it is woken, perhaps for nothing, or `until` passes
  // (false).
  bool park(deadline until, const char* why) {
    const shield from_interruptions;
    home_->park_in_c(way_ ? until : std::min(until, deadline(pauses_.next())),
                     {why});
    return !until.passed();
  }

  // Suspends the task, or blocks the thread, until it is woken (true) or late,
  // and leaves the line.
  bool sleep(const time_limit& limit) {
    if (home_ == nullptr) {
      block(limit);
    } else {
      const deadline until = limit.from_now();
      bool late = false;
      while (!is_woken() && !late)
        late = !park(until, "waiting for pthread condition");
    }
    return leave_line();
  }
  bool leave_line() {
    const thread_lock hold(line_.mutex);
    step_out();
    has_left_ = true;
    return woken_;
  }

 private:
  static sleeper* first_of(parking_line& line, const void* address) {
    sleeper* s = line.sleepers.first();
    while (s != nullptr && s->address_ != address) s = line.sleepers.after(*s);
    return s;
  }
  bool is_woken() const {
    const thread_lock hold(line_.mutex);
    return woken_;
  }
  void block(const time_limit& limit) {
    const thread_lock hold(line_.mutex);
    pthread_mutex_t* const mutex = line_.mutex.native();
    int error = 0;
    while (!woken_ && error == 0)
      error = limit.time == nullptr
                  ? original::pthread_cond_wait(&bell_, mutex)
                  : original::pthread_cond_clockwait(&bell_, mutex, limit.clock,
                                                     limit.time);
  }

  // Where there is no memory for a mailbox of the thread, the task looks for
  // itself every now and then.
  void get_ready_for_calls() {
    try {
      way_ = remote(*home_);
    } catch (const std::bad_alloc&) {
    }
    task_ = &home_->running();
    call_ = &wake_up_call_of_thread;
    call_->arrive = [](message& m, scheduler* s) {
      const thread_lock hold(lot.calls);
      auto& arrived = static_cast<wake_up_call&>(m);
      arrived.on_its_way = false;
      while (sleeper* const one = arrived.first) {
        one->take_off_call();
        if (s != nullptr) s->wake(*one->task_);
      }
    };
  }
  void call() {
    const thread_lock hold(lot.calls);
    if (std::exchange(called_, true)) return;
    if (call_->first == nullptr) call_->last = &call_->first;
    *call_->last = this;
    call_->last = &next_called_;
    // A thread that has ended takes none; nor do its tasks run any more.
    if (!std::exchange(call_->on_its_way, true)) way_.put(*call_);
  }
  void take_off_call() {
    sleeper** link = &call_->first;
    while (*link != this) link = &(*link)->next_called_;
    *link = std::exchange(next_called_, nullptr);
    if (*link == nullptr) call_->last = link;
    called_ = false;
  }

  const void* const address_;
  scheduler* const home_;  // null: a thread waits
  parking_line& line_;
  bool woken_ = false;
  bool has_left_ = false;  // set by ourselves, and so read without the mutex
  const int errno_before_ = errno;

  pthread_cond_t bell_ = PTHREAD_COND_INITIALIZER;  // of a thread

  task_block* task_ = nullptr;
  remote way_;
  wake_up_call* call_ = nullptr;
  bool called_ = false;
  sleeper* next_called_ = nullptr;
  growing_pause pauses_;
};

// Whether somebody waits for it, or for what hashes alike.
template <class What>
bool may_be_wanted(const What* what) {
  return line_of(what).count.load(std::memory_order_relaxed) != 0;
}

// --- mutexes -----------------------------------------------------------------

// Whether tasks wait for it here. Left to libc, which blocks, are mutexes that
// other processes unlock, and those with priorities.
inline bool is_for_tasks(const pthread_mutex_t* m) {
  constexpr int robust = 16, inherits = 32, protects = 64, shared = 128;
  return (m->__data.__kind & (robust | inherits | protects | shared)) == 0;
}

// Some mutexes know their owner, a thread. The number of its task is noted in
// links that glibc uses for robust ones alone; 0 is the main task, or a thread
// without any. Only the owner writes it.
inline bool knows_owner(const pthread_mutex_t* m) {
  const int type = m->__data.__kind & 3;
  return type == PTHREAD_MUTEX_RECURSIVE || type == PTHREAD_MUTEX_ERRORCHECK;
}
inline bool is_noted(const pthread_mutex_t* m, const task_block& t) {
  return reinterpret_cast<unsigned long>(m->__data.__list.__next) == t.id;
}
inline bool is_held_by(const pthread_mutex_t* m, const task_block& t) {
  return knows_owner(m) && m->__data.__owner == ::gettid() && is_noted(m, t);
}
inline void note_owner(pthread_mutex_t* m) {
  if (!is_for_tasks(m) || !knows_owner(m) || m->__data.__count > 1) return;
  scheduler* const s = tasks_here();
  m->__data.__list.__next = reinterpret_cast<__pthread_internal_list*>(
      s == nullptr ? 0 : s->running().id);
}

// pthread_mutex_trylock() for a task: what another task of the thread holds is
// busy, even if it is recursive.
inline int try_to_lock(pthread_mutex_t* m, const task_block& me) {
  const int error = original::pthread_mutex_trylock(m);
  if (error != 0 || !knows_owner(m)) return error;
  if (m->__data.__count > 1 && !is_noted(m, me)) {
    original::pthread_mutex_unlock(m);
    return EBUSY;
  }
  note_owner(m);
  return 0;
}

// Wakes the first who waits for a mutex, which may have been destroyed.
inline void wake_next(const pthread_mutex_t* m) {
  if (!may_be_wanted(m)) return;
  const thread_lock hold(line_of(m).mutex);
  if (sleeper* const next = sleeper::first_of(m)) next->wake();
}

// Suspends until the mutex is ours, after all who were in line before, or the
// limit has passed.
inline int lock_until(scheduler& s, pthread_mutex_t* m,
                      const time_limit& limit) {
  const task_block& me = s.running();
  int error = EBUSY;
  if (!may_be_wanted(m) || is_held_by(m, me)) error = try_to_lock(m, me);
  if (error == EBUSY && is_held_by(m, me)) error = EDEADLK;
  if (error == EBUSY && !limit.is_valid()) error = EINVAL;
  if (error != EBUSY) return error;
  {
    const deadline until = limit.from_now();
    sleeper place(m, &s);
    for (bool late = false;;) {
      if (place.is_first()) error = try_to_lock(m, me);
      if (error != EBUSY || late) break;
      late = !place.park(until, "locking pthread mutex");
    }
  }
  // An unlock may have woken us, who go without: the next one is to try.
  if (error != 0) wake_next(m);
  return error == EBUSY ? ETIMEDOUT : error;
}

// One that a task can wait for, or null: then the call is to be libc's own.
inline scheduler* here_for(const pthread_mutex_t* m) {
  scheduler* const s = here();
  return s != nullptr && is_for_tasks(m) ? s : nullptr;
}

inline int locked_by_libc(pthread_mutex_t* m, int error) {
  if (error == 0) note_owner(m);
  return error;
}

inline int pthread_mutex_lock(pthread_mutex_t* m) {
  if (scheduler* const s = here_for(m)) return lock_until(*s, m, no_limit);
  return locked_by_libc(m, original::pthread_mutex_lock(m));
}

inline int pthread_mutex_clocklock(pthread_mutex_t* m, clockid_t clock,
                                   const timespec* until) {
  if (scheduler* const s = here_for(m))
    return lock_until(*s, m, {clock, until});
  return locked_by_libc(m, original::pthread_mutex_clocklock(m, clock, until));
}
inline int pthread_mutex_timedlock(pthread_mutex_t* m, const timespec* until) {
  return hook::pthread_mutex_clocklock(m, CLOCK_REALTIME, until);
}

// Suspends now and then: a loop of tries must not keep the thread from the task
// that could unlock.
inline int pthread_mutex_trylock(pthread_mutex_t* m) {
  scheduler* const s = here_for(m);
  if (s == nullptr)
    return locked_by_libc(m, original::pthread_mutex_trylock(m));
  const int error = try_to_lock(m, s->running());
  if (error == EBUSY && s->time_to_yield()) s->yield_in_c();
  return error;
}

// Never suspends. The two fences, this and a sleeper's, keep either side from
// reading before it has written.
inline int pthread_mutex_unlock(pthread_mutex_t* m) {
  const int error = original::pthread_mutex_unlock(m);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  wake_next(m);
  return error;
}

// --- conditions --------------------------------------------------------------

// Other processes signal this one.
inline bool is_shared(const pthread_cond_t* c) {
  return (__atomic_load_n(&c->__data.__wrefs, __ATOMIC_RELAXED) & 1) != 0;
}

// These three never suspend. Whoever is woken has left the line: the next
// signal is for another. libc is told, too, as threads may sleep there.
inline void wake_waiters(const pthread_cond_t* c, bool all) {
  if (!may_be_wanted(c)) return;
  const thread_lock hold(line_of(c).mutex);
  while (sleeper* const one = sleeper::first_of(c)) {
    one->step_out();
    one->wake();
    if (!all) return;
  }
}
inline int pthread_cond_signal(pthread_cond_t* c) {
  wake_waiters(c, false);
  return original::pthread_cond_signal(c);
}
inline int pthread_cond_broadcast(pthread_cond_t* c) {
  wake_waiters(c, true);
  return original::pthread_cond_broadcast(c);
}

// Suspends a task and blocks other threads, until there is a signal or the
// limit has passed. Threads, too, wait in the lot: libc would unlock the mutex
// by itself, and wake none of the tasks that want it.
inline int wait_for_signal(pthread_cond_t* c, pthread_mutex_t* m,
                           const time_limit& limit) {
  if (!limit.is_valid()) return EINVAL;
  sleeper place(c, here());
  if (const int error = hook::pthread_mutex_unlock(m)) return error;
  bool woken = false;
  try {
    woken = place.sleep(limit);
  } catch (...) {  // pthread_cancel(): a signal that was ours is for another
    const bool told = place.leave_line();
    hook::pthread_mutex_lock(m);
    if (told) hook::pthread_cond_signal(c);
    throw;
  }
  if (const int error = hook::pthread_mutex_lock(m)) return error;
  return woken ? 0 : ETIMEDOUT;
}

inline int pthread_cond_wait(pthread_cond_t* c, pthread_mutex_t* m) {
  if (!is_shared(c)) return wait_for_signal(c, m, no_limit);
  return locked_by_libc(m, original::pthread_cond_wait(c, m));
}
inline int pthread_cond_clockwait(pthread_cond_t* c, pthread_mutex_t* m,
                                  clockid_t clock, const timespec* until) {
  if (!is_shared(c)) return wait_for_signal(c, m, {clock, until});
  return locked_by_libc(m,
                        original::pthread_cond_clockwait(c, m, clock, until));
}
// By the clock that the condition was made for.
inline int pthread_cond_timedwait(pthread_cond_t* c, pthread_mutex_t* m,
                                  const timespec* until) {
  constexpr unsigned by_monotonic = 2;
  const unsigned flags = __atomic_load_n(&c->__data.__wrefs, __ATOMIC_RELAXED);
  return hook::pthread_cond_clockwait(
      c, m, (flags & by_monotonic) != 0 ? CLOCK_MONOTONIC : CLOCK_REALTIME,
      until);
}

// --- fork --------------------------------------------------------------------

// In the child. Those who wait are in the parent, and one of its threads may
// have held a mutex of the lot.
inline void clear_parking_lot() {
  new (&lot) parking_lot;
  wake_up_call_of_thread.first = nullptr;
  wake_up_call_of_thread.on_its_way = false;
}

}  // namespace hook
}  // namespace BAO_ABI
}  // namespace bao
#endif
