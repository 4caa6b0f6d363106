// 08_timeout_and_kill.cpp - when something takes too long
//
// A timeout limits whatever a block of code waits for, in however deep a call.
// A kill ends a task from outside. Both arrive as an exception, at the place
// where the task waits: so destructors run and nothing is left behind.
#include "bao.hpp"

#include <chrono>
#include <cstdio>

using namespace std::chrono_literals;

struct table {
  table() { std::printf("  the table is laid\n"); }
  ~table() { std::printf("  the table is cleared\n"); }
};

int dine(std::chrono::milliseconds how_long) {
  table ours;
  bao::sleep(how_long);
  std::printf("  everybody is full\n");
  return 3;  // courses
}

int main() {
  std::printf("a limit on a block\n");
  try {
    bao::timeout limit(20ms);
    dine(10s);
  } catch (const bao::timed_out&) {
    std::printf("  too late\n");
  }

  std::printf("the same in one expression\n");
  if (!bao::with_timeout(20ms, [] { return dine(10s); }))
    std::printf("  too late\n");
  if (auto courses = bao::with_timeout(10s, [] { return dine(20ms); }))
    std::printf("  in time: %d courses\n", *courses);

  std::printf("a kill\n");
  auto dinner = bao::spawn(dine, 10s);
  bao::sleep(20ms);  // it begins
  dinner.kill();     // waits until it has ended
  std::printf("  killed: %s\n", dinner.killed() ? "yes" : "no");
}
// Prints:
//   a limit on a block
//     the table is laid
//     the table is cleared
//     too late
//   the same in one expression
//     the table is laid
//     the table is cleared
//     too late
//     the table is laid
//     everybody is full
//     the table is cleared
//     in time: 3 courses
//   a kill
//     the table is laid
//     the table is cleared
//     killed: yes
