// bao/scheduler.hpp - who runs next; park and wake
//
// All waiting in bao is one call, park(), and all that ends a wait is one
// other:
//
//     park(until)   stands still until somebody calls wake(task), until the
//                   deadline, or until an interruption arrives, and says which.
//     wake(task)    ends the park, and says whether it did: the first cause
//                   wins, and a waker who is too late goes on to the next.
//
// There is no loop to call. Whoever parks looks for the next task that can run
// and switches to it; when there is none, that same task sleeps in the poller.
// A central loop would cost a second switch each time, and be one more kind of
// flow. So the thread's own flow is a task like the others, the main task.
//
// Tasks run in the order in which they became ready; to yield to the next takes
// about 5 ns. One that neither parks nor yields keeps all others waiting.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bao/poller.hpp"
#include "bao/report.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Who waits for a descriptor, and in which direction.
struct descriptor_waiter : list_node<descriptor_waiter> {
  task_block* task = nullptr;
  readiness want;
};

// What is known of a descriptor (io.hpp). It stays while anybody refers to it.
struct descriptor_watch {
  list<descriptor_waiter> waiters;
  readiness ready = readable | writable;  // as far as we know: try
  bool owned = false;
  bool closed = false;
  unsigned references = 0;
  // Set when its descriptor goes on another thread, and when its own thread
  // ends: whoever finds it set deletes the watch.
  std::atomic<bool> parted{false};
};

// A question that a helper thread looks up (look_up.hpp).
struct in_flight : list_node<in_flight> {};

// Told what a thread does, by its scheduler: see watchdog.hpp.
class onlooker {
 public:
  virtual void sleeps() noexcept = 0;  // or may, from now on
  virtual void awake() noexcept = 0;
  virtual void ends() noexcept = 0;

 protected:
  ~onlooker() = default;
};

// Of its members only park(), yield(), their twins for C, run_ready(), the
// destructor and, after a kill that was swallowed, meet_interruption() suspend.
class scheduler {
 public:
  explicit scheduler(thread_state& t);
  scheduler(const scheduler&) = delete;
  // Kills what is left, and waits until it has ended.
  ~scheduler();

  task_block& running() { return *running_; }

  // Suspends the running task until somebody wakes it (true) or `until` passes
  // (false; at once, without suspending, if it had when the thread last looked
  // at the clock, which takes too long to be done each time). Throws what
  // interrupts it: killed, timed_out, what was thrown in; in the main task
  // deadlock as well. An interruption that is withdrawn meanwhile wakes it for
  // nothing (true): so park in a loop.
  bool park(deadline until, const wait_reason& why);

  // The same for a caller in C, through whom nothing may be thrown. Returns 0
  // when somebody wakes us, ETIME when `until` passes, and when we are
  // interrupted ECANCELED (a kill, an error) or ETIMEDOUT (a limit): what it is
  // will be thrown by the first park() outside. Until then this one yields, and
  // does not park.
  int park_in_c(deadline until, const wait_reason& why);

  // Makes a parked task ready. False when it is not parked (any more).
  bool wake(task_block& t);

  // Suspends until every other ready task has run. Throws what interrupts us.
  [[gnu::always_inline]] void yield();

  // Counts a call that may not have to wait. True when it is time to yield.
  bool time_to_yield() {
    constexpr int most_busy_calls = 32;
    return ++busy_calls_ > most_busy_calls;
  }

  // Throws what interrupts the running task. Before it throws a kill that was
  // swallowed once more, it lets the others run.
  void meet_interruption() {
    if (may_be_interrupted()) throw_interruption(*running_);
  }

  // Whether the running task is interrupted: 0, or what park_in_c() returns.
  int interrupted_in_c() {
    return may_be_interrupted() ? error_number(due(*running_)) : 0;
  }
  // Suspends until every other ready task has run. Throws nothing.
  void yield_in_c() {
    if (is_in_its_process()) let_others_run();
  }
  // False in a child by vfork(), which is a guest in our memory: nobody else
  // must run there.
  bool is_in_its_process() const { return process_ == ::getpid(); }

  // A new task is ready, now or at a time.
  void add(task_block& t, deadline start);

  // Asks a task to end. One that has not started never will.
  void kill(task_block& t);
  void throw_in(task_block& t, std::exception_ptr error);

  // A limit of some flow has passed: tells the task that is held up in it.
  void limit_passed(scope& limit);
  void limit_gone() { --due_limits_; }

  // Has v.look(v) called on the stack of a task, where it waits; at once if it
  // runs, not at all if it has no stack. Never suspends.
  void visit(task_block& t, visitor& v);

  // Never suspends. The circles of tasks that wait for each other; then what
  // each task does, and where it stands. As much as there is memory for.
  std::string report() noexcept;

  timer_wheels& timers() { return timers_; }
  bao::poller& poller() { return poller_; }
  list<task_block>& tasks() { return tasks_; }  // all but the main task
  nanoseconds turn_began() const { return now_; }
  // A random number, quick and not very good: xorshift (Marsaglia, 2003).
  std::uint32_t draw_lot() {
    lots_ ^= lots_ << 13;
    lots_ ^= lots_ >> 17;
    return lots_ ^= lots_ << 5;
  }
  // For virtual_time: there is another clock, and from now on all that is left
  // to chance follows from this number; 0: as usual.
  void shuffle(std::uint64_t how) {
    now_ = sys->now();
    timers_.restart(now_, how);
    lots_ = static_cast<std::uint32_t>(how) | 1;
    busy_calls_ = 0;
    look_at_ = 0;  // at the next turn
  }
  // Which turn this is: no two have the same number, and none goes on after the
  // thread has looked around. Other threads may ask.
  unsigned long turn() const { return turn_.load(std::memory_order_relaxed); }

  // The watch of a descriptor: what the poller reports is kept there.
  descriptor_watch*& watch_of(int fd);
  std::size_t watches() const { return watches_.size(); }  // up to which number
  // Wakes those who wait for it: the first in line for each direction, or all.
  void wake_first(descriptor_watch& w, readiness directions);
  void wake_all(descriptor_watch& w);

  // For a loop of somebody else's, which has the thread and lets us run:
  //
  //     for (;;) {
  //       std::vector<pollfd> fds;               // and those of the loop
  //       bao::deadline until = s.prepare(fds);
  //       poll(fds.data(), fds.size(), milliseconds(until));
  //       s.run_ready();
  //     }
  //
  // Adds what we wait for to `fds`, and says until when we can wait: not at all
  // when it has passed. Never suspends.
  deadline prepare(std::vector<pollfd>& fds);
  // Takes in what has happened, and suspends until every task that is ready
  // then has run once. Throws what interrupts us.
  void run_ready();

  // A way for other threads to reach this one, to be made here: see remote.hpp.
  class remote remote();

  // In a child process: the running task alone is left. See fork.hpp.
  void start_over();

  // While something may wake us from outside, to wait for it is no deadlock.
  // Counted by those who wait, and by those who may be waited for.
  int descriptor_waits = 0;
  int jobs = 0;
  int remotes = 0;
  // Of descriptor_waits, those of tasks that wake no other when they go on.
  int idle_waits = 0;
  onlooker* seen_by = nullptr;
  // Takes in what other threads have left; `last` when we end.
  void (*take_mail)(scheduler&, bool last) = nullptr;
  struct mailbox* mail = nullptr;
  list<in_flight> questions;

 private:
  friend class spawned_task;

  void stand_still(deadline until, const wait_reason& why);
  void let_others_run();
  task_block* pick();
  fiber* enter(task_block& next);
  void switch_to(task_block& next);
  static void* receive(void* message);
  void make_ready(task_block& t, task_block::cause why);
  static void ring_task(alarm& a, scheduler& s);
  fiber* finish(task_block& t);
  void end(task_block& t);
  void end_unstarted(task_block& t);
  void end_without_stack(task_block& t);

  // What is to be thrown in a task at its park, or would be if it ran.
  struct interruption {
    enum { none, a_kill, an_error, a_limit } what = none;
    scope* which = nullptr;
  };
  interruption due(task_block& t);
  // Nearly never: so what it costs to be sure is not paid each time.
  bool may_be_interrupted() const {
    return running_->kill_wanted || running_->thrown_in != nullptr ||
           due_limits_ != 0;
  }
  static int error_number(interruption i) {
    if (i.what == interruption::none) return 0;
    return i.what == interruption::a_limit ? ETIMEDOUT : ECANCELED;
  }
  bool handles_kill(task_block& t, fiber* leaf);
  void interrupt(task_block& t);
  void throw_interruption(task_block& t);
  // park() called on the flow of a task that has ended: by a callback.
  [[gnu::cold, gnu::noinline]] static bool refuse_to_wait(deadline until) {
    if (until.passed()) return false;
    throw std::logic_error("on_done: a callback must not wait");
  }

  // As nobody else writes it, it takes no locked instruction.
  unsigned long next_turn() {
    const unsigned long next = turn() + 1;
    turn_.store(next, std::memory_order_relaxed);
    return next;
  }
  void look_around(bool may_sleep);
  void choose_next();
  void report_ready(int fd, readiness ready);
  void declare_deadlock();
  [[noreturn]] void leave_child();

  // The path that an uncaught exception would take.
  static fiber* up(fiber* f) {
    if (f->lends) return f->link;
    f = f->killer != nullptr ? f->killer : f->link;
    return f != nullptr && f->leaf != nullptr ? f->leaf : f;
  }

  thread_state& thread_;
  task_block* running_;
  task_block* ready_ = nullptr;  // the first in line
  task_block** ready_end_ = &ready_;
  std::atomic<unsigned long> turn_{1};
  unsigned long look_at_ = 64;  // the poller is asked though tasks are ready
  unsigned turns_ = 64;         // from one such turn to the next
  int busy_calls_ = 0;  // that did not have to wait, since the last switch
  int due_limits_ = 0;
  std::uint32_t lots_ = 2463534242;
  nanoseconds now_ = 0;    // when the outside world was last looked at
  nanoseconds swept_ = 0;  // when stacks last gave memory back
  static constexpr nanoseconds sweep_pause = 50000000;
  timer_wheels timers_;
  list<task_block> tasks_;
  bao::poller poller_;
  std::vector<descriptor_watch*> watches_;
  unsigned long ids_ = 0;
  pid_t process_ = ::getpid();
  bool deadlocked_ = false;
  bool ending_ = false;

  // Unwinds what could not be unwound where it was let go of: on another
  // thread, or for want of a stack. That may have to wait, so it takes a task;
  // and as there must be one when there is no memory left, it is made in
  // advance, at the price of a page of memory.
  struct releasing_task final : task_block {
    bool busy = false;

    void begin(thread_state& t);
    fiber* run() noexcept override;
    void dispose() noexcept override {}
  } releaser_;

  task_block& main_;  // on its own, as handles may outlive us
};

// Whether this thread's tasks have ended. It has no destructor, so whatever is
// destroyed after all tasks may ask.
inline thread_local bool tasks_have_ended = false;

// Called once, before there is a task. Set by patch.hpp, which then warns of a
// patch that has no effect.
inline std::atomic<void (*)()> before_first_task{nullptr};

// Never suspends. This thread's; null when it has none.
inline scheduler* tasks_here() {
  const thread_state* const t = current_thread;
  return t == nullptr ? nullptr : t->tasks;
}

[[gnu::noinline]] inline scheduler& make_scheduler() {
  if (tasks_have_ended || (current_thread != nullptr && current_thread->ended))
    throw std::logic_error("bao: this thread has ended, and its tasks with it");
  if (auto* const tell = before_first_task.exchange(nullptr)) tell();
  static thread_local scheduler made(this_thread_state());
  return made;
}

// Never suspends. This thread's, made when there is none. Throws
// std::logic_error when the thread has ended, std::system_error when there is
// no poller, stack_exhausted.
inline scheduler& this_scheduler() {
  scheduler* const s = tasks_here();
  return s != nullptr ? *s : make_scheduler();
}

inline scheduler::scheduler(thread_state& t)
    : thread_(t), main_(*new task_block(t.main)) {
  try {
    releaser_.begin(t);
  } catch (...) {
    delete &main_;
    throw;
  }
  running_ = &main_;
  t.tasks = this;
  main_.home = &t;
  main_.parked_in = &t.main;
  t.add();
  main_.references = 1;
  main_.stage = task_state::running;
  main_.name = "main";
  main_.ring = ring_task;
  now_ = sys->now();
}

// --- park and wake -----------------------------------------------------------

// Makes a task the running one. Returns the flow in it to continue.
[[gnu::always_inline]] inline fiber* scheduler::enter(task_block& next) {
  running_ = &next;
  current_root = next.flow;
  return next.parked_in;
}

[[gnu::always_inline]] inline void scheduler::switch_to(task_block& next) {
  running_->parked_in = current_flow;
  void* message = switch_fiber(*current_flow, *enter(next)).message;
  // Whoever makes us run sends nothing along: what is sent is a visitor.
  while (__builtin_expect(message != nullptr, 0)) message = receive(message);
}

[[gnu::cold, gnu::noinline]] inline void* scheduler::receive(void* message) {
  auto& v = *static_cast<bao::visitor*>(message);
  v.look(v);
  return switch_fiber(*current_flow, *v.from).message;
}

inline void scheduler::visit(task_block& t, visitor& v) {
  if (&t == running_) return v.look(v);
  if (t.parked_in == nullptr) return;
  v.from = current_flow;
  switch_fiber(*current_flow, *t.parked_in, &v);
}

inline std::string scheduler::report() noexcept {
  std::string text;
  try {
    const auto tell = [&](task_block& t) {
      trace where;
      visit(t, where);
      text += "  " + describe(t, now_) + where.text();
    };
    text = describe_circles(main_, tasks_);
    tell(main_);
    for (task_block* t = tasks_.first(); t != nullptr; t = tasks_.after(*t))
      tell(*t);
    if (releaser_.busy) tell(releaser_);
  } catch (const std::bad_alloc&) {
  }
  return text;
}

// Returns when the running task is made ready and has its turn.
[[gnu::always_inline]] inline void scheduler::stand_still(
    deadline until, const wait_reason& why) {
  task_block& me = *running_;
  if (!until.is_never()) timers_.arm(me, until.at());
  me.stage = task_state::parked;
  me.why_woken = task_block::cause::none;
  me.waits_for = why;
  me.waits_since = now_;
  task_block* const next = pick();
  if (next != &me) switch_to(*next);
}

inline bool scheduler::park(deadline until, const wait_reason& why) {
  task_block& me = *running_;
  if (me.stage != task_state::running) return refuse_to_wait(until);
  meet_interruption();
  if (until.at() <= now_) return false;
  stand_still(until, why);
  if (deadlocked_ && &me == &main_) declare_deadlock();
  me.stage = task_state::running;
  if (me.why_woken == task_block::cause::late) return false;
  if (me.why_woken == task_block::cause::interrupted) meet_interruption();
  return true;
}

inline int scheduler::park_in_c(deadline until, const wait_reason& why) {
  task_block& me = *running_;
  if (const int error = interrupted_in_c()) {
    yield_in_c();
    return error;
  }
  if (until.at() <= now_) return ETIME;
  stand_still(until, why);
  if (deadlocked_ && &me == &main_) declare_deadlock();
  me.stage = task_state::running;
  if (me.why_woken == task_block::cause::late) return ETIME;
  if (me.why_woken == task_block::cause::interrupted) return interrupted_in_c();
  return 0;
}

inline bool scheduler::wake(task_block& t) {
  if (t.stage != task_state::parked) return false;
  make_ready(t, task_block::cause::woken);
  return true;
}

inline void scheduler::yield() {
  if (running_->stage != task_state::running) refuse_to_wait(never);
  meet_interruption();
  let_others_run();
}

[[gnu::always_inline]] inline void scheduler::let_others_run() {
  task_block& me = *running_;
  make_ready(me, task_block::cause::woken);
  task_block* const next = pick();
  if (next != &me) switch_to(*next);
  me.stage = task_state::running;
}

// The first cause wins: its alarm is off from now on.
inline void scheduler::make_ready(task_block& t, task_block::cause why) {
  t.cancel();
  t.stage = task_state::ready;
  t.why_woken = why;
  t.next_ready = nullptr;
  *ready_end_ = &t;
  ready_end_ = &t.next_ready;
}

// The next task to run, taken out of the line. It may be the one that asks.
inline task_block* scheduler::pick() {
  busy_calls_ = 0;
  if (next_turn() >= look_at_) look_around(false);
  for (;;) {
    task_block* const t = ready_;
    if (t == nullptr) {
      look_around(true);
      continue;
    }
    ready_ = t->next_ready;
    if (ready_ == nullptr) {
      ready_end_ = &ready_;
    } else {
      // Its turn comes next. What it will need of its stack is fetched until
      // then, as its block has been since the turn before: where there are
      // thousands, no cache holds either.
      __builtin_prefetch(ready_->top());
      if (task_block* const after = ready_->next_ready) {
        __builtin_prefetch(after);
        __builtin_prefetch(&after->next_ready);
        __builtin_prefetch(&after->waits_since);
      }
    }
    if (t->parked_in != nullptr) return t;
    if (t->life == flow_state::finished) {  // killed before it had its turn
      t->release();
      continue;
    }
    try {
      t->start(thread_, t->stack_size);
      t->parked_in = t;
      return t;
    } catch (...) {
      t->error = std::current_exception();
    }
    end_without_stack(*t);
  }
}

// --- the outside world -------------------------------------------------------

// Takes in what has happened outside: timers that are due, descriptors that are
// ready, what other threads have left. While tasks are ready this is done every
// so many turns, so that it happens every 50 to 200 microseconds: a busy server
// shall meet several events at a time.
inline void scheduler::look_around(bool may_sleep) {
  const nanoseconds before = now_;
  if (may_sleep && main_.stage == task_state::done && tasks_.empty())
    leave_child();
  if (thread_.released.load() != nullptr && !releaser_.busy &&
      wake(releaser_)) {
    releaser_.busy = true;
    may_sleep = false;
  }
  const bool others = remotes != 0 || jobs != 0;
  const bool timed = may_sleep && !timers_.empty();
  if (may_sleep && !timed && !others && descriptor_waits == idle_waits) {
    deadlocked_ = true;
    if (main_.stage == task_state::done) leave_child();
    if (main_.stage != task_state::parked) die("nobody is left to run");
    return make_ready(main_, task_block::cause::interrupted);
  }
  const nanoseconds until = timed ? timers_.next() : 0;
  nanoseconds sleep = may_sleep ? -1 : 0;
  if (timed) sleep = sys->may_sleep(until, jobs != 0);
  if (sleep != 0 && now_ - swept_ > sweep_pause) {
    swept_ = now_;
    thread_.stacks.sweep();
  }
  if (sleep != 0 && seen_by != nullptr) seen_by->sleeps();
  bool anything = false;
  if (may_sleep || others || descriptor_waits != 0) {
    try {
      poller_.wait(sleep, [&](int fd, readiness ready) {
        anything = true;
        report_ready(fd, ready);
      });
    } catch (const std::exception& e) {  // nobody's fault, and no way to go on
      die(e.what());
    }
    if (take_mail != nullptr) take_mail(*this, false);
  }
  if (timed && sleep >= 0 && !anything && ready_ == nullptr)
    sys->slept_until(until);
  now_ = sys->now();
  while (timer* const t = timers_.take(now_)) {
    auto& due = static_cast<alarm&>(*t);
    due.ring(due, *this);
  }
  if (!may_sleep) {
    const nanoseconds passed = now_ - before;
    if (passed < 50000 && turns_ < 512) turns_ *= 2;
    if (passed > 200000)  // at once: the next ones may take seconds
      turns_ = static_cast<unsigned>(turns_ * nanoseconds{200000} / passed) | 1;
  }
  look_at_ = next_turn() + turns_;
  if (seen_by != nullptr) seen_by->awake();
  if (sys->chooses()) choose_next();
}

// In tests: any ready task may be the next one.
[[gnu::cold]] inline void scheduler::choose_next() {
  look_at_ = turn() + 1;
  std::size_t ready = 0;
  for (task_block* t = ready_; t != nullptr; t = t->next_ready) ++ready;
  if (ready == 0) return;
  task_block** link = &ready_;
  for (std::size_t skip = sys->choose(ready); skip > 0; --skip)
    link = &(*link)->next_ready;
  task_block* const chosen = *link;
  *link = chosen->next_ready;
  if (*link == nullptr) ready_end_ = link;
  chosen->next_ready = ready_;
  if (ready_ == nullptr) ready_end_ = &chosen->next_ready;
  ready_ = chosen;
}

inline deadline scheduler::prepare(std::vector<pollfd>& fds) {
  poller_.prepare(fds);
  if (seen_by != nullptr) seen_by->sleeps();
  if (ready_ != nullptr || thread_.released.load() != nullptr) return at_once;
  if (timers_.empty()) return never;
  return clock::time_point(clock::duration(timers_.next()));
}

inline void scheduler::run_ready() {
  look_around(false);
  yield();
}

inline descriptor_watch*& scheduler::watch_of(int fd) {
  return entry_of(watches_, fd);
}

inline void scheduler::wake_first(descriptor_watch& w, readiness directions) {
  for (auto* one = w.waiters.first(); one != nullptr && directions;
       one = w.waiters.after(*one)) {
    if (one->want & directions) wake(*one->task);
    directions = directions.without(one->want);
  }
}

inline void scheduler::wake_all(descriptor_watch& w) {
  for (auto* one = w.waiters.first(); one != nullptr;
       one = w.waiters.after(*one))
    wake(*one->task);
}

// The first in line wakes the next one when it is through; of a descriptor that
// we do not own, all look for themselves.
inline void scheduler::report_ready(int fd, readiness ready) {
  descriptor_watch* const w = watch_of(fd);
  if (w == nullptr) return poller_.forget(fd);
  w->ready = w->ready | ready;
  if (w->owned)
    wake_first(*w, ready);
  else
    wake_all(*w);
}

// --- interruptions -----------------------------------------------------------
//
// What may interrupt a task depends on the path that an exception would take
// from where it waits: the scopes on it, from the inside out. Somewhere on it a
// shield, or a destructor that runs because of an exception, may hold back all
// that was opened outside of it; of the limits that are left, the outermost is
// thrown, as the inner ones will be passed by it anyway.

inline scheduler::interruption scheduler::due(task_block& t) {
  fiber* const leaf = &t == running_ ? current_flow : t.parked_in;
  interruption found;
  for (fiber* f = leaf; f != nullptr; f = up(f)) {
    const unsigned unwinding =
        f == current_flow ? current_exceptions->uncaught : f->handling.uncaught;
    for (scope* s = f->scopes; s != nullptr; s = s->outer_) {
      if (s->unwinding_ < unwinding || s->shields_) return found;
      if (s->passed_) found = {interruption::a_limit, s};
    }
    if (unwinding != 0 || f->cleaning) return found;
  }
  if (t.kill_wanted && (t.kill_is_new || !handles_kill(t, leaf)))
    return {interruption::a_kill};
  if (t.thrown_in != nullptr && found.what == interruption::none)
    return {interruption::an_error};
  return found;
}

// Whether the task is in the handler that has caught its kill. The C++ runtime
// tells this of the running flow only: so what another one is handling is put
// in the place of ours for a moment. A handler within that handler hides it:
// there, the kill is met again.
inline bool scheduler::handles_kill(task_block& t, fiber* leaf) {
  if (t.kill_thrown == nullptr) return false;
  const exceptions_in_flight ours = *current_exceptions;
  bool handles = false;
  for (fiber* f = leaf; f != nullptr && !handles; f = up(f)) {
    if (f != current_flow) *current_exceptions = f->handling;
    handles = std::current_exception() == t.kill_thrown;
    *current_exceptions = ours;
  }
  return handles;
}

inline void scheduler::interrupt(task_block& t) {
  if (t.stage == task_state::parked && due(t).what != interruption::none)
    make_ready(t, task_block::cause::interrupted);
}

inline void scheduler::kill(task_block& t) {
  if (&t == &main_)
    throw std::logic_error("kill: the main task cannot be killed");
  if (t.stage == task_state::done) return;
  t.kill_wanted = t.kill_is_new = true;
  if (t.flow->life != flow_state::created) return interrupt(t);
  t.ended_by_kill = true;
  end_unstarted(t);
}

inline void scheduler::throw_in(task_block& t, std::exception_ptr error) {
  if (error == nullptr) throw std::invalid_argument("throw_in: no exception");
  if (t.stage == task_state::done) return;
  if (t.flow->life == flow_state::created) {
    t.error = std::move(error);
    return end_unstarted(t);
  }
  t.thrown_in = std::move(error);
  interrupt(t);
}

inline void scheduler::limit_passed(scope& limit) {
  // The task that is held up in it, if any: a generator that nobody has resumed
  // is on nobody's path.
  fiber* f = limit.flow_;
  task_block* held_up = nullptr;
  while (!(f->lends && f->leaf != nullptr)) {
    fiber* const next = f->lends || f->killer == nullptr ? f->link : f->killer;
    if (next == nullptr) {
      held_up = static_cast<task_block*>(f->owner);
      break;
    }
    f = next;
  }
  // It was dropped where it stood, by start_over(): nobody will take it back.
  if (held_up != nullptr && held_up->stage == task_state::done) {
    limit.passed_ = false;
    return;
  }
  ++due_limits_;
  if (held_up != nullptr) interrupt(*held_up);
}

[[gnu::noinline]] inline void scheduler::throw_interruption(task_block& t) {
  const interruption i = due(t);
  switch (i.what) {
    case interruption::none:
      return;
    case interruption::a_limit:
      i.which->passed_ = false;
      --due_limits_;
      throw timed_out(i.which);
    case interruption::an_error:
      std::rethrow_exception(std::exchange(t.thrown_in, nullptr));
    case interruption::a_kill:
      break;
  }
  if (!std::exchange(t.kill_is_new, false)) {
    // It has been swallowed. The others go first, so that a loop which does
    // nothing but swallow cannot keep the thread.
    if (++t.kill_refusals == 1)
      std::fprintf(stderr, "bao: %s swallowed bao::killed, and gets it again\n",
                   title_and_place(t).c_str());
    if (ending_ && t.kill_refusals > 16)
      die(title_and_place(t).c_str(), " does not end, though its thread does");
    let_others_run();
  }
  t.kill_thrown = std::make_exception_ptr(killed(t.flow));
  std::rethrow_exception(t.kill_thrown);
}

// Nothing that could wake anybody is left. The error is thrown in the main
// task, as an error there is the program's own. Where it cannot be (in a
// shield, in a destructor that runs because of an exception, after main()) the
// program ends with the same text.
inline void scheduler::declare_deadlock() {
  deadlocked_ = false;
  main_.stage = task_state::parked;  // as it was
  std::string text = "deadlock";
  try {
    text += ": nothing can wake any of these tasks\n" + report();
  } catch (const std::bad_alloc&) {
  }
  main_.stage = task_state::running;
  try {
    throw deadlock(text);
  } catch (...) {  // for want of memory, it may be another
    main_.thrown_in = std::current_exception();
  }
  if (ending_ || due(main_).what == interruption::none) die(text.c_str());
}

// --- beginning and ending ----------------------------------------------------

inline void scheduler::add(task_block& t, deadline start) {
  t.id = ++ids_;
  t.home = &thread_;
  thread_.add();
  t.root = &t;
  ++t.references;  // ours, until it has ended
  tasks_.push_back(t);
  t.ring = ring_task;
  if (start.passed())
    make_ready(t, task_block::cause::woken);
  else if (!start.is_never())
    timers_.arm(t, start.at());
  if (ending_) wake(main_);
}

// A task's time is up: to begin, or to wait no longer.
inline void scheduler::ring_task(alarm& a, scheduler& s) {
  s.make_ready(static_cast<task_block&>(a), task_block::cause::late);
}

// Called on the stack of a task whose body has ended. Returns who goes on.
inline fiber* scheduler::finish(task_block& t) {
  end(t);
  t.life = flow_state::finished;
  t.release();
  current_flow = &thread_.main;  // the task may be gone
  running_ = &main_;
  return enter(*pick());
}

inline void scheduler::end(task_block& t) {
  t.stage = task_state::done;
  t.leave();
  t.kill_thrown = t.thrown_in = nullptr;
  while (!t.watchers.empty()) {
    completion& c = t.watchers.front();
    c.leave();
    c.ended(c, t);
  }
  if (ending_ && tasks_.empty()) wake(main_);
}

inline void scheduler::end_unstarted(task_block& t) {
  // The one that stands in line for its first turn stays there until pick()
  // meets it: to search the line would be slow.
  if (t.stage == task_state::ready) ++t.references;
  t.cancel();
  t.unwind();
  end(t);
  t.release();
}

// Called by whoever looks for the next task, on a stack whose own flow may be
// gone: no place to unwind what this one was given, a generator, say, whose end
// may have to wait. So that is left for later. Callbacks that are told of its
// end find themselves on its flow.
[[gnu::cold]] inline void scheduler::end_without_stack(task_block& t) {
  fiber* const flow = current_flow;
  fiber* const root = current_root;
  current_flow = current_root = &t;
  t.life = flow_state::running;
  end(t);
  t.life = flow_state::created;
  current_flow = flow;
  current_root = root;
  t.orphan = true;
  t.release_later();
}

inline void scheduler::releasing_task::begin(thread_state& t) {
  start(t);
  references = 1;
  root = this;
  parked_in = this;
  stage = task_state::parked;
  cleaning = true;  // which nothing interrupts
  name = "releasing";
  ring = ring_task;
}

inline fiber* scheduler::releasing_task::run() noexcept {
  scheduler& s = *home->tasks;
  id = ++s.ids_;  // what it destroys may hold locks
  stage = task_state::running;
  while (busy) {
    home->take_back();
    drop_locals();
    busy = false;
    if (s.ending_) s.wake(s.main_);
    s.park(never, {"nothing to release"});
  }
  return s.finish(*this);
}

// The others do not exist in the child: their threads of control have not come
// along, and what they own is the parent's to destroy. So they are dropped as
// they stand, and count as killed.
inline void scheduler::start_over() {
  process_ = ::getpid();
  ready_ = nullptr;
  ready_end_ = &ready_;
  const auto drop = [](task_block& t) {
    t.cancel();
    t.leave();
    t.stage = task_state::done;
    t.ended_by_kill = true;
  };
  task_block* const me = running_;
  for (task_block* t = tasks_.first(); t != nullptr;) {
    task_block& one = *t;
    t = tasks_.after(one);
    if (&one != me) drop(one);
  }
  if (&main_ != me) drop(main_);
  for (descriptor_watch*& w : watches_) {
    if (w == nullptr) continue;
    w->waiters.clear();
    if (!w->owned) w = nullptr;
  }
  descriptor_waits = idle_waits = jobs = 0;
  questions.clear();
  seen_by = nullptr;
  if (me != &releaser_ && std::exchange(releaser_.busy, false)) drop(releaser_);
  using type = bao::poller;
  thread_.tasks = nullptr;  // a patched close() must not tell what is going
  poller_.~type();          // closes our duplicates; the parent's are its own
  new (&poller_) type;
  thread_.tasks = this;
}

// The task that forked has ended, and nobody else is here: so the child does,
// as a process does when its last thread has.
inline void scheduler::leave_child() {
  if (!tasks_.empty())
    die("deadlock in a child process: nothing can wake any of these tasks\n",
        report().c_str());
  std::exit(0);
}

inline scheduler::~scheduler() {
  // Unless exit() was called in a task: then nothing is unwound, as we stand
  // on one of the stacks, and the main task will not go on.
  if (running_ == &main_) {
    ending_ = true;
    std::size_t left = 0;
    for (task_block* t = tasks_.first(); t != nullptr; t = tasks_.after(*t))
      ++left;
    for (; left > 0 && !tasks_.empty(); --left) {
      task_block& t = tasks_.front();  // each once, whatever it was told before
      tasks_.push_back(t);
      kill(t);
    }
    // Then those that they spawn while they end.
    while (thread_.take_back(), !tasks_.empty() || releaser_.busy) {
      task_block* t = tasks_.first();
      while (t != nullptr && t->kill_wanted) t = tasks_.after(*t);
      if (t != nullptr)
        kill(*t);
      else
        park(never, {"waiting for the tasks that are left"});
    }
    main_.drop_locals();
    if (wake(releaser_)) let_others_run();  // it ends
    while (ready_ != nullptr)               // killed before their turn
      std::exchange(ready_, ready_->next_ready)->release();
  }
  if (seen_by != nullptr) seen_by->ends();
  // Before helpers learn that we have ended: then they take none out.
  questions.clear();
  if (take_mail != nullptr) take_mail(*this, true);
  for (descriptor_watch* w : watches_)
    if (w != nullptr && w->parted.exchange(true)) delete w;
  thread_.tasks = nullptr;
  thread_.ended = tasks_have_ended = true;
  thread_.main.owner = nullptr;
  main_.release();
}

}  // namespace BAO_ABI
}  // namespace bao
