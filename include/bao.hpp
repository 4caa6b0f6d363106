// bao.hpp - the table of contents
//
// bao gives C++17 what Python programmers get from yield, greenlet and gevent:
// write plain blocking-looking code, and one thread serves a thousand sockets.
// The chapters below are in reading order, and none knows anything of a later
// one.
//
// SPDX-License-Identifier: MIT
#pragma once

// I. Switching: flows with stacks of their own, on one thread
#include "bao/config.hpp"     // what was chosen when compiling
#include "bao/error.hpp"      // what can go wrong
#include "bao/libc.hpp"       // libc's own calls, behind any patch
#include "bao/context.hpp"    // save one flow, continue another
#include "bao/stack.hpp"      // memory to run on, with a guard at its end
#include "bao/fiber.hpp"      // a flow with a stack and an exception state
#include "bao/coroutine.hpp"  // symmetric switching, values both ways
#include "bao/generator.hpp"  // yield, send, throw, close
#include "bao/pipeline.hpp"   // generators joined by |

// II. Waiting: what a scheduler needs to know of the world
#include "bao/list.hpp"    // intrusive lists whose members leave by themselves
#include "bao/system.hpp"  // the one seam through which the system is asked
#include "bao/time.hpp"    // one clock, deadlines
#include "bao/timers.hpp"  // what is due next
#include "bao/poller.hpp"  // epoll, poll or select: which descriptors are ready

// III. Scheduling: who runs next
#include "bao/task.hpp"        // what is known of a task
#include "bao/report.hpp"      // who is stuck, and on what
#include "bao/scheduler.hpp"   // park and wake
#include "bao/wait_queue.hpp"  // a line of parked tasks
#include "bao/spawn.hpp"       // spawn, join, get, kill
#include "bao/timeout.hpp"     // a limit on a block of code

// IV. Cooperating: what tasks do for each other
#include "bao/sync.hpp"     // events, semaphores, locks
#include "bao/channel.hpp"  // values from task to task
#include "bao/group.hpp"    // tasks that belong together
#include "bao/local.hpp"    // one value a task

// V. The outside world
#include "bao/remote.hpp"   // wake a thread's tasks from other threads
#include "bao/offload.hpp"  // threads for what must block
#include "bao/look_up.hpp"  // questions to the system's resolver
#include "bao/io.hpp"       // own a descriptor, wait for it
#include "bao/stream.hpp"   // bytes in and out of a descriptor
#include "bao/select.hpp"   // whatever comes first
#include "bao/socket.hpp"   // addresses, TCP, UDP, unix sockets
#include "bao/server.hpp"   // a task for each connection
#include "bao/signal.hpp"   // wait for a signal, or have it handled
#include "bao/fork.hpp"     // what a child process begins with
#include "bao/process.hpp"  // run other programs

// VI. Optional
#include "bao/virtual_time.hpp"  // tests that sleep take no time, and replay
#include "bao/hook.hpp"          // libc's blocking calls, for tasks
#include "bao/hook_wait.hpp"     // its other ways to wait
#include "bao/hook_names.hpp"    // its look-ups of names
#include "bao/hook_sync.hpp"     // its locks between threads
#include "bao/patch.hpp"         // every library calls those
#include "bao/debug.hpp"         // ask who waits, and where
#include "bao/watchdog.hpp"      // who keeps the thread

// Nothing private survives, but for what BAO_PATCH_ALL() and BAO_PATCH_SYNC()
// are made of.
#undef BAO_ABI
#undef BAO_ABI_POLLER
#undef BAO_ABI_SWITCH
#undef BAO_ABI_TOOL
#undef BAO_ASAN
#undef BAO_TSAN
#undef BAO_NAME
#undef BAO_PASTE
#undef BAO_QUOTE
#undef BAO_STRING
