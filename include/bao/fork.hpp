// bao/fork.hpp - what a child process begins with
//
// fork() copies the process, and one thread of it: the one that calls. Within
// that thread bao does the same. The child has the task that called fork() and
// no other; the rest stay with the parent, and so do their sockets, their
// timers and the objects on their stacks: no destructor of theirs runs in the
// child. To the child their handles show tasks that were killed.
//
//     parent    main   task 1   task 2 --- fork() --->   main   task 1   task 2
//                                            |
//     child                                  '------------------------> task 2
//
// The child gets a poller, doorbells and helper threads of its own, since
// what it has copied is the parent's: to touch that would steal its events.
// For the same reason remotes made before lead nowhere in the child. When its
// task ends and no other is there, the child exits with status 0; most children
// call exec() or _exit() long before.
//
// It costs nothing until somebody forks, and then some system calls.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <pthread.h>

#include <exception>

#include "bao/offload.hpp"
#include "bao/signal.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Called in the child, by the thread that has forked.
inline void start_over_in_child() {
  try {
    signals.start_over();
    scheduler* const s = tasks_here();
    if (s == nullptr) return;
    mailbox::start_over(*s);
    s->start_over();
  } catch (const std::exception& e) {  // fork() itself is C
    die("fork: ", e.what());
  }
}

// In every program, when it starts.
inline const bool ready_to_fork = [] {
  ::pthread_atfork(nullptr, nullptr, start_over_in_child);
  return true;
}();

}  // namespace BAO_ABI
}  // namespace bao
