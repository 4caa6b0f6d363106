// bao/wait_queue.hpp - a line of parked tasks
//
// Locks, channels and whatever else tasks wait for are a few words of state and
// a line of those who wait. The line is served from its front:
//
//     front                                    back
//     [ task 3 ]--[ task 7 ]--[ task 4 ]     <- park: on the stack of the task
//         |
//         '-> wake: it is given what it waits for, then and there
//
// What is given belongs to whoever is woken, at once, even before it runs: so
// whoever comes later cannot snatch it. Whoever is late or killed just leaves,
// and is passed over: nothing is given to it that would be lost.
//
// A line belongs to the thread that used it first. It allocates nothing.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "bao/scheduler.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A task's place in a line. Lies on the stack of the task.
struct waiter : list_node<waiter> {
  explicit waiter(task_block& t, void* brings = nullptr)
      : task(&t), offer(brings) {}
  bool can_be_woken() const { return task->stage == task_state::parked; }

  task_block* const task;
  void* offer;         // what it brings: a value to send, room for one
  bool woken = false;  // and has been given what it waits for
};

class wait_queue {
 public:
  wait_queue() = default;
  // Those who still wait will not be woken any more.
  ~wait_queue() {
    while (waiter* const w = line_.first()) {
      w->leave();
      w->task->waits_for = {"waiting for something that is gone"};
    }
  }

  // Whoever calls is on the right thread, or gets wrong_thread. Never suspends.
  scheduler& enter(const char* call) {
    scheduler& s = this_scheduler();
    if (home_ != current_thread->number) settle(call);
    return s;
  }

  // Suspends in line until `ready()` holds or somebody wakes us (true), or
  // `until` passes (false). Throws what park() does. ready() is asked at once
  // and after each wake-up; if it holds, it has taken what there is.
  template <class Ready>
  bool wait(deadline until, wait_reason why, Ready ready,
            void* offer = nullptr) {
    scheduler& s = enter(why.what);
    if (ready()) return true;
    waiter me(s.running(), offer);
    return wait_as(me, until, why, ready);
  }
  // The same, for a waiter that wants to know how it left the line: until it is
  // woken it stays there.
  template <class Ready>
  bool wait_as(waiter& me, deadline until, wait_reason why, Ready ready) {
    scheduler& s = enter(why.what);
    line_.push_back(me);
    do {
      if (!s.park(until, why)) return me.woken;
    } while (!me.woken && !(me.in_list() && ready()));
    return true;
  }

  // The first that can be woken, or null. One that cannot is late or
  // interrupted, and will leave.
  waiter* first() {
    waiter* w = line_.first();
    while (w != nullptr && !w->can_be_woken()) w = line_.after(*w);
    return w;
  }
  void push_back(waiter& w) { line_.push_back(w); }

  // Wakes one of those, or all. Never suspends.
  static void wake(waiter& w) {
    w.leave();
    w.woken = true;
    w.task->home->tasks->wake(*w.task);
  }
  bool wake_one() {
    waiter* const w = first();
    if (w != nullptr) wake(*w);
    return w != nullptr;
  }
  // All: also those that are late or interrupted, since nothing is lost when
  // everybody gets it; but not one that another line has woken.
  void wake_all() {
    for (waiter* w = line_.first(); w != nullptr;) {
      waiter& one = *w;
      w = line_.after(one);
      if (one.task->why_woken != task_block::cause::woken) wake(one);
    }
  }

 private:
  [[gnu::cold, gnu::noinline]] void settle(const char* call) {
    if (home_ != 0)
      throw wrong_thread(std::string(call) + ": this is thread " +
                         std::to_string(current_thread->number) +
                         ", and it belongs to thread " + std::to_string(home_));
    home_ = current_thread->number;
  }

  list<waiter> line_;
  unsigned home_ = 0;  // the number of its thread
};

}  // namespace BAO_ABI
}  // namespace bao
