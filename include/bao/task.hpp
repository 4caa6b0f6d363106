// bao/task.hpp - what is known of a task
//
// A task is a flow that the scheduler runs. Here is only what there is to know
// about one; what is done with it is the scheduler's business.
//
//                 spawn        run          park
//        created ------> ready ---> running ----> parked
//                          ^                        |
//                          '------------------------'    running ---> done
//                                    wake
//
// A task may have more than one stack: its coroutines, and the generators that
// it resumes. When it parks, all of that stands still, and `parked_in`
// remembers which of them it was that really waits.
//
// A parked task takes a page of stack at least, and about 0.5 KiB of control
// block.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <exception>
#include <string>
#include <utility>

#include "bao/coroutine.hpp"
#include "bao/list.hpp"
#include "bao/timers.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

enum class task_state { created, ready, parked, running, done };

class task_block;

// Called when a task has ended. Lies with whoever wants to know.
struct completion : list_node<completion> {
  void (*ended)(completion&, task_block&) = nullptr;
};

// A timer that does something when it is due.
struct alarm : timer {
  void (*ring)(alarm&, class scheduler&) = nullptr;
};

// What some task has, and others may wait for: a lock, or its own end.
struct holding {
  const char* what;  // the name of the lock; null: its end
  long task = -1;    // -1: nobody has it
};

// What a parked task waits for, for those who ask.
struct wait_reason {
  const char* what;  // "sleeping", "joining task", "reading descriptor"
  long number = -1;  // of that task, that descriptor; -1: there is none
  const holding* held = nullptr;  // by whom, if that can be told
};

// A value that some task_local has in a task (local.hpp).
struct local_value {
  explicit local_value(unsigned long of) : key(of) {}
  virtual ~local_value() = default;

  const unsigned long key;
  local_value* next = nullptr;
};

// A time limit on a block of code, or a shield against interruptions. It
// belongs to the flow that opened it and holds for whatever that one waits for.
class scope {
 public:
  explicit scope(bool shields);
  scope(const scope&) = delete;

 protected:
  ~scope();

  bool passed_ = false;  // a limit, and nobody was told yet

 private:
  friend class scheduler;

  fiber* flow_;
  scope* outer_;
  unsigned unwinding_;  // exceptions in flight in the flow when it was opened
  bool shields_;
};

// A task stands in the list of all tasks, and it is the alarm that ends its
// wait.
class task_block : public fiber, public list_node<task_block>, public alarm {
 public:
  using list_node<task_block>::leave;  // the list, that is, not the wheels

  enum class cause { none, woken, late, interrupted };

  explicit task_block(fiber& first_flow) : flow(&first_flow) {
    first_flow.owner = this;
  }
  task_block() : task_block(static_cast<fiber&>(*this)) {}

  // Destroys what it has in task_locals, the latest first. That may suspend.
  void drop_locals() noexcept {
    while (locals != nullptr) delete std::exchange(locals, locals->next);
  }

  const char* kind() const noexcept override { return "task"; }
  const char* title() const noexcept override { return name.c_str(); }
  unsigned long number() const noexcept override { return id; }

  // First what it takes to park, to be woken and to run again. Of thousands of
  // tasks no cache holds the blocks, and so two lines of memory have to be
  // fetched for a turn beside that of the context, and not five.
  fiber* const flow;  // its first: this, but for the thread's main task
  fiber* parked_in = nullptr;  // the flow in it that waits, once it has begun
  task_block* next_ready = nullptr;
  task_state stage = task_state::created;
  cause why_woken = cause::none;
  std::exception_ptr thrown_in;  // to be thrown at its next park, once
  bool kill_wanted = false;      // until it has ended
  bool kill_is_new = false;      // not thrown yet
  int kill_refusals = 0;         // how often it was thrown and swallowed
  wait_reason waits_for{""};
  nanoseconds waits_since = 0;

  std::exception_ptr kill_thrown;
  std::exception_ptr error;  // that ended it
  bool ended_by_kill = false;
  bool asked = false;       // somebody wanted to know of the error
  bool background = false;  // join_all() does not wait for it
  int unpatched = 0;        // how many patch_off it is in
  list<completion> watchers;
  local_value* locals = nullptr;

  unsigned long id = 0;
  std::size_t stack_size = default_stack_size;
  std::string name;
  const char* file = "";  // where it was spawned
  int line = 0;
};

inline scope::scope(bool shields)
    : flow_(this_flow()),
      outer_(flow_->scopes),
      unwinding_(current_exceptions->uncaught),
      shields_(shields) {
  flow_->scopes = this;
}

inline scope::~scope() {
  // Nearly always the innermost; but limits on the heap may go in any order.
  scope** link = &flow_->scopes;
  while (*link != this) link = &(*link)->outer_;
  *link = outer_;
}

}  // namespace BAO_ABI
}  // namespace bao
