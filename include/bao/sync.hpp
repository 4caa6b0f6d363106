// bao/sync.hpp - events, semaphores, locks
//
// Tasks of one thread need no lock for a few lines that do not wait: nobody
// else runs. What they need one for is to keep something to themselves while
// they wait, and what they need most is to wait for each other. The names are
// the standard's, and so are the rules, std::lock_guard and the like included:
//
//     bao::mutex door("the door");           bao::event ready;
//     std::lock_guard hold(door);            ready.wait(5s);
//
// All are fair: whoever releases hands over to the first in line, and has to
// queue to take again. Whoever is late or killed takes nothing along. A lock
// knows who has it: it is an error to lock what one holds already, or to unlock
// what somebody else holds, and reports name the holder.
//
// Calls named wait, lock, acquire and get, and those that end in _for or
// _until, suspend while they have to wait, `until` at the latest. When they are
// late they return false, but get() throws. All throw what interrupts us. The
// other calls never suspend. To take and release what is free costs some ns.
//
// Each object belongs to the thread that used it first; others get
// wrong_thread.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <exception>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "bao/timeout.hpp"
#include "bao/wait_queue.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A door that starts closed. Tasks wait at it; set() lets them all through.
class event {
 public:
  // Those who wait now pass, even if it is cleared before they run.
  void set() {
    waiters_.enter("event: set");
    set_ = true;
    waiters_.wake_all();
  }
  void clear() {
    waiters_.enter("event: clear");
    set_ = false;
  }
  bool is_set() const { return set_; }
  bool wait(deadline until = never) {
    return waiters_.wait(until, {"waiting for an event"},
                         [this] { return set_; });
  }

  wait_queue& waiters() { return waiters_; }  // for the chapters that follow

 private:
  bool set_ = false;
  wait_queue waiters_;
};

// A number of units, which are taken one by one, and given back.
class semaphore {
 public:
  // Throws std::invalid_argument unless 0 <= units <= most.
  explicit semaphore(
      std::ptrdiff_t units,
      std::ptrdiff_t most = std::numeric_limits<std::ptrdiff_t>::max())
      : units_(units), most_(most) {
    if (units < 0 || units > most)
      throw std::invalid_argument("semaphore: " + std::to_string(units) +
                                  " of " + std::to_string(most) + " units");
  }

  bool acquire(deadline until = never) {
    return waiters_.wait(until, {"acquiring a semaphore"},
                         [this] { return take(); });
  }
  bool try_acquire() {
    waiters_.enter("try_acquire");
    return take();
  }
  // Throws std::logic_error when there would be more than `most`.
  void release(std::ptrdiff_t units = 1) {
    waiters_.enter("release");
    if (units < 0 || units > most_ - units_)
      throw std::logic_error("release: " + std::to_string(units) +
                             " units beside " + std::to_string(units_) +
                             " are more than " + std::to_string(most_));
    while (units > 0 && waiters_.wake_one()) --units;
    units_ += units;
  }
  std::ptrdiff_t available() const { return units_; }

 private:
  bool take() {
    if (units_ == 0) return false;
    --units_;
    return true;
  }

  std::ptrdiff_t units_, most_;
  wait_queue waiters_;
};

// Who has a lock, by its number, and who waits for it.
class lock_holder {
 public:
  lock_holder(const char* name) : held_{name} {}

 protected:
  static constexpr long nobody = -1;

  // The running task, that wants the lock or has it.
  long me(const char* call) {
    return static_cast<long>(waiters_.enter(call).running().id);
  }
  void expect_not_mine(const char* call) {
    if (held_.task != nobody && held_.task == me(call))
      throw deadlock(std::string(call) + ": " + held_.what +
                     " is held by this task itself, " +
                     title_and_place(waiters_.enter(call).running()));
  }
  void expect_mine(const char* call) {
    if (held_.task != me(call))
      throw std::logic_error(
          std::string(call) + ": " + held_.what + " is held by " +
          (held_.task == nobody ? "no task"
                                : "task " + std::to_string(held_.task)));
  }

  holding held_;
  wait_queue waiters_;
};

// One task has it at a time. `name` is for reports, and must outlive it.
class mutex : private lock_holder {
 public:
  explicit mutex(const char* name = "mutex") : lock_holder(name) {}

  // Throws deadlock when we hold it already.
  bool lock(deadline until = never) {
    expect_not_mine("lock");
    return waiters_.wait(until, {"locking", -1, &held_},
                         [this] { return try_lock(); });
  }
  bool try_lock() {
    const long us = me("try_lock");
    if (held_.task != nobody) return false;
    held_.task = us;
    return true;
  }
  bool try_lock_for(deadline until) { return lock(until); }
  bool try_lock_until(deadline until) { return lock(until); }
  // Throws std::logic_error unless we hold it.
  void unlock() {
    expect_mine("unlock");
    waiter* const next = waiters_.first();
    held_.task = next == nullptr ? nobody : static_cast<long>(next->task->id);
    if (next != nullptr) wait_queue::wake(*next);
  }
  bool held_by_us() { return held_.task == me("held_by_us"); }
};

// One task has it, as often as it likes.
class recursive_mutex {
 public:
  explicit recursive_mutex(const char* name = "recursive_mutex")
      : mutex_(name) {}

  bool lock(deadline until = never) {
    return counted(mutex_.held_by_us() || mutex_.lock(until));
  }
  bool try_lock() { return counted(mutex_.held_by_us() || mutex_.try_lock()); }
  bool try_lock_for(deadline until) { return lock(until); }
  bool try_lock_until(deadline until) { return lock(until); }
  // Throws std::logic_error unless we hold it.
  void unlock() {
    if (depth_ == 1 || !mutex_.held_by_us()) mutex_.unlock();
    --depth_;
  }

 private:
  bool counted(bool locked) {
    if (locked) ++depth_;
    return locked;
  }

  mutex mutex_;
  std::size_t depth_ = 0;
};

// One task has it alone, or any number share it. Nobody overtakes: who would
// share it waits behind one who waits to have it alone.
class shared_mutex : private lock_holder {
 public:
  explicit shared_mutex(const char* name = "shared_mutex")
      : lock_holder(name) {}

  // Throws deadlock when we have it alone already. A task that shares it and
  // then wants it alone waits for itself: that is noticed, and called a
  // deadlock, only when no other task can run.
  bool lock(deadline until = never) { return get("lock", until, false); }
  bool try_lock() {
    waiters_.enter("try_lock");
    return take(false);
  }
  bool try_lock_for(deadline until) { return lock(until); }
  bool try_lock_until(deadline until) { return lock(until); }
  // Throws std::logic_error unless we have it alone.
  void unlock() {
    expect_mine("unlock");
    held_.task = nobody;
    hand_over();
  }

  bool lock_shared(deadline until = never) {
    return get("lock_shared", until, true);
  }
  bool try_lock_shared() {
    waiters_.enter("try_lock_shared");
    return take(true);
  }
  bool try_lock_shared_for(deadline until) { return lock_shared(until); }
  bool try_lock_shared_until(deadline until) { return lock_shared(until); }
  // Throws std::logic_error when nobody shares it.
  void unlock_shared() {
    waiters_.enter("unlock_shared");
    if (sharing_ == 0)
      throw std::logic_error(std::string("unlock_shared: nobody shares ") +
                             held_.what);
    --sharing_;
    hand_over();
  }

 private:
  bool free_for(bool shared) const {
    return held_.task == nobody && (shared || sharing_ == 0);
  }
  void give(task_block& t, bool shared) {
    if (shared)
      ++sharing_;
    else
      held_.task = static_cast<long>(t.id);
  }
  bool take(bool shared) {
    if (!free_for(shared) || waiters_.first() != nullptr) return false;
    give(this_scheduler().running(), shared);
    return true;
  }
  bool get(const char* call, deadline until, bool shared) {
    expect_not_mine(call);
    waiters_.enter(call);
    if (take(shared)) return true;
    struct in_line final : waiter {
      shared_mutex& lock;
      in_line(shared_mutex& m, bool shares)
          : waiter(this_scheduler().running(), shares ? &m : nullptr),
            lock(m) {}
      ~in_line() {  // late or killed: those behind may have waited for us alone
        if (!in_list()) return;
        leave();
        lock.hand_over();
      }
    } us(*this, shared);
    return waiters_.wait_as(us, until,
                            {shared ? "sharing" : "locking", -1, &held_},
                            [&] { return take(shared); });
  }
  void hand_over() {
    while (waiter* const w = waiters_.first()) {
      const bool shared = w->offer != nullptr;
      if (!free_for(shared)) return;
      give(*w->task, shared);
      wait_queue::wake(*w);
    }
  }

  std::size_t sharing_ = 0;
};

// Tasks that hold a lock wait for something to change, and let go of it
// meanwhile. With any lock that has lock() and unlock(), std::unique_lock, say.
class condition_variable {
 public:
  void notify_one() {
    waiters_.enter("notify_one");
    waiters_.wake_one();
  }
  void notify_all() {
    waiters_.enter("notify_all");
    waiters_.wake_all();
  }

  // Until notified (true) or late (false); rarely returns true for no reason,
  // as the standard's does. We hold the lock again when it returns or throws:
  // to get it we wait even beyond `until`, and cannot be interrupted.
  template <class Lock>
  bool wait(Lock& lock, deadline until = never) {
    struct let_go {
      Lock& lock;
      explicit let_go(Lock& l) : lock(l) { lock.unlock(); }
      ~let_go() {
        shield in_peace;
        lock.lock();
      }
    };
    std::optional<let_go> meanwhile;
    return waiters_.wait(until, {"waiting for a condition"}, [&] {
      if (meanwhile) return true;
      meanwhile.emplace(lock);
      return false;
    });
  }
  // Until ready() holds, which is asked with the lock held.
  template <class Lock, class Ready,
            class = std::enable_if_t<std::is_invocable_v<Ready&>>>
  bool wait(Lock& lock, Ready ready, deadline until = never) {
    while (!ready())
      if (!wait(lock, until)) return ready();
    return true;
  }
  template <class Lock, class... Ready>
  bool wait_for(Lock& lock, deadline until, Ready... ready) {
    return wait(lock, std::move(ready)..., until);
  }
  template <class Lock, class... Ready>
  bool wait_until(Lock& lock, deadline until, Ready... ready) {
    return wait(lock, std::move(ready)..., until);
  }

 private:
  wait_queue waiters_;
};

// Counts what is under way; tasks wait until nothing is.
class wait_group {
 public:
  // Throws std::logic_error when less than nothing would be under way.
  void add(std::ptrdiff_t more = 1) {
    waiters_.enter("wait_group");
    if (more < -count_)
      throw std::logic_error("wait_group: more is done than was added");
    count_ += more;
    if (count_ == 0) waiters_.wake_all();
  }
  void done() { add(-1); }
  std::ptrdiff_t count() const { return count_; }
  bool wait(deadline until = never) {
    return waiters_.wait(until, {"waiting for a group"},
                         [this] { return count_ == 0; });
  }

 private:
  std::ptrdiff_t count_ = 0;
  wait_queue waiters_;
};

// A value, or an error, that some task will have.
template <class T = void>
class async_result {
 public:
  // Each throws std::logic_error when there is a value or an error already.
  template <class... Args>
  void set(Args&&... args) {
    expect_none("set");
    value_.emplace(std::forward<Args>(args)...);
    there_.set();
  }
  void set_error(std::exception_ptr error) {
    expect_none("set_error");
    if (error == nullptr) throw std::invalid_argument("set_error: no error");
    error_ = std::move(error);
    there_.set();
  }

  bool ready() const { return there_.is_set(); }
  bool wait(deadline until = never) { return there_.wait(until); }
  // Suspends until it is there. The value, which stays; throws the error, and
  // std::system_error with timed_out when late.
  std::add_lvalue_reference_t<T> get(deadline until = never) {
    if (!there_.wait(until)) throw_late("async_result: get");
    if (error_ != nullptr) std::rethrow_exception(error_);
    if constexpr (!std::is_void_v<T>) return *value_;
  }

 private:
  void expect_none(const char* call) {
    there_.waiters().enter(call);
    if (ready())
      throw std::logic_error(std::string("async_result: ") + call +
                             ": it has been set already");
  }

  event there_;
  std::optional<std::conditional_t<std::is_void_v<T>, nothing, T>> value_;
  std::exception_ptr error_;
};

}  // namespace BAO_ABI
}  // namespace bao
