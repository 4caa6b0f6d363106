// bao/report.hpp - who is stuck, and on what
//
// When a program hangs, the question is who waits, and for what. Every park
// says what for, so the answer is one line a task:
//
//     task 3 "reader" (server.cpp:4) is parked: reading descriptor 7, for 1.2 s
//     task 4 (server.cpp:9) is parked: locking mutex, held by task 3, for 0.1 s
//
// Behind it stands how far down it is on its stack, and the functions that it
// is in; and where tasks wait for each other in a circle, that is spelled out.
// All this costs a few stores a park, and no look at the clock: the seconds
// count from when the scheduler last took one.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "bao/task.hpp"

#if defined(__GLIBC__)
#include <execinfo.h>
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Something to be done on the stack of a task that stands still: see visit().
struct visitor {
  void (*look)(visitor&) = nullptr;  // must neither throw nor switch
  fiber* from = nullptr;
};

// Where a task stands: a visitor that looks at the stack it is on.
struct trace : visitor {
  void* places[100];  // innermost first
  int depth = 0;
  std::size_t stack_used = 0;
  std::size_t stack_size = 0;  // 0: the thread's own, of which we know nothing

  trace() {
#if defined(__GLIBC__)
    ::backtrace(places, 1);  // now: the first call takes much stack
#endif
    look = [](visitor& v) {
      auto& me = static_cast<trace&>(v);
      const stack* const s = current_flow->memory;
      const auto here = static_cast<char*>(__builtin_frame_address(0));
      // A signal handler may have another one.
      if (s != nullptr && s->low < here && here < s->low + s->size) {
        me.stack_used = static_cast<std::size_t>(s->low + s->size - here);
        me.stack_size = s->size;
        if (here - s->low < 4096) return;  // it could overflow for our sake
      }
#if defined(__GLIBC__)
      me.depth = ::backtrace(me.places, 100);
#endif
    };
  }

  // How far down it is on its stack, to the end of the line; then a line for
  // each function, but ours that park and look. Shorter for want of memory.
  std::string text() const noexcept {
    char use[64] = "\n";
    if (stack_size != 0)
      std::snprintf(use, sizeof use, ", on %.1f of %zu KiB of stack\n",
                    static_cast<double>(stack_used) / 1024, stack_size / 1024);
    std::string told;
    try {
      told = use;
#if defined(__GLIBC__)
      const struct freed {
        char** lines;
        ~freed() { std::free(lines); }
      } names{::backtrace_symbols(places, depth)};
      bool ours = true, named = depth == 0;
      for (int i = 0; names.lines != nullptr && i < depth; ++i) {
        std::string line = names.lines[i];  // file(symbol+offset) [address]
        const std::size_t begin = line.find('(') + 1;
        const std::size_t to = line.find('+', begin);
        if (begin != 0 && to != std::string::npos && to != begin)
          line.replace(begin, to - begin,
                       demangle(line.substr(begin, to - begin).c_str()));
        const auto is_of = [&](const char* scope) {
          return line.rfind(scope, begin) == begin;
        };
        named = named || is_of("bao::");
        ours = ours && (is_of("bao::scheduler::") || is_of("bao::trace::"));
        if (!ours) told += "    " + line + '\n';
      }
      if (!named && stack_size == 0)  // the main task's: to say it once will do
        told += "    (link with -rdynamic for names)\n";
#endif
    } catch (const std::bad_alloc&) {
    }
    return told;
  }
};

inline std::string title(const task_block& t) {
  std::string text = "task " + std::to_string(t.id);
  if (!t.name.empty()) text += " \"" + t.name + '"';
  return text;
}

// The same, and where it was spawned.
inline std::string title_and_place(const task_block& t) {
  std::string text = title(t);
  if (t.line != 0)
    text += " (" + std::string(t.file) + ':' + std::to_string(t.line) + ')';
  return text;
}

// The same, without memory: also for signal handlers.
inline void title_and_place(const task_block& t, char (&text)[400]) {
  const int n = std::snprintf(
      text, 150, t.name.empty() ? "task %lu" : "task %lu \"%.120s\"", t.id,
      t.name.c_str());
  if (t.line != 0) std::snprintf(text + n, 250, " (%.230s:%d)", t.file, t.line);
}

inline std::string describe(const task_block& t, nanoseconds now) {
  std::string text = title_and_place(t);
  switch (t.stage) {
    case task_state::created:
      return text + " has not started";
    case task_state::ready:
      return text + " is ready";
    case task_state::running:
      return text + " is running";
    case task_state::done:
      return text + " has ended";
    case task_state::parked:
      break;
  }
  text += " is parked: " + std::string(t.waits_for.what);
  if (t.waits_for.number != -1)
    text += ' ' + std::to_string(t.waits_for.number);
  if (const holding* held = t.waits_for.held; held != nullptr && held->what) {
    text += ' ' + std::string(held->what);
    if (held->task != -1)
      text += ", held by task " + std::to_string(held->task);
  }
  char since[32];
  std::snprintf(since, sizeof since, ", for %.1f s",
                static_cast<double>(now - t.waits_since) * 1e-9);
  return text + since;
}

// Every circle of tasks that wait for each other, a line for each: "task 1
// holds m1, waits for m2; task 2 holds m2, waits for m1".
inline std::string describe_circles(task_block& main_task,
                                    list<task_block>& tasks) {
  struct stop {
    const task_block* task;
    stop* next;  // who has what it waits for, if that can be told
    std::size_t walk;
  };
  std::vector<stop> all;  // by number, as the list is
  all.push_back({&main_task, nullptr, 0});
  for (task_block* t = tasks.first(); t != nullptr; t = tasks.after(*t))
    all.push_back({t, nullptr, 0});
  for (stop& s : all) {
    const holding* const held = s.task->waits_for.held;
    if (s.task->stage != task_state::parked || held == nullptr) continue;
    const auto at = std::lower_bound(
        all.begin(), all.end(), held->task, [](const stop& other, long id) {
          return static_cast<long>(other.task->id) < id;
        });
    if (at != all.end() && static_cast<long>(at->task->id) == held->task)
      s.next = &*at;
  }
  std::string text;
  std::size_t walk = 0;
  for (stop& begin : all) {
    ++walk;  // from task to task, until there is no next or we have been there
    stop* here = &begin;
    for (; here != nullptr && here->walk == 0; here = here->next)
      here->walk = walk;
    if (here == nullptr || here->walk != walk) continue;
    // On this very walk: a circle. The lowest number comes first.
    const stop* last = here;
    for (const stop* s = here->next; s != here; s = s->next)
      if (s->next < last->next) last = s;
    const char* has = last->task->waits_for.held->what;
    const stop* s = last;
    do {
      text += s == last ? "  " : "; ";
      s = s->next;
      text += title(*s->task);
      if (has != nullptr) text += " holds " + std::string(has) + ',';
      const char* const wants = s->task->waits_for.held->what;
      text += " waits for ";
      text += wants != nullptr ? wants : title(*s->next->task);
      has = wants;
    } while (s != last);
    text += '\n';
  }
  return text;
}

}  // namespace BAO_ABI
}  // namespace bao
