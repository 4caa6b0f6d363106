// bao/report.hpp - who is stuck, and on what
//
// The commonest question about a program that waits is why it does. Every park
// says what for, so the answer is one line a task:
//
//     task 3 "reader" (server.cpp:4) is parked: reading descriptor 7, for 1.2 s
//
// That costs a few stores a park, and no look at the clock: the seconds count
// from when the scheduler last took one.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <new>
#include <string>

#include "bao/task.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

inline std::string describe(const task_block& t, nanoseconds now) {
  std::string text = "task " + std::to_string(t.id);
  if (!t.name.empty()) text += " \"" + t.name + '"';
  if (t.line != 0)
    text += " (" + std::string(t.file) + ':' + std::to_string(t.line) + ')';
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
  char since[32];
  std::snprintf(since, sizeof since, ", for %.1f s",
                static_cast<double>(now - t.waits_since) * 1e-9);
  return text + since;
}

// A line for every task in the list, each with an end of line: as many as there
// is memory for.
inline std::string describe(list<task_block>& tasks, nanoseconds now) noexcept {
  std::string text;
  try {
    for (task_block* t = tasks.first(); t != nullptr; t = tasks.after(*t))
      text += "  " + describe(*t, now) + '\n';
  } catch (const std::bad_alloc&) {
  }
  return text;
}

}  // namespace BAO_ABI
}  // namespace bao
